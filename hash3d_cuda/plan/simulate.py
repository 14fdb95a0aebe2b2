"""A run of the cache without a U-Net: the real table, asked and filled as the hook does it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hash3d_cuda.checks import check_real
from hash3d_cuda.keys import PAPER_GRIDS, Grid
from hash3d_cuda.plan.ranges import as_keys
from hash3d_cuda.table import HashTable

BYPASS, MISS = -2, -1
LOOKS = 40  # times that the coverage is looked at during a run
LOOK_VIEWS = 400  # views of the steps to come that are looked up for it


@dataclass(frozen=True)
class Simulation:
    """What became of every view.

    Attributes:
        grid: int8 ``[steps, B]``: the grid that served the view, ``MISS``, or ``BYPASS``.
        looks: int64 ``[L]``, the steps at which the coverage was looked at.
        coverage: float64 ``[L]``, the share of the views to come that had a candidate then.
        grids: how many grids there were.
        stored: entries appended in all.
        live: entries left at the end.
    """

    grid: np.ndarray
    looks: np.ndarray
    coverage: np.ndarray
    grids: int
    stored: int
    live: int

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
    def hit_rate(self) -> float:
        """hits / (hits + misses), 0 when no retrieval was tried."""
        tried = self.hits + self.misses
        return self.hits / tried if tried else 0.0

    @property
    def x(self) -> float:
        """Share of all views that the table serves."""
        return self.hits / self.grid.size

    @property
    def by_grid(self) -> list[float]:
        """The hit rate's parts by the grid that served, finest first; their sum is the hit rate."""
        tried = max(self.hits + self.misses, 1)
        return [int((self.grid == index).sum()) / tried for index in range(self.grids)]

    @property
    def all_hit(self) -> float:
        """Of the steps at which a retrieval was tried, the share with a hit for every view."""
        tried = self.grid[self.grid[:, 0] != BYPASS]
        return float((tried >= 0).all(axis=1).mean()) if len(tried) else 0.0


def simulate(
    keys: Tensor,
    eta: float,
    *,
    grids: Sequence[Grid] = PAPER_GRIDS,
    capacity: int | None = None,
    seed: int = 0,
    coverage: bool = True,
    timestep_first: bool = False,
    azimuth_period: float | None = 360.0,
    **table_options: Any,
) -> Simulation:
    """Drives a table through a run.

    The features are single numbers, so every similarity (Eq. 9) is the same, and the choice of the grid (Eq. 8) is the
    tie's: the finest that has a candidate. Which view hits does not depend on it.

    Args:
        keys: float32 ``[steps, B, 4]``; see :class:`ViewRanges` and :func:`settings_keys`.
        eta: probability, per step, that a retrieval is tried.
        grids: the table's.
        capacity: slots; None holds every view of the run.
        seed: of the coin, as :class:`hash3d_cuda.Hash3DConfig` has it.
        coverage: False saves the time of looking at it.
        timestep_first: hash the key as (timestep, elevation, azimuth, radius), the order of the paper's released code.
            Which cells there are does not depend on it, which of them share a bucket does.
        azimuth_period, **table_options: ``num_buckets``, ``queue_length``, ``match`` and the period of
            :class:`hash3d_cuda.HashTable`.
    """
    keys = as_keys(keys)
    if timestep_first:
        keys, grids, azimuth_period = _timestep_first(keys, grids, azimuth_period)
    steps, batch = keys.shape[:2]
    views = steps * batch
    slots = views if capacity is None else min(capacity, views)
    table = HashTable(
        (1,),
        (1,),
        grids=grids,
        capacity=slots,
        feature_dtype=torch.float32,
        azimuth_period=azimuth_period,
        **table_options,
    )
    coin = random.Random(seed)
    eta = check_real("eta", eta, 0.0, 1.0)
    tried = [coin.random() < eta for _ in range(steps)]
    run = _Run(table, keys, len(table.options.grids))
    looks = np.empty(0, dtype=np.int64)
    if coverage:  # the last look has as many views before it as the others
        looks = np.unique(np.linspace(0, max(steps - run.ahead, 0), LOOKS).astype(np.int64))
    seen = run.through(tried, looks.tolist())
    return Simulation(run.grid, looks, np.array(seen), len(table.options.grids), run.stored, len(table))


def _timestep_first(keys: Tensor, grids: Sequence[Grid], period: float | None) -> tuple[Tensor, list[Grid], None]:
    """Keys and grids in the released code's order. The table would take the elevation for the azimuth, so the period
    is applied here."""
    elevation, azimuth, radius, timestep = keys.unbind(-1)
    if period is not None:
        azimuth = azimuth.remainder(period)
    sizes = [grid.sizes for grid in map(_as_grid, grids)]
    return torch.stack([timestep, elevation, azimuth, radius], -1), [Grid(s[3], s[0], s[1], s[2]) for s in sizes], None


def _as_grid(grid: Grid | Sequence[float]) -> Grid:
    return grid if isinstance(grid, Grid) else Grid(*grid)


class _Run:
    """A table on its way through the steps."""

    def __init__(self, table: HashTable, keys: Tensor, grids: int):
        self.table, self.keys = table, keys
        self.grid = np.full(keys.shape[:2], BYPASS, dtype=np.int8)
        self.stored = 0
        self.ahead = min(max(LOOK_VIEWS // keys.shape[1], 1), max(len(keys) // 10, 1))  # steps of a look
        self._blank = torch.ones(1, 1)

    def through(self, tried: Sequence[bool], looks: Sequence[int]) -> list[float]:
        """Takes all steps; returns the coverage before each step of ``looks``."""
        seen = []
        begin = 0  # of the steps that are not yet stored: bypasses in a row go in as one batch, which is the same
        stops = set(looks)
        for step, tries in enumerate(tried):
            if step in stops or tries:
                self._append(self.keys[begin:step].flatten(0, 1))
                begin = step
            if step in stops:
                seen.append(self._coverage(step))
            if tries:
                self._try(step)
                begin = step + 1
        self._append(self.keys[begin:].flatten(0, 1))
        return seen

    def _try(self, step: int) -> None:
        served = self._serving(self.keys[step])
        self.grid[step] = served
        self._append(self.keys[step][torch.from_numpy(served == MISS)])

    def _serving(self, keys: Tensor) -> np.ndarray:
        """The finest grid with a candidate for each of ``keys`` [N, 4], or MISS: int64 [N]."""
        found = self.table.lookup(keys)[:, :, 0].numpy() >= 0
        return np.where(found.any(axis=1), found.argmax(axis=1), MISS)

    def _coverage(self, step: int) -> float:
        return float((self._serving(self.keys[step : step + self.ahead].flatten(0, 1)) >= 0).mean())

    def _append(self, keys: Tensor) -> None:
        if len(keys):
            blank = self._blank.expand(len(keys), 1)
            self.table.append(keys, blank, blank)
            self.stored += len(keys)
