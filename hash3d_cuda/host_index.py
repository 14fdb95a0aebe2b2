"""What the host knows of a table on a device: keys and chains."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from .table import HashTable


class HostIndex:
    """The keys and chains of a table, without its contents: a CPU table with the same options and features of one
    number, which takes the same serials.

    It cannot see which entries the device rejects because a number in them is not finite. The serials that an append
    returns are copied without waiting, and heeded when they have arrived. Until then:

    - A rejected entry counts as a candidate here and not there. If it is the only one, the host announces a hit where
      the device misses; :class:`TrackedTable` sees to it that the row then reads NaN.
    - A rejected entry takes a place in the chain here and not there, so an accepted one may have left the chain only
      here. That item then counts as a miss, which is never wrong.

    Entries that the device accepted are never kept longer here than there.
    """

    def __init__(self, capacity: int, arguments: dict[str, Any]) -> None:
        same = {**arguments, "capacity": capacity, "memory_budget": None}
        self._table = HashTable((1,), (1,), **{**same, "device": "cpu", "feature_dtype": torch.float32})
        self.clear()

    @property
    def table(self) -> HashTable:
        """Keys and chains alone."""
        return self._table

    def append(self, keys: Tensor, serials: Tensor) -> list[int]:
        """Follows an append of ``keys`` that returned ``serials`` (on any device); returns its own."""
        blank = torch.zeros(len(keys), 1)
        if not serials.is_cuda:  # what was rejected is known, and is rejected here too
            blank[serials < 0] = torch.nan
        own = self._table.append(keys, blank, blank).tolist()
        self.appended += len(keys)
        arrived = None
        if serials.is_cuda:
            device = serials.device
            copy = torch.empty(serials.shape, dtype=serials.dtype, pin_memory=True)
            serials = copy.copy_(serials, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(device))
        self._coming.append((arrived, own, serials))
        return own

    def find(self, keys: Tensor) -> list[bool]:
        """Which of ``keys`` ``[N, 4]`` have a candidate in some grid."""
        return [any(chains) for chains in self.candidates(keys)]

    def candidates(self, keys: Tensor) -> list[list[list[int]]]:
        """For each of ``keys`` ``[N, 4]`` and each grid the serials of its candidates, newest first."""
        self._receive()
        found = self._table.lookup(keys).tolist()
        return [[[s for s in chain if s >= 0 and s not in self._rejected] for chain in chains] for chains in found]

    @property
    def settled(self) -> int:
        """Of the entries with smaller serials it is known which were rejected."""
        return self.appended - sum(len(own) for _, own, _ in self._coming)

    def state(self) -> dict[str, Tensor]:
        """The content, as :mod:`hash3d_cuda.storage` describes it, with latents and features of one number. Entries
        that are known to be rejected are left out."""
        self._receive()
        state = self._table._state_dict()
        kept = torch.tensor([serial not in self._rejected for serial in state["serials"].tolist()], dtype=torch.bool)
        return {name: t[kept] if name not in ("similarity", "counters") else t for name, t in state.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over keys and chains from a table's state, such as :mod:`hash3d_cuda.storage` describes it."""
        blank = torch.zeros(len(tensors["serials"]), 1)
        told = {name: tensor for name, tensor in tensors.items() if name != "scales"}  # of features, which are not here
        self._table._load_state_dict({**told, "latents": blank, "features": blank})
        self.appended = int(tensors["counters"][0])

    def clear(self) -> None:
        """Forgets all entries."""
        self._table.clear()
        self.appended = 0
        self._rejected: set[int] = set()
        self._coming: deque[tuple[torch.cuda.Event | None, list[int], Tensor]] = deque()

    def _receive(self) -> None:
        """Takes in the serials that have arrived, oldest first; entries long overwritten are dropped."""
        while self._coming and (self._coming[0][0] is None or self._coming[0][0].query()):
            _, own, serials = self._coming.popleft()
            pairs = zip(own, serials.tolist(), strict=True)
            self._rejected.update(mine for mine, theirs in pairs if mine >= 0 and theirs < 0)
            self._rejected = {serial for serial in self._rejected if serial + self._table.capacity >= self.settled}
