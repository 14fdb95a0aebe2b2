"""Notices that a U-Net's modules or weights were exchanged or written to, cheaply enough for every forward."""

from __future__ import annotations

import ctypes
import functools
from array import array
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from . import _C

_WORDS = 8  # of a cache line
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList, nn.ParameterDict)
_requires_grad = attrgetter("requires_grad")


class ModelWatch:
    """Watches which modules, parameters and buffers a module has, and whether they were written to.

    It sees another object in the place of a module or weight, however it got there (``load_state_dict(assign=True)``),
    and every write that autograd counts (an optimiser's step, ``load_state_dict``, ``copy_`` under ``no_grad``). It
    cannot see ``p.data.copy_(...)`` or ``p.data = ...``, nor a write to a weight made under ``inference_mode``. Weights
    on the meta device stand for others that a hook puts there for the forward: these are not watched.

    Attributes:
        modules: all of them, as of the last ``look()``.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._generation = 0
        self._walk()

    def look(self) -> bool:
        """Looks again; returns whether modules were exchanged, put in or taken out since the last time."""
        with torch._C.DisableTorchFunction():  # in a torch.device(...) block each attribute would cost a call in Python
            if _C.are_items_of(self._dicts, self._items):
                return False
            modules, weights = self.modules, self._weights
            self._walk()
        exchanged = not _are_same(modules, self.modules)
        if exchanged or not _are_same(weights, self._weights):
            self._generation += 1
        return exchanged

    def state(self) -> tuple[int, int]:
        """Equal at two moments only if nothing that can be seen was changed in between."""
        with torch._C.DisableTorchFunction():
            return self._generation, _C.sum_attributes(self._counted, "_version", *self._lines.buffer_info())

    def wants_gradients(self) -> bool:
        """Whether some weight requires a gradient."""
        with torch._C.DisableTorchFunction():
            return any(map(_requires_grad, self._tensors))

    def _walk(self) -> None:
        """Notes what there is."""
        self.modules = list(self._module.modules())
        found: list[dict[str, Any]] = [
            members
            for module in self.modules
            for members in (module._modules, module._parameters, module._buffers)
            if members or isinstance(module, _CONTAINERS)
        ]
        # A forward leaves little of all this in the processor's caches: it is read again faster in the order of memory.
        self._dicts = sorted(found, key=id)
        self._items = _C.items_of(self._dicts)  # keeps them alive: no other can come to lie at the same address
        self._tensors = [value for members in self._dicts for value in members.values() if isinstance(value, Tensor)]
        self._weights = [None if value.is_meta else value for value in self._tensors]
        counted = (value for value in self._weights if value is not None and not value.is_inference())
        self._counted = sorted(counted, key=id)
        starts = [tensor._cdata for tensor in self._counted]
        place = _counters_place()
        self._lines = array("Q", starts if place is None else [*starts, *(_words(start)[place] for start in starts)])


def _are_same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _words(address: int) -> list[int]:
    return list((ctypes.c_uint64 * _WORDS).from_address(address))


@functools.cache
def _counters_place() -> int | None:
    """Which of the first words of what a tensor is in C++ holds the address of its counter of writes; None where that
    cannot be told. Found by trial, not known from torch: the word that a tensor has in common with an alias that counts
    with it, and not with one that counts for itself. For hints of what will be read alone; nothing is read there."""
    with torch.inference_mode(False):
        own = torch.zeros(1, device="cpu")
        counting, apart = own.detach(), own.data
    words = zip(*(_words(tensor._cdata) for tensor in (own, counting, apart)), strict=True)
    places = [place for place, (mine, alike, other) in enumerate(words) if mine == alike != other]
    return places[0] if len(places) == 1 else None
