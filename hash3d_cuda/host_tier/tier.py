"""The second tier: every entry's copy in host memory, and what comes back of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..host_index import HostIndex
from ..stats import HostTierStats
from .copier import Copier, make_copier
from .front import FrontTable, entry_bytes, host_bytes, host_capacity
from .landing import Landing

_PER_ENTRY = ("serials", "keys", "latents", "features", "scales", "member")


class HostTier:
    """Host memory behind a :class:`FrontTable`; with it, one table of ``capacity`` entries.

    - An append goes to the table on the device; what it stored is then copied to the host, in stored form.
    - A retrieval looks at keys and chains of all entries (a :class:`HostIndex`). Where all of an item's candidates are
      on the device, the table there answers. Where some are not, the item is answered from slots in which they have
      landed. Where they have not landed yet, nothing waits: the table on the device answers, from those it has, or
      misses, as if there were no tier.
    - :meth:`prefetch` starts the copies. Where copies are over at once, as on a CPU, a retrieval starts them itself.

    The averages of Eq. 9, which choose among grids, are taken on the device, over candidates that are there. So hits
    are those of one large table, and with one grid blends are too; with several, an item that was stored while some of
    its candidates were on the host alone may lead to another choice of the grid than there.

    Args:
        table: the table on the device.
        arguments: the keywords it was built with.
        budget: bytes of host memory for everything here.
        copier: see :mod:`.copier`; None takes the device's.

    Raises:
        ValueError: the budget holds no more entries than the table.
        MemoryError: the host has no such memory, or cannot pin it.
    """

    def __init__(self, table: FrontTable, arguments: dict[str, Any], budget: int, copier: Copier | None = None) -> None:
        options = table.options
        self.table, self.options = table, options
        self.capacity = host_capacity(options, table.capacity, budget)
        self.index = HostIndex(self.capacity, arguments)
        self._copier = make_copier(table.device, table._content) if copier is None else copier
        there = [table._latents, table._features.view(table._bits)]
        if options.quantised:
            there.append(table._scales)
        try:
            rows = [self._copier.empty(self.capacity, memory.shape[1], memory.dtype) for memory in there]
        except RuntimeError as error:
            entries = f"host_budget: {budget:,} bytes for {self.capacity:,} entries"
            raise MemoryError(f"{entries} are not to be had on the host; lower host_budget") from error
        self._memory = list(zip(there, rows, strict=True))  # (device, host): latents, features and scales
        self._landing = Landing(table.landing)
        self._counts = dict.fromkeys(("hits", "late", "bytes_down", "bytes_up"), 0)
        self._forget()

    def _forget(self) -> None:
        self._appended = 0
        self._leaving: deque[tuple[int, Any]] = deque()  # first serial and ticket of copies to the host, oldest first
        self._left: Any = None  # the ticket of the last copy whose entries were overwritten on the device

    def clear(self) -> None:
        """Empties both tiers; the counters stay."""
        self.table.clear()
        self.index.clear()
        self._landing.clear()
        self._forget()

    def append(self, keys: Tensor, latents: Tensor, features: Tensor) -> list[int]:
        """Stores items, ``keys`` ``[B, 4]`` on the host, the rest where the table is; returns their serials, -1 for
        what is known to be rejected."""
        serials = []
        for first in range(0, len(keys), self.table.capacity):  # an entry must not leave before it is copied
            part = slice(first, first + self.table.capacity)
            serials += self._append(keys[part], latents[part], features[part])
        return serials

    def _append(self, keys: Tensor, latents: Tensor, features: Tensor) -> list[int]:
        first = self._appended
        while self._leaving and self._leaving[0][0] < first + len(keys) - self.table.capacity:
            self._left = self._leaving.popleft()[1]
        self._copier.hold(self._left)
        stored = self.table.append(keys.to(self.table.device, non_blocking=True), latents, features)
        own = self.index.append(keys, stored)
        self._appended += len(keys)
        pairs = []
        for serial in range(first, self._appended):
            source, target = serial % self.table.capacity, serial % self.capacity
            pairs += [(host[target], device[source]) for device, host in self._memory]
        # A row that is overwritten may be on its way up: it is that of an entry which nothing finds any more.
        self._leaving.append((first, self._copier.down(pairs, (self._copier.mark(),))))
        self._counts["bytes_down"] += len(keys) * entry_bytes(self.options)
        return own

    def prefetch(self, keys: Tensor) -> None:
        """Starts to bring what retrievals with ``keys`` ``[B, 4]``, on the host, will want. Items whose entries find no
        room beside those of the items before them are left out."""
        keep: set[int] = set()
        for chains in self.index.candidates(keys):
            away = self._away(chains)
            if away and self._bring(away, keep):
                keep |= away

    def _bring(self, serials: set[int], keep: set[int]) -> bool:
        """Starts to copy entries to the device; False where there is no room."""
        places = self._landing.take(sorted(serials), keep)
        if not places:
            return places is not None
        pairs = []
        for serial, place in places.items():
            row = serial % self.capacity
            pairs.append((self.table._keys[place.slot], self.index.table._keys[row]))
            pairs += [(device[place.slot], host[row]) for device, host in self._memory]
        after = (self._left, *self._landing.last_read(places.values()))
        copied = self._copier.up(pairs, after)
        for place in places.values():
            place.copied = copied
        self._counts["bytes_up"] += len(places) * entry_bytes(self.options)
        return True

    def query(self, keys: Tensor, latents: Tensor, out: Tensor) -> list[bool]:
        """Which of the items hit; their rows of ``out`` are written. ``keys`` are on the host, the rest is not."""
        self._landing.poll(self._copier.arrived)  # first: once an entry is there, it is known whether it was rejected
        found = self.index.candidates(keys)
        settled = self.index.settled
        back = {row: chains for row, chains in enumerate(found) if self._can_answer(chains, settled)}
        first = self._appended - self.table.capacity
        near = [
            row not in back and any(serial >= first for chain in chains for serial in chain)
            for row, chains in enumerate(found)
        ]
        hits = self._ask_table(near, keys, latents, out)
        for row, chains in back.items():
            hits[row] = self._answer(chains, keys[row : row + 1], latents[row : row + 1], out[row : row + 1])
        return hits

    def _can_answer(self, chains: Sequence[Sequence[int]], settled: int) -> bool:
        """Whether an item's candidates are in both tiers, or on the host alone, and can all be had now."""
        away = self._away(chains)
        if not away:
            return False
        # On a GPU an entry stored just now may have been rejected, and its slot hold another's numbers.
        known = all(serial < settled for chain in chains for serial in chain)
        if known and (self._copier.immediate or self._landing.holds(away)):
            return True
        self._counts["late"] += 1
        return False

    def _answer(self, chains: Sequence[Sequence[int]], key: Tensor, latent: Tensor, out: Tensor) -> bool:
        """Answers one item from the slots of all its candidates; whether it hit."""
        away = self._away(chains)
        if self._copier.immediate:
            self._bring(away, set())
            self._landing.poll(self._copier.arrived)
        slots = [[self._landing.slot(s) if s in away else s % self.table.capacity for s in chain] for chain in chains]
        on_cpu = self.table.device.type == "cpu"
        if not on_cpu:
            out.fill_(float("nan"))  # see TrackedTable.query
        result = self.table.ask(slots, key.to(self.table.device, non_blocking=True), latent, out)
        self._landing.note_read(away, self._copier.mark())
        hit = not on_cpu or bool(result.hit)
        self._counts["hits"] += hit
        return hit

    def _ask_table(self, near: list[bool], keys: Tensor, latents: Tensor, out: Tensor) -> list[bool]:
        """Has the table on the device answer the items marked in ``near``, and no others; which of them hit."""
        if not any(near):
            return near
        on_cpu = self.table.device.type == "cpu"
        if not on_cpu:
            out.fill_(float("nan"))
        asked = torch.where(torch.tensor(near)[:, None], keys, torch.nan)  # NaN finds nothing
        result = self.table.query(asked.to(self.table.device, non_blocking=True), latents, out=out)
        return result.hit.tolist() if on_cpu else near

    def _away(self, chains: Sequence[Sequence[int]]) -> set[int]:
        """The entries of ``chains`` that only the host has."""
        first = self._appended - self.table.capacity
        return {serial for chain in chains for serial in chain if serial < first}

    @property
    def stats(self) -> HostTierStats:
        """What it holds, and what it did since it was made."""
        fixed, entry = host_bytes(self.options)
        held = fixed + entry * self.capacity
        return HostTierStats(entries=len(self.index.table), capacity=self.capacity, nbytes=held, **self._counts)

    def _state_dict(self) -> dict[str, Tensor]:
        """The content of both tiers as one table's, in the form :mod:`hash3d_cuda.storage` describes; waits for copies
        that are under way."""
        self._copier.settle()
        state = self.index.state()
        rows = state["serials"] % self.capacity
        names = ("latents", "features", "scales")
        state |= {name: host[rows] for name, (_, host) in zip(names, self._memory, strict=False)}
        state["features"] = state["features"].view(self.options.feature_dtype)
        return state | self.table.averages_and_counters()

    def _load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a state that ``storage`` has checked; raises ValueError for a chain longer than Q."""
        self.clear()
        self.index.load(state)
        serials = state["serials"]
        for (_, host), name in zip(self._memory, ("latents", "features", "scales"), strict=False):
            host[serials % self.capacity] = state[name].view(host.dtype)
        self._appended = int(state["counters"][0])
        newest = serials >= self._appended - self.table.capacity
        self.table._load_state_dict({n: t[newest] if n in _PER_ENTRY else t for n, t in state.items()})
