"""The cache's own state in a checkpoint: its coin, its counters, its table.

The table's file says nothing of the condition that its entries belong to, which names things of one process
(weights by identity). A run has one condition only, so the table goes to the first that asks after resuming.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
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
    }


def restore_cache(cache: Any, state: Mapping[str, Any], table: Path | None) -> None:
    """Makes a fresh ``Hash3DCache`` go on from :func:`cache_state` and the table saved beside it.

    Raises:
        ValueError: the table's file is damaged.
    """
    from hash3d_cuda import HashTable

    cached = cache._cached
    version, numbers, gauss = state["coin"]
    cached._coin.setstate((version, tuple(numbers), gauss))
    cache._counts.update(state["counts"])
    if table is not None:
        loaded = HashTable.load(table)
        cached.store = ResumedStore(cache.config, loaded, cached._copies)
        cached._dtype, cached._format = loaded.options.feature_dtype, _FORMATS[state["format"]]


class ResumedStore(TableStore):
    """A store whose first condition finds the table that was loaded."""

    def __init__(self, config: Any, table: Any, copies: HostCopies):
        options = table.options
        shapes = options.feature_shape, options.latent_shape
        super().__init__(config, *shapes, options.feature_dtype, options.device, copies)
        self._loaded: TrackedTable | None = TrackedTable(table, self._arguments, copies)
        if self._loaded._index is not None:
            state = table._state_dict()
            blank = torch.zeros(len(state["serials"]), 1)  # the host's index holds keys and chains alone
            self._loaded._index._table._load_state_dict({**state, "latents": blank, "features": blank})

    def find(self, condition: Hashable) -> Any:
        """The table of ``condition``; see :class:`TableStore`."""
        if self._loaded is not None:
            self._tables[condition], self._loaded = self._loaded, None
        return super().find(condition)
