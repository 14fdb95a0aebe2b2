"""Better settings under the same memory budget: a small search over eta, grids, position and buckets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.bounds import step_bound
from hash3d_cuda.checks import parse_bytes
from hash3d_cuda.plan.memory import table_memory
from hash3d_cuda.plan.plan import Plan
from hash3d_cuda.plan.setting import UNLIMITED, CacheSetting
from hash3d_cuda.plan.simulate import simulate
from hash3d_cuda.unet.configs import UNETS
from hash3d_cuda.unet.cost import unet_cost

ETAS = (0.1, 0.5, 0.9)
FEWER_BUCKETS = 10_007
LARGE_SHARE = 0.05  # of the budget, from which on the chains are worth saving at


@dataclass(frozen=True)
class Candidate:
    """One setting that was tried: its name for the grids, hit rate, x and bounds."""

    grids_name: str
    setting: CacheSetting
    hit_rate: float
    x: float
    unet_bound: float
    step_bound: float
    capacity: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "eta": self.setting.eta,
            "grids": self.grids_name,
            "position": self.setting.position,
            "num_buckets": self.setting.num_buckets,
            "capacity": self.capacity,
            "hit_rate": self.hit_rate,
            "x": self.x,
            "unet_bound": self.unet_bound,
            "step_bound": self.step_bound,
        }


def search(keys: Tensor, plan: Plan, feature_dtype: torch.dtype | None = None) -> list[Candidate]:
    """The largest step bound for each eta, etas rising; what reuse costs in quality is not predicted.

    Args:
        keys: float32 ``[steps, B, 4]``.
        plan: what was asked for; its own eta and grids are among those tried.
        feature_dtype: of the stored features.
    """
    found = (_best(keys, plan, eta, feature_dtype) for eta in sorted({*ETAS, plan.setting.eta}))
    return [best for best in found if best is not None]


def _best(keys: Tensor, plan: Plan, eta: float, feature_dtype: torch.dtype | None) -> Candidate | None:
    """Over positions, rising. A deeper cut costs more, so it must leave room for more entries; and when not even a hit
    for every retrieval would make it the best, no other can be."""
    best: Candidate | None = None
    room: dict[str, int] = {}
    views = keys.shape[0] * keys.shape[1]
    for position in range(1, UNETS[plan.unet].positions + 1):
        cost = unet_cost(plan.unet, positions=(position,))
        r = cost.r[position]
        if best is not None and step_bound(eta, r, plan.unet_share) <= best.step_bound:
            break
        for name, setting in _settings(replace(plan.setting, eta=eta, position=position)):
            try:
                memory = table_memory(setting, cost, views, feature_dtype)
            except ValueError:  # no room for one entry, or a host_budget for fewer entries than the device holds then
                continue
            capacity = min(memory.entries, views)
            if capacity <= room.get(f"{name} {setting.num_buckets}", 0):
                continue
            room[f"{name} {setting.num_buckets}"] = capacity
            run = simulate(keys, eta, capacity=capacity, seed=setting.seed, coverage=False, **setting.indexing)
            bounds = (step_bound(run.x, r, share) for share in (1.0, plan.unet_share))
            candidate = Candidate(name, setting, run.hit_rate, run.x, *bounds, capacity)
            if best is None or candidate.step_bound > best.step_bound:
                best = candidate
    return best


def _settings(asked: CacheSetting) -> Iterator[tuple[str, CacheSetting]]:
    """The grids and numbers of buckets that are tried, with the grids' name."""
    from hash3d_cuda.sds.settings import NAMED_GRIDS

    grids = dict(NAMED_GRIDS)
    if asked.grids not in grids.values():
        grids["given"] = asked.grids
    for name, sizes in grids.items():
        for buckets in sorted(_buckets(asked)):
            yield name, replace(asked, grids=sizes, num_buckets=buckets)


def _buckets(asked: CacheSetting) -> set[int]:
    """The number asked for, and fewer where the chains take a good part of the budget."""
    if asked.capacity is not None or asked.memory_budget == UNLIMITED:
        return {asked.num_buckets}
    chains = len(asked.grids) * asked.num_buckets * 8 * (1 + asked.queue_length)
    large = chains > LARGE_SHARE * parse_bytes("memory_budget", asked.memory_budget)
    return {asked.num_buckets, FEWER_BUCKETS} if large else {asked.num_buckets}
