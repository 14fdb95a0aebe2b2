"""One table per condition, within one memory budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from .checks import QUANTISED_DTYPES
from .config import Hash3DConfig
from .freshness import Freshness
from .host_tier import FrontTable, HostTier
from .host_tier.front import divide, host_capacity
from .options import TableOptions
from .poses import HostCopies
from .stats import HostTierStats
from .table import HashTable
from .tracked import TrackedTable


class TableStore:
    """Keeps at most ``max_conditions`` tables of equal size. A condition that is new takes the table of the one not
    used for longest, emptied: an entry is never seen under another condition than its own.

    Tables are allocated when first needed and kept, so that memory stays within the budget from then on.
    """

    def __init__(
        self,
        config: Hash3DConfig,
        feature_shape: Sequence[int],
        latent_shape: Sequence[int],
        feature_dtype: torch.dtype,
        device: torch.device,
        copies: HostCopies,
        followed: bool = True,
    ) -> None:
        """``followed``: whether the host is to know which queries on a GPU hit; see :class:`TrackedTable`."""
        self._arguments = config.table_arguments(feature_dtype, device)
        self.feature_shape = tuple(feature_shape)
        stored = self._arguments["feature_dtype"]
        self.answer_dtype: torch.dtype = torch.float16 if stored in QUANTISED_DTYPES else stored
        self.device = device
        self._copies = copies
        self._followed = followed
        self._limits = config.max_age, config.max_change
        self._host_budget = config.host_share()
        # A sampler's next step asks for the last feature. Compiled parts may hand out memory that they write to again.
        self._keeps = config.interval is not None and config.compile is False
        self._latent_shape = tuple(latent_shape)
        self._limit = config.max_conditions
        self._tables: OrderedDict[Hashable, TrackedTable] = OrderedDict()  # least recently used first
        self._rejected: Tensor | int = 0  # by tables since emptied; on their device, so that nothing waits

    def find(self, condition: Hashable) -> TrackedTable | None:
        """The table of ``condition``, or None when it has none."""
        table = self._tables.get(condition)
        if table is not None:
            self._tables.move_to_end(condition)
        return table

    def get(self, condition: Hashable) -> TrackedTable:
        """The table of ``condition``, an empty one when it has had none."""
        table = self.find(condition)
        if table is None:
            if len(self._tables) < self._limit:
                table = self._build()
            else:
                _, table = self._tables.popitem(last=False)
                self._empty(table)
            self._tables[condition] = table
        return table

    @property
    def current(self) -> HashTable | None:
        """The table used last."""
        last = next(reversed(self._tables.values()), None)
        return None if last is None else last.hand_out()

    @property
    def tables(self) -> list[HashTable]:
        """Those of all conditions, least recently used first."""
        return [table.hand_out() for table in self._tables.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(table.nbytes for table in self._tables.values())

    def host_entries(self, options: TableOptions) -> int | None:
        """Entries that the tier behind a table of these options holds; None where there is none."""
        if self._host_budget is None:
            return None
        front, _ = divide(options, options.resolve_capacity())
        return host_capacity(options, front, self._host_budget)

    @property
    def host_tier(self) -> HostTierStats | None:
        """What the tiers behind the tables hold and did; None where there are none."""
        if self._host_budget is None:
            return None
        return sum((table.tier.stats for table in self._tables.values() if table.tier), HostTierStats())

    @property
    def rejected(self) -> int:
        """Items rejected by any table, also before it was emptied."""
        return int(self._rejected) + sum(table.rejected for table in self._tables.values())

    def clear(self) -> None:
        """Empties every table; ``rejected`` stays."""
        for table in self._tables.values():
            self._empty(table)

    def prefetch(self, condition: Hashable, keys: Tensor) -> None:
        """Has the tier of the table that was used last under a ``condition`` of the user's own prepare for ``keys``."""
        for name, table in reversed(self._tables.items()):
            if table.tier is not None and isinstance(name, tuple) and name[0] == condition:
                table.tier.prefetch(keys)
                return

    def _build(self) -> TrackedTable:
        shapes, arguments, tier = (self.feature_shape, self._latent_shape), self._arguments, None
        with torch.inference_mode(False):  # or it could not be written to outside inference mode
            if self._host_budget is None:
                table = HashTable(*shapes, **arguments)
            else:
                table = FrontTable(*shapes, **arguments)
                tier = HostTier(table, arguments, self._host_budget)
            gated = any(limit is not None for limit in self._limits)
            freshness = Freshness((tier or table).capacity, *self._limits) if gated else None
            return TrackedTable(table, arguments, self._copies, self._followed, freshness, self._keeps, tier)

    def _empty(self, table: TrackedTable) -> None:
        self._rejected = self._rejected + table.count_rejected()
        table.clear()
