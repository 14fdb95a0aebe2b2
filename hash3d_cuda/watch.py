"""Notices that a U-Net's modules or weights were exchanged or written to, cheaply enough for every forward."""

from __future__ import annotations

import ctypes
import functools
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import _C

_WORDS = 8  # of what a tensor is, that are looked at: a cache line
_WORD = ctypes.sizeof(ctypes.c_uint64)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList, nn.ParameterDict)
_requires_grad = attrgetter("requires_grad")
_version = attrgetter("_version")


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
        if self._path is not None:  # asking torch for each would take longer than all else together
            return self._generation, _C.sum_counters(self._counted, *self._path)
        with torch._C.DisableTorchFunction():
            return self._generation, sum(map(_version, self._counted))

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
        self._path = _path_to(self._counted)


class CounterPath(NamedTuple):
    """How to get from a tensor to its counter of writes, in bytes: ``object`` from the Python object to where it has
    the address of what the tensor is in C++, ``tensor`` from there to where that has the counter's, and ``counter``
    from there to its 32 bits."""

    object: int
    tensor: int
    counter: int


def _are_same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _words(address: int, count: int = _WORDS) -> list[int]:
    return list((ctypes.c_uint64 * count).from_address(address))


def _path_to(tensors: list[Tensor]) -> CounterPath | None:
    """The path to the counters of all these, if it leads to each."""
    path = _find_path()
    if path is None or not all(_words(id(tensor) + path.object, 1) == [tensor._cdata] for tensor in tensors):
        return None
    found = (_C.sum_counters([tensor], *path) == tensor._version for tensor in tensors)
    return path if all(found) else None


@functools.cache
def _find_path() -> CounterPath | None:
    """The path in this torch; None where that cannot be told. Found by trial, not known from torch: the word of the
    object that is the tensor's address; the word of the tensor that it has in common with an alias that counts with
    it, and not with one that counts for itself; and the number there that follows the writes."""
    with torch.inference_mode(False):
        own = torch.zeros(1, device="cpu")
        counting, apart = own.detach(), own.data
        mine = _words(own._cdata)
        objects = [place for place, word in enumerate(_words(id(own), _object_words())) if word == own._cdata]
        others = zip(mine, _words(counting._cdata), _words(apart._cdata), strict=True)
        tensors = [place for place, (word, alike, other) in enumerate(others) if word == alike != other]
        if len(objects) != 1 or len(tensors) != 1 or not _may_be_address(mine[tensors[0]]):
            return None
        seen = [_halves(mine[tensors[0]])]
        for _ in range(2):
            own.add_(1)
            seen.append(_halves(mine[tensors[0]]))
    counters = [place for place, numbers in enumerate(zip(*seen, strict=True)) if numbers == (0, 1, 2)]
    if len(counters) != 1:
        return None
    return CounterPath(objects[0] * _WORD, tensors[0] * _WORD, counters[0] * _WORD // 2)


def _object_words() -> int:
    return Tensor.__basicsize__ // _WORD


def _may_be_address(word: int) -> bool:
    return word > 2**16 and word % _WORD == 0


def _halves(address: int) -> list[int]:
    """The first 32-bit numbers of what a counter is in C++: no more than the smallest that it can be."""
    return list((ctypes.c_uint32 * 6).from_address(address))
