"""What a table answers: the result of a query, and its counters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class QueryResult:
    """What :meth:`HashTable.query` found for ``B`` items; every tensor is on the table's device.

    Attributes:
        features: ``[B, *feature_shape]`` in the table's ``feature_dtype``: the weighted sum of the candidates'
            features (Eq. 7), or the caller's ``out``. A row that misses is zero, and untouched in ``out``.
        hit: bool ``[B]``.
        grid: int32 ``[B]``, index of the grid used (Eq. 8), -1 on a miss.
        serials: int64 ``[B, Q]``, candidates of that grid, newest first, -1 for none.
        weights: float32 ``[B, Q]``, in the order of ``serials``, 0 for none.
    """

    features: Tensor
    hit: Tensor
    grid: Tensor
    serials: Tensor
    weights: Tensor


@dataclass(frozen=True)
class TableStats:
    """Counters since construction or the last ``clear()``.

    Attributes:
        appended: items handed to ``append``, rejected ones included; also the next serial.
        rejected: those of them that were not stored, because something in them was not finite.
        live: entries still in at least one chain.
        capacity: slots.
        nbytes: bytes the table holds, constant from construction on.
        queries: items handed to ``query``; ``hits`` and ``misses`` add up to it. ``lookup`` is not counted.
    """

    appended: int
    rejected: int
    live: int
    capacity: int
    nbytes: int
    queries: int
    hits: int
    misses: int

    @property
    def hit_rate(self) -> float:
        """``hits / queries``; 0.0 before the first query."""
        return self.hits / self.queries if self.queries else 0.0

    def __str__(self) -> str:
        return (
            f"{self.live} of {self.capacity} slots live ({self.nbytes / 2**20:.1f} MiB), "
            f"{self.appended} appended, {self.rejected} rejected, "
            f"{self.queries} queries: {self.hits} hits, {self.misses} misses ({self.hit_rate:.1%})"
        )
