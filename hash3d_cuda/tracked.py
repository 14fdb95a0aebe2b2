"""A table together with what the host knows of it, so that hits are decided without waiting for a GPU."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import storage
from .checks import fail
from .freshness import Freshness
from .poses import HostCopies
from .table import HashTable

if TYPE_CHECKING:
    from .host_tier import HostTier


class TrackedTable:
    """A :class:`HashTable` whose queries say on the host which items hit.

    A CPU table says so itself. A table on a GPU is followed by a :class:`HostIndex`; only with ``min_similarity``,
    which depends on the features, is the device's answer waited for and counted. In front of a :class:`HostTier`,
    which follows it in any case, the tier is asked.
    """

    def __init__(
        self,
        table: HashTable,
        arguments: dict[str, Any],
        copies: HostCopies,
        followed: bool = True,
        freshness: Freshness | None = None,
        tier: HostTier | None = None,
    ) -> None:
        """``arguments`` are the keywords ``table`` was built with. With ``followed=False`` the host keeps out of
        it: only ``table`` and ``clear`` are for use. ``freshness`` says which entries may still be served; ``tier``
        is the one behind ``table``."""
        self.table = table
        self.tier = tier
        self.freshness = freshness
        self.appended = 0  # items so far, and so the next serial
        self._copies = copies
        self._index: HostIndex | None = None if tier is None else tier.index
        if tier is None and followed and table.device.type != "cpu":
            if arguments["min_similarity"] is None:
                self._index = HostIndex(table.capacity, arguments)
            elif copies.strict:
                expected = "None with strict=True: whether an item hits would depend on features on the GPU"
                fail(ValueError, "min_similarity", expected, arguments["min_similarity"], "pass strict=False")

    def query(
        self, keys: Tensor, latents: Tensor, out: Tensor, forward: int = 0, sketch: Tensor | None = None
    ) -> list[bool]:
        """Which of the items hit; their rows of ``out`` are written. ``keys`` and ``sketch`` are on the host, the rest
        is not."""
        if self.freshness is not None:
            keys = self._without_stale(keys, forward, sketch)
        if self.tier is not None:
            return self.tier.query(keys, latents, out)
        if self._index is None:
            hit = self.table.query(keys.to(self.table.device, non_blocking=True), latents, out=out).hit
            return self._copies.fetch("min_similarity", hit).tolist()
        hits = self._index.find(keys)
        if any(hits):
            # The device may have rejected an entry that the host counts on, or miss because a latent is not finite. It
            # then leaves the row alone, so old content would pass for an answer; NaN does not.
            out.fill_(float("nan"))
            self.table.query(keys.to(self.table.device, non_blocking=True), latents, out=out)
        return hits

    def append(
        self, keys: Tensor, latents: Tensor, features: Tensor, forward: int = 0, sketch: Tensor | None = None
    ) -> None:
        """Stores items. ``keys`` are on the host, like ``sketch``, the rest is not."""
        if self.tier is not None:
            own: list[int] | None = self.tier.append(keys, latents, features)
        else:
            serials = self.table.append(keys.to(self.table.device, non_blocking=True), latents, features)
            own = None if self._index is None else self._index.append(keys, serials)
        self.appended += len(keys)
        if self.freshness is not None:
            told = self._copies.fetch("max_age", serials).tolist() if own is None else own
            self.freshness.note(told, forward, sketch)

    def _without_stale(self, keys: Tensor, forward: int, sketch: Tensor | None) -> Tensor:
        """``keys`` with NaN, which finds nothing, where the entries may not be served any more."""
        assert self.freshness is not None
        on_host = self.table if self.table.device.type == "cpu" else None
        table = on_host if self._index is None else self._index.table
        if table is None:  # min_similarity on a GPU: the look-up there is waited for
            found = self._copies.fetch("max_age", self.table.lookup(keys.to(self.table.device)))
        else:
            found = table.lookup(keys)
        passing = self.freshness.passing(found, forward, sketch)
        return torch.where(passing[:, None], keys, torch.nan)

    def clear(self) -> None:
        """Empties the table, and the tier behind it."""
        self.appended = 0
        if self.tier is not None:
            self.tier.clear()
            return
        self.table.clear()
        if self._index is not None:
            self._index.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """The content, as :mod:`hash3d_cuda.storage` describes it; with a tier, what both hold together."""
        return (self.tier or self.table)._state_dict()

    def load_state_dict(self, path: str, tensors: dict[str, Tensor]) -> None:
        """The reverse, into an empty table; raises ValueError, naming ``path``, when ``tensors`` are no content."""
        storage.fill(path, self.tier or self.table, tensors)
        self.appended = int(tensors["counters"][0])
        if self._index is not None and self.tier is None:
            self._index.load(tensors)


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
