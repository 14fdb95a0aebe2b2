"""What is cached: the activation at the cut (``FeatureParts``) or the U-Net's output (``NoiseParts``).

Both offer the same three steps for one call: ``prepare`` (all rows), ``compute`` (rows that miss), ``finish`` (all
rows). On a hit, ``compute`` is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .config import Hash3DConfig
from .unet import SplitUNet, UNetCall
from .unet.call import lora_scale, take_rows
from .unet.split import MODEL_FORWARD, gather_residuals, head_inputs


class Parts(Protocol):
    """The steps; ``state`` is what ``prepare`` returned. ``cut_blocks`` are the blocks of which only a part may run."""

    cut_blocks: Sequence[nn.Module]

    def cut(self) -> None:
        """To be called when the U-Net's modules were exchanged.

        Raises:
            TypeError, ValueError: it cannot be cut any more.
        """

    def during(self, call: UNetCall) -> contextlib.AbstractContextManager[Any]:
        """What surrounds the three steps of a call; its value goes to ``prepare``."""

    def prepare(self, call: UNetCall, entered: Any) -> Any:
        """Runs what precedes the cached tensor and is needed on a hit too."""

    def compute(self, call: UNetCall, state: Any, rows: Sequence[int] | None) -> Tensor:
        """Computes the tensor that is cached, for ``rows``, in that order; None: all."""

    def finish(self, state: Any, feature: Tensor) -> Tensor:
        """Turns the cached tensor of all rows into the U-Net's output."""


class FeatureParts:
    """Head, deep and tail of the split U-Net, compiled when the configuration says so."""

    def __init__(self, unet: UNet2DConditionModel, config: Hash3DConfig) -> None:
        self._unet = unet
        self._config = config
        self.cut()

    def cut(self) -> None:
        split = SplitUNet(self._unet, self._config.position)
        self.cut_blocks: Sequence[nn.Module] = split.layout.cut_blocks
        self._head, self._deep, self._tail = (
            _compiled(part, self._config.compile) for part in (split.head, split.deep, split.tail)
        )

    def during(self, call: UNetCall) -> contextlib.AbstractContextManager[Any]:
        return lora_scale(self._unet, call.cross_attention_kwargs)

    def prepare(self, call: UNetCall, entered: Any) -> Any:
        residuals = gather_residuals(call)
        return *self._head(*head_inputs(call, entered), residuals), residuals

    def compute(self, call: UNetCall, state: Any, rows: Sequence[int] | None) -> Tensor:
        hidden, _, conditioning, residuals = state
        inputs = (hidden, conditioning, residuals)
        if rows is None:
            return self._deep(*inputs)
        batch = len(call.sample)
        if not call.can_take:
            return take_rows(self._deep(*inputs), rows, batch)
        return self._deep(*take_rows(inputs, rows, batch))

    def finish(self, state: Any, feature: Tensor) -> Tensor:
        _, skips, conditioning, _ = state
        return self._tail(feature, skips, conditioning)


class NoiseParts:
    """The whole U-Net: its output is what is cached, and a hit runs nothing of it (the paper's ablation)."""

    cut_blocks: Sequence[nn.Module] = ()

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._unet = unet

    def cut(self) -> None:
        pass

    def during(self, call: UNetCall) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def prepare(self, call: UNetCall, entered: Any) -> None:
        return None

    def compute(self, call: UNetCall, state: None, rows: Sequence[int] | None) -> Tensor:
        if rows is None:
            return self._plain(call)
        if not call.can_take:
            return take_rows(self._plain(call), rows, len(call.sample))
        return self._plain(call.take(rows))

    def finish(self, state: None, feature: Tensor) -> Tensor:
        return feature.clone()  # a retrieved one lies in a buffer that the next call overwrites

    def _plain(self, call: UNetCall) -> Tensor:
        """The model's own forward: what is hooked in around it runs before and after all steps."""
        return MODEL_FORWARD(self._unet, **{**call.as_kwargs(), "return_dict": False})[0]


def _compiled(part: Callable[..., Any], options: bool | dict[str, Any]) -> Callable[..., Any]:
    if options is False:
        return part
    return torch.compile(part, **{"fullgraph": True, **({} if options is True else options)})
