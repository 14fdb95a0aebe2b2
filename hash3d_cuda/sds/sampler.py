"""Which views and which noise levels each step looks at.

Everything is a pure function of (seed, step) and stays on the host: nothing here can synchronise a device, a
resumed run needs no saved random state, and two runs from one seed see the same views whatever their caches
do. That holds for the anchored sampler too: it knows by arithmetic which entries a table must hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hash3d_cuda.sds.anchors import AnchorPlan, anchor_place, inside_cell
from hash3d_cuda.sds.settings import GenerateSettings

POSES, NOISE, LIGHT, ANCHORS = 0, 1, 2, 3  # independent random streams of one step

RANDOM_SHADINGS, RANDOM_SHARES = ("albedo", "lambert", "textureless"), (0.25, 0.375, 0.375)
"""threestudio's diffuse_prob 0.75 and textureless_prob 0.5."""


@dataclass(frozen=True)
class StepViews:
    """The B views of one step: degrees, degrees, scene units, diffusion timesteps; lists of length B.

    Where ranks share a step they are a part of the ``whole`` step's, from its view number ``first`` on.
    """

    elevation: list[float]
    azimuth: list[float]
    radius: list[float]
    timestep: list[int]
    first: int = 0
    whole: StepViews | None = None


class ViewSampler:
    """Camera poses and timesteps of every step.

    Args:
        settings: seed, steps, views per step, schedule.
        elevation_range, radius_range: where the prior was trained, degrees and scene units.
        timesteps: length T of the prior's noise schedule.
    """

    def __init__(
        self,
        settings: GenerateSettings,
        elevation_range: tuple[float, float],
        radius_range: tuple[float, float],
        timesteps: int = 1000,
    ):
        self.settings, self.timesteps = settings, timesteps
        self.elevation_range, self.radius_range = elevation_range, radius_range

    def views(self, step: int) -> StepViews:
        """Poses and timesteps of a step. ``sampler="uniform"``: uniform poses; azimuth is stratified, one view per
        equal sector of the circle, turned by a random offset. ``"anchored"``: :mod:`hash3d_cuda.sds.anchors`."""
        rng = np.random.default_rng([self.settings.seed, step, POSES])
        batch = self.settings.views_per_step
        if self.settings.sampler == "anchored":
            return self._anchored(step, rng)
        elevation = rng.uniform(*self.elevation_range, batch)
        azimuth = (rng.uniform(0, 360) + (np.arange(batch) + rng.random(batch)) * (360 / batch)) % 360
        radius = rng.uniform(*self.radius_range, batch)
        return StepViews(elevation.tolist(), azimuth.tolist(), radius.tolist(), self._timesteps(step, rng))

    def noise_seed(self, step: int) -> int:
        """Seed of the step's noise generator."""
        return int(np.random.SeedSequence([self.settings.seed, step, NOISE]).generate_state(1, np.uint64)[0] >> 1)

    def shading(self, step: int, views: StepViews) -> tuple[str | None, list[list[float]] | None]:
        """How a step's views are lit: a shading of :mod:`hash3d_cuda.sds.scenes.shading` or None, and the directions
        to the lights, B of three numbers each: the camera's place moved at random (DreamFusion's appendix A.4)."""
        shading = self.settings.shading
        if shading == "albedo" or step < self.settings.shading_after * self.settings.steps:
            return None, None
        rng = np.random.default_rng([self.settings.seed, step, LIGHT])
        if shading == "random":
            shading = str(rng.choice(RANDOM_SHADINGS, p=RANDOM_SHARES))
        if shading == "albedo":
            return None, None
        up, around = np.radians(views.elevation), np.radians(views.azimuth)
        places = np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)], -1)
        places = places * np.asarray(views.radius)[:, None] + rng.standard_normal(places.shape)
        return shading, places.tolist()

    def _anchored(self, step: int, rng: np.random.Generator) -> StepViews:
        """Views inside the cells of their anchors."""
        settings, grid = self.settings, self.settings.grids[0]
        offset = np.random.default_rng([settings.seed, ANCHORS]).random(4)
        sizes = (grid.azimuth, grid.elevation, grid.radius, grid.timestep)
        low, high = self._timestep_range(step)
        ranges = ((0.0, 360.0), self.elevation_range, self.radius_range, (low, high))
        jitters = (settings.jitter,) * 3 + (1.0,)
        views = []
        for number, _ in self.plan.of_step(step):
            places, shares = anchor_place(number, offset), rng.random(4)
            views.append([
                inside_cell(first + place * (last - first), size, first, last, share, jitter)
                for (first, last), place, size, share, jitter in zip(
                    ranges, places.tolist(), sizes, shares.tolist(), jitters, strict=True
                )
            ])  # fmt: skip
        azimuth, elevation, radius, times = (list(values) for values in zip(*views, strict=True))
        if settings.schedule != "uniform":
            views_of_run = max(self.plan.views - settings.views_per_step, 1)
            reached = [min(self.plan.middle(number) / views_of_run, 1.0) for number, _ in self.plan.of_step(step)]
            return StepViews(elevation, azimuth, radius, [self._annealed(progress) for progress in reached])
        return StepViews(elevation, azimuth, radius, [min(max(math.floor(t), low), high) for t in times])

    @property
    def plan(self) -> AnchorPlan:
        """Which anchor each view looks at, with ``sampler="anchored"``."""
        settings = self.settings
        views = settings.steps * settings.views_per_step
        return AnchorPlan(
            views, settings.views_per_step, settings.reuse, settings.anchors, settings.fresh_power,
            settings.first_fresh, settings.fresh_until,
        )  # fmt: skip

    def _timestep_range(self, step: int) -> tuple[int, int]:
        """The lowest and the highest timestep of a step."""
        low, high = self._range(step / max(self.settings.steps - 1, 1))
        return round(low * (self.timesteps - 1)), round(high * (self.timesteps - 1))

    def _timesteps(self, step: int, rng: np.random.Generator) -> list[int]:
        settings = self.settings
        low, high = self._timestep_range(step)
        if settings.schedule == "uniform":
            return rng.integers(low, high + 1, settings.views_per_step).tolist()
        return [self._annealed(step / max(settings.steps - 1, 1))] * settings.views_per_step

    def _annealed(self, progress: float) -> int:
        """The timestep of the annealed schedule at a share of the run."""
        low, high = (round(share * (self.timesteps - 1)) for share in self._range(progress))
        return round(high + (low - high) * progress)

    def _range(self, progress: float) -> tuple[float, float]:
        """The lowest and the highest noise level, as shares, at a share of the run."""
        settings = self.settings
        if settings.t_move is None or settings.schedule != "uniform":
            return settings.t_low, settings.t_high
        high, low, start, end = settings.t_move
        moved = min(max((progress - start) / (end - start), 0.0), 1.0) if end > start else float(progress >= end)
        return settings.t_low + moved * (low - settings.t_low), settings.t_high + moved * (high - settings.t_high)
