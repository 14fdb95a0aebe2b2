"""Which views and which noise levels each step looks at.

Everything is a pure function of (seed, step) and stays on the host: nothing here can synchronise a device, a
resumed run needs no saved random state, and two runs from one seed see the same views whatever their caches
do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hash3d_cuda.sds.settings import GenerateSettings

POSES, NOISE = 0, 1  # independent random streams of one step


@dataclass(frozen=True)
class StepViews:
    """The B views of one step: degrees, degrees, scene units, diffusion timesteps; lists of length B."""

    elevation: list[float]
    azimuth: list[float]
    radius: list[float]
    timestep: list[int]


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
        """Uniform poses; azimuth is stratified, one view per equal sector of the circle, turned by a random
        offset."""
        rng = np.random.default_rng([self.settings.seed, step, POSES])
        batch = self.settings.views_per_step
        elevation = rng.uniform(*self.elevation_range, batch)
        azimuth = (rng.uniform(0, 360) + (np.arange(batch) + rng.random(batch)) * (360 / batch)) % 360
        radius = rng.uniform(*self.radius_range, batch)
        return StepViews(elevation.tolist(), azimuth.tolist(), radius.tolist(), self._timesteps(step, rng))

    def noise_seed(self, step: int) -> int:
        """Seed of the step's noise generator."""
        return int(np.random.SeedSequence([self.settings.seed, step, NOISE]).generate_state(1, np.uint64)[0] >> 1)

    def _timesteps(self, step: int, rng: np.random.Generator) -> list[int]:
        settings, last = self.settings, self.timesteps - 1
        low, high = round(settings.t_low * last), round(settings.t_high * last)
        if settings.schedule == "uniform":
            return rng.integers(low, high + 1, settings.views_per_step).tolist()
        progress = step / max(settings.steps - 1, 1)
        return [round(high + (low - high) * progress)] * settings.views_per_step
