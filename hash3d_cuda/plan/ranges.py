"""The keys that a run will ask for: from ranges of cameras and timesteps, or from the settings of a generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hash3d_cuda.checks import check_choice, check_int, check_real, fail
from hash3d_cuda.keys import make_keys

SCHEDULES = ("uniform", "annealed")
ELEVATION_LAWS = ("uniform", "half-sphere-uniform")
Bounds = tuple[float, float]
Moving = float | tuple[int, float, float, int]  # a number, or (first step, value, value, last step), linear between


@dataclass(frozen=True)
class ViewRanges:
    """Where a run's views come from. Everything is uniform and independent, except where said.

    Attributes:
        elevation, azimuth: degrees, (low, high).
        radius: scene units, (low, high).
        t_low, t_high: diffusion timesteps, each a number or, as threestudio writes what moves during a run,
            ``(first step, value, value, last step)``.
        schedule: ``"uniform"`` draws an integer between the two for every view, ``"annealed"`` goes from ``t_high`` to
            ``t_low`` over the run, the same for all views of a step.
        steps, views_per_step: iterations, and the items of the U-Net's batch.
        stratified: one view per equal sector of the azimuth's range, at a random place in it.
        elevation_law: ``"uniform"`` in degrees, or ``"half-sphere-uniform"``: every second step, by a coin, uniform on
            the sphere instead, as threestudio draws it.
    """

    elevation: Bounds = (-10.0, 45.0)
    azimuth: Bounds = (-180.0, 180.0)
    radius: Bounds = (1.5, 2.0)
    t_low: Moving = 20.0
    t_high: Moving = 980.0
    schedule: str = "uniform"
    steps: int = 10_000
    views_per_step: int = 1
    stratified: bool = False
    elevation_law: str = "uniform"

    def __post_init__(self) -> None:
        for name in ("elevation", "azimuth", "radius"):
            object.__setattr__(self, name, _check_bounds(name, getattr(self, name)))
        for name in ("t_low", "t_high"):
            object.__setattr__(self, name, _check_moving(name, getattr(self, name)))
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("elevation_law", self.elevation_law, ELEVATION_LAWS)
        check_int("steps", self.steps, 1, 10**7)
        check_int("views_per_step", self.views_per_step, 1, 4096)
        low, high = self._timestep_bounds()
        if (low > high).any():
            fail(ValueError, "t_low", f"at most t_high={self.t_high} at every step", self.t_low, "swap them")

    def keys(self, seed: int = 0) -> Tensor:
        """The run's keys, float32 ``[steps, B, 4]``; the same seed gives the same ones."""
        rng = np.random.default_rng(seed)
        shape = self.steps, self.views_per_step
        place = rng.random(shape)
        if self.stratified:
            place = (place + np.arange(self.views_per_step)) / self.views_per_step
        azimuth = self.azimuth[0] + place * (self.azimuth[1] - self.azimuth[0])
        pose = {"elevation": self._elevations(rng), "azimuth": azimuth, "radius": rng.uniform(*self.radius, shape)}
        flat = {name: values.ravel() for name, values in pose.items()}
        return make_keys(**flat, timestep=self._timesteps(rng).ravel()).view(*shape, 4)

    def _elevations(self, rng: np.random.Generator) -> np.ndarray:
        """Degrees, ``[steps, B]``."""
        shape = self.steps, self.views_per_step
        uniform = rng.uniform(*self.elevation, shape)
        if self.elevation_law == "uniform":
            return uniform
        # threestudio takes (90 + elevation) / 180 for the share of the sphere below it, so it clips nothing and yet
        # leaves the range a little: that is what its runs ask for.
        low, high = ((90 + bound) / 180 for bound in self.elevation)
        sphere = np.rad2deg(np.arcsin(2 * rng.uniform(low, high, shape) - 1))
        return np.where(rng.random((self.steps, 1)) < 0.5, uniform, sphere)

    def _timesteps(self, rng: np.random.Generator) -> np.ndarray:
        """Whole numbers, ``[steps, B]``."""
        shape = self.steps, self.views_per_step
        low, high = (np.rint(bound).astype(np.int64)[:, None] for bound in self._timestep_bounds())
        if self.schedule == "uniform":
            return rng.integers(np.broadcast_to(low, shape), high + 1)
        progress = np.arange(self.steps)[:, None] / max(self.steps - 1, 1)
        return np.broadcast_to(np.rint(high + (low - high) * progress), shape)

    def _timestep_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest timestep of every step, float64 ``[steps]`` each."""
        return _follow(self.t_low, self.steps), _follow(self.t_high, self.steps)


def settings_keys(
    settings: Any, elevation_range: Bounds | None = None, radius_range: Bounds | None = None, timesteps: int = 1000
) -> Tensor:
    """The keys that a generation with these settings asks for, to the bit: float32 ``[steps, B, 4]``.

    Args:
        settings: :class:`hash3d_cuda.sds.settings.GenerateSettings`.
        elevation_range, radius_range: of the prior, degrees and scene units; by default the shipped one's.
        timesteps: length of the prior's noise schedule.
    """
    from hash3d_cuda.prior.model import ELEVATION_RANGE, RADIUS_RANGE
    from hash3d_cuda.sds.sampler import ViewSampler

    sampler = ViewSampler(settings, elevation_range or ELEVATION_RANGE, radius_range or RADIUS_RANGE, timesteps)
    views = [sampler.views(step) for step in range(settings.steps)]
    named = {
        name: np.array([getattr(step, name) for step in views]).ravel()
        for name in ("elevation", "azimuth", "radius", "timestep")
    }
    return make_keys(**named).view(settings.steps, settings.views_per_step, 4)


def _follow(moving: Moving, steps: int) -> np.ndarray:
    """The value at every step, float64 ``[steps]``."""
    if not isinstance(moving, tuple):
        return np.full(steps, moving)
    first, start, end, last = moving
    return np.interp(np.arange(steps), [first, last], [start, end])


def _check_bounds(name: str, value: Any) -> Bounds:
    if isinstance(value, (str, Tensor)) or not isinstance(value, Sequence) or len(value) != 2:
        fail(TypeError, name, "two numbers, low and high", value, f"pass {name}=(low, high)")
    low, high = (check_real(name, number) for number in value)
    if low > high:
        fail(ValueError, name, "the low number first", value, "swap them")
    return low, high


def _check_moving(name: str, value: Any) -> Moving:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return check_real(name, value, 0.0, 1e6)
    if len(value) != 4 or not value[0] < value[3]:
        expected = "a timestep, or (first step, timestep, timestep, last step)"
        fail(ValueError, name, expected, value, "pass four numbers, the last step after the first")
    return (
        check_int(name, value[0], 0), check_real(name, value[1], 0.0), check_real(name, value[2], 0.0),
        check_int(name, value[3], 1),
    )  # fmt: skip


def as_keys(keys: Any) -> Tensor:
    """Checks keys of a run, float32 ``[steps, B, 4]`` on the host."""
    if not isinstance(keys, Tensor) or keys.dim() != 3 or keys.shape[-1] != 4 or keys.dtype != torch.float32:
        fail(TypeError, "keys", "a float32 tensor of shape [steps, B, 4]", keys, "build it with make_keys(...).view")
    return keys.cpu().contiguous()
