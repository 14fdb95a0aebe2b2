"""What the cache will do for a run, before the run: hit rates, memory, and the largest speed-up."""

from __future__ import annotations

from hash3d_cuda.plan.plan import Plan, plan, plan_recipe
from hash3d_cuda.plan.presets import PRESET_UNETS, PRESETS, RELEASED_INDEXING, RELEASED_ORDER
from hash3d_cuda.plan.ranges import ViewRanges, settings_keys
from hash3d_cuda.plan.setting import CacheSetting
from hash3d_cuda.plan.simulate import simulate
from hash3d_cuda.plan.simulation import Simulation

__all__ = [
    "PRESETS",
    "PRESET_UNETS",
    "RELEASED_INDEXING",
    "RELEASED_ORDER",
    "CacheSetting",
    "Plan",
    "Simulation",
    "ViewRanges",
    "plan",
    "plan_recipe",
    "settings_keys",
    "simulate",
]
