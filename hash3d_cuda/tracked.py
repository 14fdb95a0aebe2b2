"""A table together with what the host knows of it, so that hits are decided without waiting for a GPU."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import storage
from .checks import fail
from .freshness import Freshness
from .host_index import HostIndex
from .poses import HostCopies
from .table import HashTable

if TYPE_CHECKING:
    from .host_tier import HostTier


_WHOLE = 2.0**24  # below it float32 has all whole numbers


class Kept(NamedTuple):
    """The feature of one entry as it came to :meth:`TrackedTable.append`, and how often it had been written to.
    ``place``: see :meth:`TrackedTable._place`; there it is the only candidate."""

    place: tuple[float, ...]
    feature: Tensor  # [G, ...]
    version: int


class Held(NamedTuple):
    """What :meth:`TrackedTable.append` is yet to be called with."""

    key: Sequence[float]
    latents: Tensor  # [1, ...], its own
    feature: Tensor  # [G, ...], as in Kept
    version: int


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
        keeps: bool = False,
        tier: HostTier | None = None,
    ) -> None:
        """``arguments`` are the keywords ``table`` was built with. With ``followed=False`` the host keeps out of
        it: only ``table`` and ``clear`` are for use. ``freshness`` says which entries may still be served. ``keeps``:
        the last feature stays as it came, for :meth:`recall`; only where nobody but autograd's users writes to it.
        ``tier`` is the one behind ``table``."""
        self._table = table
        self.tier = tier
        self.freshness = freshness
        same = table.options.feature_dtype is table.options.answer_dtype  # what is stored is what came
        self.keeps = keeps and same and freshness is None and table.device.type == "cpu"
        self._kept: Kept | None = None
        self._only: tuple[float, ...] | None = None  # where the one entry lies that there can be
        self._shared = False  # whether others have the table, and may write to it
        self._known = (-1, -1)  # then, the table's stage at which these two hold
        self._held: Held | None = None
        self._passed = 0  # items that were held after the last append, and whose place the next took
        self._filing = threading.RLock()
        self._cell_sizes = [float(grid.timestep) for grid in table.options.grids]
        self.appended = 0  # items so far, and so the next serial
        self._copies = copies
        self._index: HostIndex | None = None if tier is None else tier.index
        if tier is None and followed and table.device.type != "cpu":
            if arguments["min_similarity"] is None:
                self._index = HostIndex(table.capacity, arguments)
            elif copies.strict:
                expected = "None with strict=True: whether an item hits would depend on features on the GPU"
                fail(ValueError, "min_similarity", expected, arguments["min_similarity"], "pass strict=False")

    @property
    def table(self) -> HashTable:
        """The table, with all that was held in it."""
        self.settle()
        return self._table

    def hand_out(self) -> HashTable:
        """The table, for others to keep: nothing is held back from it any more."""
        with self._filing:
            self._shared = True
            return self.table

    @property
    def nbytes(self) -> int:
        """Of the table."""
        return self._table.nbytes

    @property
    def rejected(self) -> int:
        """Of the table's statistics. A CUDA table synchronises."""
        return self._table.stats().rejected

    def count_rejected(self) -> Tensor:
        """The same on the device, see :meth:`HashTable.count_rejected`. What is held is finite."""
        return self._table.count_rejected()

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

    def recall(self, key: Sequence[float], latents: Tensor) -> Tensor | None:
        """The feature ``[G, ...]`` that :meth:`query` would copy for one item, as it came to :meth:`append`: that of
        the item's only candidate, whose weight is 1. None where there is none, or the table must be asked.

        Nothing is copied, and the table does not count it as a query. ``key``: the item's, as numbers. ``latents``: the
        item's, or what holds them.
        """
        kept, self._kept = self._kept, None  # what is not found is not needed again: its memory is free for the next
        if kept is None or kept.feature._version != kept.version or not self._is_as_known():
            return None
        # Rule 10: a latent that is not finite finds nothing. A sum beyond the type's range says no too, and is asked.
        if self._place(key) != kept.place or not math.isfinite(latents.sum().item()):
            return None
        self._kept = kept
        return kept.feature

    def holds_nothing_for(self, key: Sequence[float]) -> bool:
        """Whether one item is sure to miss, without asking: there is one entry, and it lies at another time."""
        if self._only is None or len(self._cell_sizes) > 1 or not self._is_as_known():
            return False
        *pose, cell = self._place(key)
        return tuple(pose) == self._only[:3] and cell != self._only[3]

    def hold(self, key: Sequence[float], latents: Tensor, feature: Tensor) -> bool:
        """Takes one item as :meth:`append` would, without a copy of its feature: that is written to the table when
        somebody asks for what :meth:`recall` does not tell. Where another item takes its place before that, only its
        serial is left, as in the table: in one slot nobody was its candidate (rules 5 and 7).

        Nobody may write to ``feature`` meanwhile; if somebody does, the item is rejected, and a look-up misses.

        Args:
            key: as for :meth:`recall`.
            latents: ``[1, *latent_shape]``, copied.
            feature: ``[G, ...]``.

        Returns:
            False, with nothing done, where the item must be appended.
        """
        fits = self.keeps and self.tier is None and self._table.capacity == 1
        if not fits or feature.dtype is not self._table.options.feature_dtype or feature.is_inference():
            return False
        own = latents.to(torch.float32, copy=True)
        if not math.isfinite((feature.sum(dtype=torch.float32) + own.sum()).item()):  # or too large to tell
            return False
        with self._filing:
            if self._shared:
                return False
            self._passed += self._held is not None
            self._held = Held(key, own, feature, feature._version)
            self._only = self._place(key)
            self._kept = Kept(self._only, feature, feature._version)
            self.appended += 1
        return True

    def settle(self) -> None:
        """Writes to the table what is held."""
        with self._filing:
            held, self._held = self._held, None
            if held is None:
                return
            self._table._pass_over(self._passed)
            self._passed = 0
            keys, feature = torch.tensor([held.key], dtype=torch.float32, device="cpu"), held.feature[None]
            if held.feature._version != held.version:
                feature = torch.full_like(feature, math.nan)
            self.appended -= 1  # was counted when it came
            self.append(keys, held.latents, feature)

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
        if self.keeps and self.tier is None:
            self._keep(keys, serials.tolist(), features)
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

    def _keep(self, keys: Tensor, serials: list[int], features: Tensor) -> None:
        self._kept = self._only = None
        if len(serials) != 1 or serials[0] < 0:
            return
        self._known = self._table._stage()
        place = self._place(keys[0].tolist())
        if self.table.capacity == 1:
            self._only = place
        elif {serial for serial in self.table.lookup(keys).flatten().tolist() if serial >= 0} != set(serials):
            return
        # Under inference mode nobody would see that it is written to, as FreeU's tail does.
        if features.dtype is self.table.options.feature_dtype and not features.is_inference():
            self._kept = Kept(place, features[0], features._version)

    def _place(self, key: Sequence[float]) -> tuple[float, ...]:
        """Of one item: its pose, and its cell of each grid in time as the table computes it (rule 1). Equal for two
        items only if they are in the same cells."""
        *pose, timestep = key
        return *pose, *[_cell(timestep, size) for size in self._cell_sizes]

    def _is_as_known(self) -> bool:
        """Whether nobody else wrote to the table since the last item."""
        return not self._shared or self._table._stage() == self._known

    def clear(self) -> None:
        """Empties the table, and the tier behind it."""
        with self._filing:
            self._kept = self._only = self._held = None
            self._passed = 0
            self.appended = 0
            if self.tier is not None:
                self.tier.clear()
                return
            self._table.clear()
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


def _cell(timestep: float, size: float) -> float:
    """floor(timestep / size) in float32."""
    if 0 <= timestep < _WHOLE and size < _WHOLE and timestep.is_integer() and size.is_integer():
        return timestep // size  # a float32 quotient of such numbers is whole only where the exact one is
    return float(np.floor(np.float32(timestep) / np.float32(size)))
