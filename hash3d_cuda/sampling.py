"""A sampler's runs: which calls of a model are the steps of one, counted from 0.

A diffusers pipeline says neither where a run begins nor which step a call is. Both are seen here from what it hands to
the model, without reading a tensor on a GPU: it walks through one tensor of timesteps, and keeps its embeddings.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .poses import HostCopies
from .unet.adapter import Call
from .unet.bound_call import BoundCall
from .unet.call import leaves

_STEPWISE = {  # made anew at every step
    "sample",
    "timestep",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
}


class Sampling:
    """Tells the steps of runs as keys, in the place of :class:`.poses.Views`: one pose, and the step's number as the
    timestep. The condition id is the run's.

    A call is the next step of its run if the timestep moved on and everything that conditions it is the very same: the
    tensors, unwritten since (a write under ``inference_mode`` cannot be seen), and the sample's shape. Any other call
    is step 0 of a new run, whose id no other run has, here or in another process: it finds nothing to reuse.
    """

    def __init__(self, copies: HostCopies) -> None:
        self._copies = copies
        self._conditioning: list[Hashable] = []
        self._moment: _Moment | None = None
        self._run, self._step = "", -1
        self._apart = 0  # calls in a row that were only kept from going on by their conditioning

    @property
    def never_goes_on(self) -> bool:
        """Whether call after call goes on in time, and starts a run of its own for other embeddings."""
        return self._apart >= 2

    def follow(self, call: Call) -> None:
        """Takes note of a call."""
        moment, conditioning = _Moment.of(call.timestep, self._copies), _conditioning(call)
        moved_on = self._moment is not None and moment.follows(self._moment)
        same = conditioning == self._conditioning
        self._apart = self._apart + 1 if moved_on and not same else 0
        if moved_on and same:
            self._step += 1
        else:
            self._run, self._step = uuid.uuid4().hex, 0
        self._moment, self._conditioning = moment, conditioning

    def keys(self, timestep: Any, firsts: Sequence[int], rows: int) -> Tensor:
        """Float32 ``[B, 4]`` on the CPU, B the length of ``firsts``. ``timestep`` is not read."""
        return torch.tensor([[0.0, 0.0, 0.0, self._step]]).expand(len(firsts), -1)

    def conditions(self, batch: int) -> list[Hashable]:
        """The run's id for each of ``batch`` items."""
        return [("sampling", self._run)] * batch


class _Moment(NamedTuple):
    """A call's timestep: its place in a longer tensor, if it is a view of one, else its values."""

    timesteps: Tensor | None = None  # kept, so that no other tensor comes to lie at its address
    place: int = 0
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, timestep: Any, copies: HostCopies) -> _Moment:
        if isinstance(timestep, Tensor) and timestep.layout is torch.strided:
            own = (
                1 if timestep.dim() == 0 else math.prod(n for n, step in zip(timestep.shape, timestep.stride()) if step)
            )
            if timestep.untyped_storage().nbytes() > own * timestep.itemsize:
                return cls(timestep.detach(), timestep.storage_offset())
        values = torch.as_tensor(copies.fetch("timestep", timestep)).reshape(-1)
        return cls(values=tuple(values.tolist()))

    def follows(self, other: _Moment) -> bool:
        """Whether a sampler that was there may be here next: further on in the same tensor, or lower. Not at the same
        place: two calls at one step ask two questions."""
        if self.timesteps is not None and other.timesteps is not None:
            mine, theirs = (moment.timesteps.untyped_storage().data_ptr() for moment in (self, other))
            return mine == theirs and self.place > other.place
        if self.timesteps is not None or other.timesteps is not None or len(self.values) != len(other.values):
            return False
        return all(mine < theirs for mine, theirs in zip(self.values, other.values))


class _Unwritten:
    """Equal to another of the very same tensor as long as nothing was written to it in between."""

    __slots__ = ("_tensor", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = None if tensor.is_inference() else tensor._version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unwritten) and other._tensor is self._tensor and other._version == self._version

    __hash__ = None  # type: ignore[assignment]


def _conditioning(call: Call) -> list[Any]:
    """What a sampler makes once for a run, and the shape of what it makes at every step."""
    given = call.given() if isinstance(call, BoundCall) else vars(call)
    found: list[Any] = [call.sample.shape]
    for name, value in given.items():
        if value is None or name in _STEPWISE:
            continue
        tensors = [value] if isinstance(value, Tensor) else [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
        found += map(_Unwritten, tensors)
    return found
