"""One call of a U-Net: its arguments by name, and rows taken out of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from torch import Tensor


@dataclass(frozen=True)
class UNetCall:
    """The arguments of ``UNet2DConditionModel.forward``, in its order: ``UNetCall(*args, **kwargs)`` binds them, and
    raises TypeError for one that this module does not know."""

    sample: Tensor
    timestep: Tensor | float | int
    encoder_hidden_states: Tensor | None
    class_labels: Tensor | None = None
    timestep_cond: Tensor | None = None
    attention_mask: Tensor | None = None
    cross_attention_kwargs: dict[str, Any] | None = None
    added_cond_kwargs: dict[str, Any] | None = None
    down_block_additional_residuals: Sequence[Tensor] | None = None
    mid_block_additional_residual: Tensor | None = None
    down_intrablock_additional_residuals: Sequence[Tensor] | None = None
    encoder_attention_mask: Tensor | None = None
    return_dict: bool = True

    def as_kwargs(self) -> dict[str, Any]:
        """The arguments as keywords of the model's ``forward``; the list it pops from is copied."""
        kwargs = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.down_intrablock_additional_residuals is not None:
            kwargs["down_intrablock_additional_residuals"] = list(self.down_intrablock_additional_residuals)
        return kwargs

    def values(self) -> dict[str, Any]:
        """All arguments but the timestep and ``return_dict``."""
        names = (field.name for field in fields(self) if field.name not in ("timestep", "return_dict"))
        return {name: getattr(self, name) for name in names}

    def with_values(self, values: dict[str, Any], timestep: Any) -> UNetCall:
        """The call with others in the place of ``values()`` and of the timestep."""
        return replace(self, **values, timestep=timestep)

    def take(self, rows: Sequence[int]) -> UNetCall:
        """The call for some rows of the batch only."""
        batch = len(self.sample)
        values = {field.name: take_rows(getattr(self, field.name), rows, batch) for field in fields(self)}
        timestep = self.timestep
        if not isinstance(timestep, Tensor) or timestep.dim() == 0:
            values["timestep"] = timestep
        return replace(self, **values)

    @property
    def can_take(self) -> bool:
        """Whether every argument's rows are known. Attention processors may be handed tensors of any meaning."""
        return not any(isinstance(value, Tensor) for value in leaves(self.cross_attention_kwargs))

    def tensors(self) -> Iterator[Tensor]:
        """All tensors among the arguments."""
        for field in fields(self):
            for value in leaves(getattr(self, field.name)):
                if isinstance(value, Tensor):
                    yield value


def take_rows(value: Any, rows: Sequence[int], batch: int) -> Any:
    """Takes ``rows`` of every tensor in ``value`` whose first size is ``batch``; others are broadcast, and stay.

    Rows are host numbers: neighbours are taken as one slice, so that no index goes to the device. All of them in order
    are the tensor itself.
    """
    if isinstance(value, Tensor):
        return _take(value, rows) if value.dim() > 0 and value.shape[0] == batch else value
    if isinstance(value, dict):
        return {name: take_rows(item, rows, batch) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(take_rows(item, rows, batch) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(take_rows(item, rows, batch) for item in value)
    return value


@contextlib.contextmanager
def lora_scale(unet: UNet2DConditionModel, kwargs: dict[str, Any] | None) -> Iterator[dict[str, Any] | None]:
    """Scales the LoRA layers by ``kwargs["scale"]`` for the duration, as the model's forward does; yields the kwargs
    without it."""
    if kwargs is None or "scale" not in kwargs:
        yield kwargs
        return
    rest = {name: value for name, value in kwargs.items() if name != "scale"}
    scale = kwargs["scale"]
    if not USE_PEFT_BACKEND:  # then the model ignores it too
        yield rest
        return
    scale_lora_layers(unet, scale)
    try:
        yield rest
    finally:
        unscale_lora_layers(unet, scale)


def runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Cuts row numbers into runs ``(first, length)`` of neighbours: ``[0, 1, 4]`` -> ``[(0, 2), (4, 1)]``."""
    found: list[tuple[int, int]] = []
    for row in rows:
        if found and row == found[-1][0] + found[-1][1]:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((row, 1))
    return found


def _take(value: Tensor, rows: Sequence[int]) -> Tensor:
    batch = value.shape[0]
    slices = [value if length == batch else value.narrow(0, first, length) for first, length in runs(rows)]
    return slices[0] if len(slices) == 1 else torch.cat(slices)


def leaves(value: Any) -> Iterator[Any]:
    """What lies in nested dicts, tuples and lists."""
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    else:
        yield value
