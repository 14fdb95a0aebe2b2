"""What a simulated run did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BYPASS, MISS = -2, -1


@dataclass(frozen=True)
class Simulation:
    """What became of every view.

    Attributes:
        grid: int8 ``[steps, B]``: the grid that served the view, ``MISS``, or ``BYPASS``.
        looks: int64 ``[L]``, the steps at which the coverage was looked at.
        coverage: float64 ``[L]``, the share of such views as the run asks for that had a candidate then.
        grids: how many grids there were.
        stored: entries appended in all.
        live: entries left at the end.
        from_host: hits that wanted an entry which only the host tier had.
        copied: how often such an entry was copied to the device: not while it lies there in a slot for what comes back.
    """

    grid: np.ndarray
    looks: np.ndarray
    coverage: np.ndarray
    grids: int
    stored: int
    live: int
    from_host: int = 0
    copied: int = 0

    @property
    def hits(self) -> int:
        """Views served from the table."""
        return int((self.grid >= 0).sum())

    @property
    def misses(self) -> int:
        """Views for which a retrieval found nothing."""
        return int((self.grid == MISS).sum())

    @property
    def bypasses(self) -> int:
        """Views for which none was tried."""
        return int((self.grid == BYPASS).sum())

    @property
    def tried(self) -> int:
        """Views for which a retrieval was tried."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """hits / (hits + misses), 0 when no retrieval was tried."""
        return self.hits / self.tried if self.tried else 0.0

    @property
    def x(self) -> float:
        """Share of all views that the table serves."""
        return self.hits / self.grid.size

    @property
    def by_grid(self) -> list[float]:
        """The hit rate's parts by the grid that served, finest first; their sum is the hit rate."""
        tried = max(self.tried, 1)
        return [int((self.grid == index).sum()) / tried for index in range(self.grids)]

    @property
    def all_hit(self) -> float:
        """Of the steps at which a retrieval was tried, the share with a hit for every view."""
        tried = self.grid[self.grid[:, 0] != BYPASS]
        return float((tried >= 0).all(axis=1).mean()) if len(tried) else 0.0
