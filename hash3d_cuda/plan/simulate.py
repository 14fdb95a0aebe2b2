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
from hash3d_cuda.control import EtaControl
from hash3d_cuda.freshness import Freshness
from hash3d_cuda.keys import PAPER_GRIDS, Grid
from hash3d_cuda.plan.ranges import as_keys
from hash3d_cuda.table import HashTable

BYPASS, MISS = -2, -1
LOOKS = 40  # times that the coverage is looked at during a run
LOOK_VIEWS = 400  # views that are looked up for it


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
        copied: such entries, each once in a step.
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
    front: int | None = None,
    seed: int = 0,
    coverage: bool = True,
    timestep_first: bool = False,
    azimuth_period: float | None = 360.0,
    max_age: int | None = None,
    target_x: float | None = None,
    audit: float | None = None,
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
        front: with a host tier, how many of them, the newest, are on the device. All copies are taken to come in time;
            the two tiers are then one table.
        seed: of the coin, as :class:`hash3d_cuda.Hash3DConfig` has it.
        coverage: False saves the time of looking at it.
        timestep_first: hash the key as (timestep, elevation, azimuth, radius), the order of the paper's released code.
            Which cells there are does not depend on it, which of them share a bucket does.
        max_age, target_x, audit: as :class:`hash3d_cuda.Hash3DConfig` has them, one forward per step.
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
    eta = check_real("eta", eta, 0.0, 1.0)
    control = EtaControl(eta, seed, target_x=target_x, audit=audit)
    run = _Run(table, keys, slots if front is None else front, max_age)
    looks = np.empty(0, dtype=np.int64)
    if coverage:
        looks = np.unique(np.linspace(0, steps - 1, LOOKS).astype(np.int64))
    seen = run.through(random.Random(seed), control, looks.tolist())
    kept = run.stored, len(table), run.from_host, run.copied
    return Simulation(run.grid, looks, np.array(seen), len(table.options.grids), *kept)


def _timestep_first(keys: Tensor, grids: Sequence[Grid], period: float | None) -> tuple[Tensor, list[Grid], None]:
    """Keys and grids in the released code's order. The table would take the elevation for the azimuth, so the period
    is applied here."""
    elevation, azimuth, radius, timestep = keys.unbind(-1)
    if period is not None:
        azimuth = azimuth.remainder(period)
    sizes = [grid.sizes for grid in map(_as_grid, grids)]
    return torch.stack([timestep, elevation, azimuth, radius], -1), [Grid(s[3], s[0], s[1], s[2]) for s in sizes], None


def _new_poses(keys: Tensor) -> Tensor:
    """Up to ``LOOK_VIEWS`` keys with poses as in ``keys`` [N, 4] but of no view among them: its elevation from one, its
    azimuth from another, its radius from a third. A view of the run itself would find itself."""
    picked = keys[torch.linspace(0, len(keys) - 1, min(LOOK_VIEWS, len(keys))).long()]
    third = len(picked) // 3
    shifts = (0, third, 2 * third, 0)
    return torch.stack([picked[:, column].roll(shift) for column, shift in enumerate(shifts)], dim=1)


def _as_grid(grid: Grid | Sequence[float]) -> Grid:
    return grid if isinstance(grid, Grid) else Grid(*grid)


class _Run:
    """A table on its way through the steps."""

    def __init__(self, table: HashTable, keys: Tensor, front: int, max_age: int | None = None):
        self.table, self.keys, self.front = table, keys, front
        self.from_host = self.copied = 0
        self._freshness = None if max_age is None else Freshness(table.capacity, max_age, None)
        self._forward = 0
        self.grid = np.full(keys.shape[:2], BYPASS, dtype=np.int8)
        self.stored = 0
        self._poses = _new_poses(keys.flatten(0, 1))
        self._near = max(len(keys) // 100, 1)  # steps whose timesteps are like one another's
        self._blank = torch.ones(1, 1)

    def through(self, coin: random.Random, control: EtaControl, looks: Sequence[int]) -> list[float]:
        """Takes all steps; returns the coverage before each step of ``looks``."""
        seen = []
        begin = 0  # of the steps that are not yet stored: bypasses in a row go in as one batch, which is the same
        stops = set(looks)
        for step in range(len(self.keys)):
            audited = control.begin(step + 1)
            tries = coin.random() < control.eta
            if step in stops or (tries and not audited):
                self._append(begin, step)
                begin = step
            self._forward = step + 1
            if step in stops:
                seen.append(self._coverage(step))
            if audited:
                self.grid[step] = MISS if tries else BYPASS  # all are computed
            elif tries:
                self._try(step)
                begin = step + 1
            control.observe(int((self.grid[step] >= 0).sum()), self.grid.shape[1])
        self._append(begin, len(self.keys))
        return seen

    def _try(self, step: int) -> None:
        candidates = self.table.lookup(self.keys[step])
        self.grid[step] = served = self._serving(candidates)
        found = candidates.numpy()
        away = (found >= 0) & (found < self.stored - self.front) & (served != MISS)[:, None, None]
        self.from_host += int(away.any(axis=(1, 2)).sum())
        self.copied += len(np.unique(found[away]))
        self._append(step, step + 1, served == MISS)

    def _serving(self, candidates: Tensor) -> np.ndarray:
        """The finest grid with a candidate for each key, or MISS: int64 [N] from what a look-up found, [N, M, Q]."""
        held = candidates[:, :, 0].numpy() >= 0
        served = np.where(held.any(axis=1), held.argmax(axis=1), MISS)
        if self._freshness is None:
            return served
        return np.where(self._freshness.passing(candidates, self._forward, None).numpy(), served, MISS)

    def _coverage(self, step: int) -> float:
        """The share of new views, with the timesteps of the steps about this one, that have a candidate."""
        first = min(max(step - self._near // 2, 0), len(self.keys) - self._near)
        timesteps = self.keys[first : first + self._near, :, 3].flatten()
        views = self._poses.clone()
        views[:, 3] = timesteps[torch.arange(len(views)) % len(timesteps)]
        return float((self._serving(self.table.lookup(views)) >= 0).mean())

    def _append(self, begin: int, end: int, chosen: np.ndarray | None = None) -> None:
        """Stores the views of steps ``begin`` to ``end``, of a single one those that are ``chosen``."""
        keys = self.keys[begin:end].flatten(0, 1)
        keys = keys if chosen is None else keys[torch.from_numpy(chosen)]
        if not len(keys):
            return
        blank = self._blank.expand(len(keys), 1)
        serials = self.table.append(keys, blank, blank).tolist()
        self.stored += len(keys)
        if self._freshness is not None:
            each = len(serials) // (end - begin)
            for step in range(begin, end):
                first = (step - begin) * each
                self._freshness.note(serials[first : first + each], step + 1, None)
