"""What a table answers: the result of a query, and its counters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class QueryResult:
    """What :meth:`HashTable.query` found for ``B`` items; every tensor is on the table's device.

    Attributes:
        features: ``[B, *feature_shape]`` in the table's ``feature_dtype``, float16 where that is one of 8 bits: the
            weighted sum of the candidates' features (Eq. 7), or the caller's ``out``. A row that misses is zero, and
            untouched in ``out``.
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


class PackedResult(QueryResult):
    """A :class:`QueryResult` whose answers lie in one piece of memory and become tensors when asked for.

    Making four tensors takes longer than looking up where a feature is, and most callers look at one of them.

    Args:
        features: as in QueryResult.
        memory: uint8, of :meth:`size` bytes.
        rows, queue: B and Q.
    """

    _memory: Tensor
    _rows: int
    _queue: int

    def __init__(self, features: Tensor, memory: Tensor, rows: int, queue: int) -> None:
        own = self.__dict__
        own["features"], own["_memory"], own["_rows"], own["_queue"] = features, memory, rows, queue

    @staticmethod
    def size(rows: int, queue: int) -> int:
        """Bytes of B items' answers."""
        return rows * (12 * queue + 5)

    @staticmethod
    def addresses(memory: Tensor, rows: int, queue: int) -> tuple[int, int, int, int]:
        """Where hit, grid, serials and weights lie; the widest numbers come first, so that all are aligned."""
        serials = memory.data_ptr()
        weights = serials + 8 * rows * queue
        grid = weights + 4 * rows * queue
        return grid + 4 * rows, grid, serials, weights

    @cached_property
    def serials(self) -> Tensor:
        """int64 ``[B, Q]``."""
        return self._part(0, 8 * self._queue, torch.int64).view(self._rows, self._queue)

    @cached_property
    def weights(self) -> Tensor:
        """float32 ``[B, Q]``."""
        return self._part(8 * self._queue, 4 * self._queue, torch.float32).view(self._rows, self._queue)

    @cached_property
    def grid(self) -> Tensor:
        """int32 ``[B]``."""
        return self._part(12 * self._queue, 4, torch.int32)

    @cached_property
    def hit(self) -> Tensor:
        """bool ``[B]``."""
        return self._part(12 * self._queue + 4, 1, torch.bool)

    def _part(self, before: int, width: int, dtype: torch.dtype) -> Tensor:
        """The part behind ``before`` bytes per item, ``width`` bytes per item."""
        return self._memory[before * self._rows : (before + width) * self._rows].view(dtype)


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
