"""The cache's own state in a checkpoint: its coin, its counters, its table.

The table's file says nothing of the condition that its entries belong to, which names things of one process
(weights by identity). A run asks for its one or two conditions in turn, so the tables go to the first that
ask after resuming, in order.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hash3d_cuda.poses import HostCopies
from hash3d_cuda.store import TableStore
from hash3d_cuda.tracked import TrackedTable

_FORMATS = {str(kind): kind for kind in (torch.contiguous_format, torch.channels_last)}


def cache_state(cache: Any) -> dict[str, Any]:
    """What of a ``Hash3DCache`` is not in its table, as JSON values."""
    cached = cache._cached
    version, numbers, gauss = cached._coin.getstate()
    return {
        "coin": [version, list(numbers), gauss],
        "counts": dict(cache._counts),
        "format": str(cached._format),
        "tables": len(tables_of(cache)),
    }


def tables_of(cache: Any) -> list[Any]:
    """The tables of a ``Hash3DCache``, one per condition, the one used last at the end."""
    store = cache._cached.store
    return [] if store is None else [tracked.table for tracked in store._tables.values()]


def restore_cache(cache: Any, state: Mapping[str, Any], tables: Sequence[Path]) -> None:
    """Makes a fresh ``Hash3DCache`` go on from :func:`cache_state` and the tables saved beside it.

    Raises:
        ValueError: the table's file is damaged.
    """
    from hash3d_cuda import HashTable

    cached = cache._cached
    version, numbers, gauss = state["coin"]
    cached._coin.setstate((version, tuple(numbers), gauss))
    cache._counts.update(state["counts"])
    if tables:
        loaded = [HashTable.load(table) for table in tables]
        cached.store = ResumedStore(cache.config, loaded, cached._copies)
        cached._dtype, cached._format = loaded[0].options.feature_dtype, _FORMATS[state["format"]]


class ResumedStore(TableStore):
    """A store whose first conditions find the tables that were loaded, in their order."""

    def __init__(self, config: Any, tables: Sequence[Any], copies: HostCopies):
        options = tables[0].options
        shapes = options.feature_shape, options.latent_shape
        super().__init__(config, *shapes, options.feature_dtype, options.device, copies)
        self._loaded = [TrackedTable(table, self._arguments, copies) for table in tables]
        for tracked, table in zip(self._loaded, tables, strict=True):
            if tracked._index is not None:
                state = table._state_dict()
                blank = torch.zeros(len(state["serials"]), 1)  # the host's index holds keys and chains alone
                tracked._index._table._load_state_dict({**state, "latents": blank, "features": blank})

    def find(self, condition: Hashable) -> Any:
        """The table of ``condition``; see :class:`TableStore`."""
        if self._loaded and condition not in self._tables:
            self._tables[condition] = self._loaded.pop(0)
        return super().find(condition)
