"""A sampler's runs: which calls of a model are the steps of one, counted from 0.

A diffusers pipeline says neither where a run begins nor which step a call is. Both are seen here from what it hands to
the model, without reading a tensor on a GPU: it walks through one tensor of timesteps, and keeps its embeddings.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Hashable, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fingerprint import Hashed
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

    Attributes:
        condition: the run's id.
    """

    def __init__(self, copies: HostCopies) -> None:
        self._copies = copies
        self._moment = _Moment()
        self._tensors: list[Tensor] = []
        self._versions: list[int | None] = []
        self._shape: torch.Size | None = None
        self.condition: Hashable = None
        self._step = -1
        self._apart = 0  # calls in a row that were only kept from going on by their conditioning

    @property
    def never_goes_on(self) -> bool:
        """Whether call after call goes on in time, and starts a run of its own for other embeddings."""
        return self._apart >= 2

    @property
    def key(self) -> tuple[float, float, float, float]:
        """Of the one item, in key order."""
        return 0.0, 0.0, 0.0, float(self._step)

    def follow(self, call: Call) -> None:
        """Takes note of a call."""
        moment = _Moment.of(call.timestep, self._moment, self._copies)
        moved_on, same = moment.follows(self._moment), self._is_conditioned_alike(call)
        self._moment = moment
        self._apart = self._apart + 1 if moved_on and not same else 0
        if moved_on and same:
            self._step += 1
        else:
            self.condition, self._step = Hashed(("sampling", uuid.uuid4().hex)), 0

    def keys(self, timestep: Any, firsts: Sequence[int], rows: int) -> Tensor:
        """Float32 ``[B, 4]`` on the CPU, B the length of ``firsts``. ``timestep`` is not read."""
        return torch.tensor([self.key]).expand(len(firsts), -1)

    def conditions(self, batch: int) -> list[Hashable]:
        """The run's id for each of ``batch`` items."""
        return [self.condition] * batch

    def _is_conditioned_alike(self, call: Call) -> bool:
        """Whether what a sampler makes once for a run is the last call's, unwritten, and what it makes at every step of
        the same shape. Notes what it is."""
        tensors = _conditioning(call)
        versions = [None if tensor.is_inference() else tensor._version for tensor in tensors]
        shape = call.sample.shape
        same = len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors))
        same = same and versions == self._versions and shape == self._shape
        self._tensors, self._versions, self._shape = tensors, versions, shape
        return same


class _Moment(NamedTuple):
    """A call's timestep: its place in a longer tensor, if it is a view of one, else its values."""

    timesteps: Tensor | None = None  # kept, so that no other tensor comes to lie at its address
    place: int = 0
    values: tuple[float, ...] | None = None  # None with ``timesteps``, and where there was no call

    @classmethod
    def of(cls, timestep: Any, last: _Moment, copies: HostCopies) -> _Moment:
        """``last``: the moment before, most often in the same tensor."""
        if isinstance(timestep, Tensor) and timestep.layout is torch.strided:
            base = timestep._base
            if base is not None and base is last.timesteps:
                return cls(base, timestep.storage_offset())
            own = math.prod([size for size, stride in zip(timestep.shape, timestep.stride()) if stride])
            if timestep.untyped_storage().nbytes() > own * timestep.itemsize:
                return cls(timestep.detach() if base is None else base, timestep.storage_offset())
        values = torch.as_tensor(copies.fetch("timestep", timestep)).reshape(-1)
        return cls(values=tuple(values.tolist()))

    def follows(self, other: _Moment) -> bool:
        """Whether a sampler that was there may be here next: further on in the same tensor, or lower. Not at the same
        place: two calls at one step ask two questions."""
        if self.timesteps is not None and other.timesteps is not None:
            if self.timesteps is not other.timesteps:
                mine, theirs = (moment.timesteps.untyped_storage().data_ptr() for moment in (self, other))
                if mine != theirs:
                    return False
            return self.place > other.place
        if self.values is None or other.values is None or len(self.values) != len(other.values):
            return False
        return all(mine < theirs for mine, theirs in zip(self.values, other.values))


def _conditioning(call: Call) -> list[Tensor]:
    """The tensors that a sampler makes once for a run, in the order of the arguments."""
    given = call.given() if isinstance(call, BoundCall) else vars(call)
    found: list[Tensor] = []
    for name, value in given.items():
        if value is None or name in _STEPWISE:
            continue
        if isinstance(value, Tensor):
            found.append(value)
        elif not isinstance(value, (bool, int, float, str)):
            found += [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
    return found
