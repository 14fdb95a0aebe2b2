"""What a forward that decides on the device is given, brought to memory that stays in place: poses and arguments."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .fingerprint import Same
from .keys import KEY_ORDER, column_of
from .poses import TIMESTEP, HostCopies, Views, check_conditions
from .unet.adapter import Call
from .unet.call import leaves, take_rows

_POSE = "elevation, azimuth, radius, timestep"


class DeviceViews(Views):
    """Like :class:`Views`, for poses and timesteps that may lie on a GPU: nothing is copied to the host."""

    def __init__(
        self, elevation: Any, azimuth: Any, radius: Any, timestep: Any, condition: Any, copies: HostCopies
    ) -> None:
        self.has_timestep = timestep is not None
        given = (elevation, azimuth, radius, timestep if self.has_timestep else 0)
        columns = [column_of(name, value) for name, value in zip(KEY_ORDER, given, strict=True)]
        self._lengths = [len(column) for column in columns]
        for length in self._lengths:
            self._check_length(_POSE, length, max(self._lengths))
        self._there = {place: column for place, column in enumerate(columns) if column.device.type != "cpu"}
        host = [torch.zeros(1) if place in self._there else column.float() for place, column in enumerate(columns)]
        self._here = torch.stack(torch.broadcast_tensors(*host), dim=1)
        self._conditions = check_conditions(condition)

    def write(self, keys: Tensor, timestep: Any, firsts: Sequence[int], rows: int) -> None:
        """Writes the items' keys to ``keys`` ``[B, 4]``; ``timestep``, ``firsts`` and ``rows`` as for ``keys()``."""
        for length in self._lengths:
            self._check_length(_POSE, length, len(keys))
        keys.copy_(self._here.expand(len(keys), -1).contiguous(), non_blocking=True)
        for place, column in self._there.items():
            keys[:, place].copy_(column, non_blocking=True)
        if self.has_timestep:
            return
        if not isinstance(timestep, Tensor):
            keys[:, TIMESTEP].fill_(timestep)
            return
        steps = timestep.detach().reshape(-1)
        steps = take_rows(steps, firsts, rows) if len(steps) == rows else steps
        keys[:, TIMESTEP].copy_(steps, non_blocking=True)


class StaticCall:
    """A call of the U-Net on buffers of its own, which ``fill`` brings another call of the same form to.

    A timestep on the host becomes a tensor on the device, of the type that the model would make of it.
    """

    def __init__(self, call: Call) -> None:
        timestep = _as_tensor(call.timestep)
        self.buffers: list[Tensor] = []  # the timestep's first
        with torch.inference_mode(False):  # or they could not be written to outside inference mode
            self._timestep = torch.empty_like(timestep, device=call.sample.device)
            self.buffers.append(self._timestep)
            own = {name: _map_tensors(value, self._own) for name, value in call.values().items()}
        self.call = call.with_values(own, self._timestep)

    def fill(self, call: Call) -> None:
        """Copies the call's tensors; a GPU is not waited for."""
        for buffer, value in zip(self.buffers[1:], _tensors(call), strict=True):
            buffer.copy_(value, non_blocking=True)
        timestep = call.timestep
        if not isinstance(timestep, Tensor):
            self._timestep.fill_(timestep)
        elif timestep.device.type == "cpu" and timestep.dim() == 0:
            self._timestep.fill_(timestep.item())
        else:
            self._timestep.copy_(timestep, non_blocking=True)

    def _own(self, value: Tensor) -> Tensor:
        self.buffers.append(torch.empty_like(value))
        return self.buffers[-1]


def form_of(call: Call) -> Hashable:
    """What must be alike in two calls for one's graph to serve the other: sizes, types, strides, and what is no tensor.

    Raises:
        ValueError: a tensor lies on another device than the sample.
    """
    device = call.sample.device
    for value in _tensors(call):
        if value.device != device:
            raise ValueError(
                f"decide: expected all of the U-Net's arguments on {device}, got one of shape {list(value.shape)} on "
                f'{value.device}; move it there, or pass decide="host"'
            )
    timestep = _as_tensor(call.timestep)
    return (timestep.shape, timestep.dtype, _form(call.values()))


def _tensors(call: Call) -> list[Tensor]:
    """All tensors but the timestep."""
    return [value for value in leaves(call.values()) if isinstance(value, Tensor)]


def _as_tensor(timestep: Any) -> Tensor:
    """A timestep as the model takes it: int64 for a whole number, float64 for another."""
    return timestep if isinstance(timestep, Tensor) else torch.tensor(timestep, dtype=_number_dtype(timestep))


def _number_dtype(number: Any) -> torch.dtype:
    return torch.float64 if isinstance(number, float) else torch.int64


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in it replaced, in the order of :func:`.unet.call.leaves`."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _map_tensors(item, function) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


def _form(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return ("tensor", value.shape, value.dtype, value.stride())
    if isinstance(value, dict):
        return ("dict", *((name, _form(item)) for name, item in value.items()))
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_form, value))
    return value if isinstance(value, (bool, int, float, str, type(None))) else Same(value)
