"""What became of the views of a run, step by step, on this process and on the ranks that share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hash3d_cuda.sds.timing import COUNTS, TimeSplit

if TYPE_CHECKING:
    from hash3d_cuda.distributed import Ranks


class Tally:
    """Files hits, misses and bypasses in a run's log.

    Args:
        caches: of this process; their counters are host integers.
        time: whose log is filled, and which times the tables.
        ranks: those that share the run; None for this process alone.

    Attributes:
        served: views by what became of them, of all ranks.
    """

    def __init__(self, caches: Sequence[Any], time: TimeSplit, ranks: Ranks | None) -> None:
        self._caches, self._time, self._ranks = caches, time, ranks
        self.served = dict.fromkeys(COUNTS, 0)
        self._own = dict.fromkeys(COUNTS, 0)  # by this process, so far
        self._watched: list[Any] = []

    def count(self, row: int, items: int) -> None:
        """Files what the caches did in the step of ``row``; without one its ``items`` are bypasses."""
        if not self._caches:
            self._file({**self._own, "bypasses": self._own["bypasses"] + items}, row)
            return
        self._file(self._told(), row)
        if self._time.log.late:
            return  # its look-ups are nodes of a graph, and nothing that a host could time
        for table in (table for cache in self._caches for table in cache.tables):
            if not any(table is known for known in self._watched):
                self._watched.append(table)
                self._time.watch_table(table)

    def settle(self) -> None:
        """Waits for the device where its counts arrive late."""
        log = self._time.log
        if log.late and self._caches and log.rows:
            stats = [cache.stats() for cache in self._caches]
            self._file({name: sum(getattr(one, name) for one in stats) for name in COUNTS}, len(log.rows) - 1)

    def resume(self, served: dict[str, int]) -> None:
        """Goes on from what was filed; the caches have been loaded."""
        self.served = served
        self._own = self._told() if self._caches else self._own

    def _told(self) -> dict[str, int]:
        served = [cache.served() for cache in self._caches]
        return {name: sum(counts[name] for counts in served) for name in COUNTS}

    def _file(self, served: dict[str, int], row: int) -> None:
        """Files by how much ``served``, this process's counts so far, has grown, and the other ranks' theirs."""
        new = [served[name] - self._own[name] for name in COUNTS]
        self._own = served
        for name, amount in zip(COUNTS, new if self._ranks is None else self._ranks.total(new), strict=True):
            self.served[name] += amount
            self._time.log.add(row, name, amount)
