"""The same run with other seeds: how far a hit rate is chance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hash3d_cuda.checks import check_int, fail
from hash3d_cuda.plan.ranges import ViewRanges, settings_keys
from hash3d_cuda.plan.simulate import simulate
from hash3d_cuda.plan.simulation import Simulation


@dataclass(frozen=True)
class Repeats:
    """Hit rates of several runs of one plan.

    Attributes:
        hits, tried: of all runs.
        rates: hit rate of every run that tried a retrieval; the others have none.
        x: share of all views that the table served, over all runs.
        idle: runs that tried no retrieval, as the coin falls where eta times the steps is small.
    """

    hits: int
    tried: int
    rates: tuple[float, ...]
    x: float
    idle: int = 0

    @property
    def runs(self) -> int:
        """How many there were."""
        return len(self.rates) + self.idle

    @property
    def hit_rate(self) -> float:
        """hits / tried of all runs, 0 when no retrieval was tried."""
        return self.hits / self.tried if self.tried else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rates = {"hit_rate": self.hit_rate, "hit_rates": list(self.rates)}
        return {"runs": self.runs, "runs_that_tried_none": self.idle, **rates, "x": self.x}


def repeat(
    views: Any, first: Simulation, runs: int, *, seed: int, setting: Any, capacity: int, **ranges: Any
) -> Repeats | None:
    """``first`` and ``runs - 1`` more, each with views and coin of the next seed; None for one run.

    Args:
        views: a :class:`ViewRanges` or settings; fixed keys have no seed.
        first: the run of the plan itself.
        runs: how many in all.
        seed: of the views of the first, where ``views`` is a :class:`ViewRanges`.
        setting: a :class:`hash3d_cuda.plan.CacheSetting`.
        capacity: slots of the table.
        **ranges: as for :func:`settings_keys`.

    Raises:
        ValueError, TypeError: ``runs``.
    """
    if check_int("runs", runs, 1, 10_000) == 1:
        return None
    is_ranges = isinstance(views, ViewRanges)
    if not is_ranges and not hasattr(views, "views_per_step"):
        fail(ValueError, "runs", "1 for keys, which are the same in every run", runs, "give ViewRanges or settings")
    found = [first]
    for more in range(1, runs):
        keys = views.keys(seed + more) if is_ranges else settings_keys(replace(views, seed=views.seed + more), **ranges)
        coin = setting.seed + more
        found.append(simulate(keys, setting.eta, capacity=capacity, seed=coin, coverage=False, **setting.indexing))
    hits, tried = sum(run.hits for run in found), sum(run.tried for run in found)
    rates = tuple(run.hit_rate for run in found if run.tried)
    return Repeats(hits, tried, rates, sum(run.x for run in found) / runs, runs - len(rates))
