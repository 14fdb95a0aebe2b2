"""A run of the cache without a U-Net: the real table, asked and filled as the hook does it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hash3d_cuda.checks import check_int, check_real, fail
from hash3d_cuda.control import EtaControl
from hash3d_cuda.freshness import Freshness
from hash3d_cuda.host_tier.front import slots_for
from hash3d_cuda.keys import PAPER_GRIDS, Grid
from hash3d_cuda.plan.coming_back import ComingBack
from hash3d_cuda.plan.ranges import as_keys
from hash3d_cuda.plan.setting import check_policies
from hash3d_cuda.plan.simulation import BYPASS, MISS, Simulation
from hash3d_cuda.table import HashTable

LOOKS = 40  # times that the coverage is looked at during a run
LOOK_VIEWS = 400  # views that are looked up for it


def simulate(
    keys: Tensor,
    eta: float,
    *,
    grids: Sequence[Grid] = PAPER_GRIDS,
    capacity: int | None = None,
    front: int | None = None,
    landing: int | None = None,
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
        landing: slots on the device for entries that come back; None: as many as a tier has beside ``front``.
        seed: of the coin, as :class:`hash3d_cuda.Hash3DConfig` has it.
        coverage: False saves the time of looking at it.
        timestep_first: hash the key as (timestep, elevation, azimuth, radius), the order of the paper's released code.
            Which cells there are does not depend on it, which of them share a bucket does.
        max_age, target_x, audit: as :class:`hash3d_cuda.Hash3DConfig` has them, one forward per step.
        azimuth_period, **table_options: ``num_buckets``, ``queue_length``, ``match`` and the period of
            :class:`hash3d_cuda.HashTable`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    keys = as_keys(keys)
    eta = check_real("eta", eta, 0.0, 1.0)
    check_policies(max_age, target_x, audit)
    if timestep_first:
        keys, grids, azimuth_period = _timestep_first(keys, grids, azimuth_period)
    steps, batch = keys.shape[:2]
    views = steps * batch
    slots = views if capacity is None else min(check_int("capacity", capacity, 1), views)
    table = HashTable(
        (1,),
        (1,),
        grids=grids,
        capacity=slots,
        feature_dtype=torch.float32,
        azimuth_period=azimuth_period,
        **table_options,
    )
    control = EtaControl(eta, check_int("seed", seed, 0), target_x=target_x, audit=audit)
    run = _Run(table, keys, _coming_back(table, front, landing), max_age)
    looks = np.empty(0, dtype=np.int64)
    if coverage:
        looks = np.unique(np.linspace(0, steps - 1, LOOKS).astype(np.int64))
    seen = run.through(random.Random(seed), control, looks.tolist())
    kept = run.stored, len(table), run.from_host, 0 if run.back is None else run.back.copied
    return Simulation(run.grid, looks, np.array(seen), len(table.options.grids), *kept)


def _coming_back(table: HashTable, front: int | None, landing: int | None) -> ComingBack | None:
    """What a host tier copies; None without one."""
    if front is None:
        if landing is not None:
            fail(ValueError, "landing", "None without front: there is no host tier", landing, "give front too")
        return None
    front = check_int("front", front, 1)
    spare = slots_for(table.options, front) - front
    return ComingBack(front, spare if landing is None else check_int("landing", landing, 1))


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

    def __init__(self, table: HashTable, keys: Tensor, back: ComingBack | None, max_age: int | None = None):
        self.table, self.keys, self.back = table, keys, back
        self.from_host = 0
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
            looks_up = self.back is not None if audited else tries
            if step in stops or looks_up:
                self._append(begin, step)
                begin = step
            self._forward = step + 1
            if step in stops:
                seen.append(self._coverage(step))
            if audited:
                self.grid[step] = MISS if tries else BYPASS  # all are computed
                if self.back is not None:  # what would be served comes back all the same
                    self._look_up(step, tries)
            elif tries:
                self._try(step)
                begin = step + 1
            control.observe(int((self.grid[step] >= 0).sum()), self.grid.shape[1])
        self._append(begin, len(self.keys))
        return seen

    def _try(self, step: int) -> None:
        self.grid[step], away = self._look_up(step, hinted=True)
        self.from_host += away
        self._append(step, step + 1, self.grid[step] == MISS)

    def _look_up(self, step: int, hinted: bool) -> tuple[np.ndarray, int]:
        """What would serve each view of a step, and how many of those need an entry that only the host has."""
        candidates = self.table.lookup(self.keys[step])
        served = self._serving(candidates)
        if self.back is None:
            return served, 0
        return served, self.back.serve(candidates.numpy(), served != MISS, self.stored, hinted)

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
