"""How a number of runs is spent: successive halving, then runs on fresh objects or seeds that judge the last few.

Halving (Jamieson and Talwalkar 2016) tries many settings once and drops half of them each time. The best of many noisy
scores is partly luck, so what is said of the chosen setting comes from runs that had no part in choosing the finalists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean, mean, stdev
from typing import Any

CONFIRMING = 0.4  # share of the runs


@dataclass(frozen=True)
class Plan:
    """How many settings run in each round, on one unit (object and seed) each, the run without a cache not counted.

    Attributes:
        halving: settings in each of the first rounds.
        finalists: settings in each of the last rounds.
        confirming: how many of these there are.
    """

    halving: tuple[int, ...]
    finalists: int
    confirming: int

    @property
    def runs(self) -> int:
        """All of them, runs without a cache included."""
        return sum(size + 1 for size in self.halving) + self.confirming * (self.finalists + 1)

    @property
    def first(self) -> int:
        """Settings that are tried at all."""
        return self.halving[0] if self.halving else self.finalists


def make_plan(runs: int, settings: int) -> Plan:
    """The plan that tries the most settings with at most ``runs`` runs, of ``settings`` that there are.

    Raises:
        ValueError: fewer than 2 runs.
    """
    if runs < 2:
        raise ValueError(f"runs: expected at least 2 (without the cache and with it), got {runs}")
    finalists = min(3 if runs >= 24 else 2 if runs >= 12 else 1, settings)
    confirming = max(int(CONFIRMING * runs) // (finalists + 1), 1)
    left = runs - confirming * (finalists + 1)
    first = finalists
    while first < settings and sum(size + 1 for size in halved(first + 1, finalists)) <= left:
        first += 1
    halving = halved(first, finalists)
    spare = runs - Plan(halving, finalists, confirming).runs
    return Plan(halving, finalists, confirming + spare // (finalists + 1))


def halved(first: int, last: int) -> tuple[int, ...]:
    """Sizes of the rounds that leave ``last`` of ``first``."""
    sizes = []
    while first > last:
        sizes.append(first)
        first = max(math.ceil(first / 2), last)
    return tuple(sizes)


@dataclass
class Outcome:
    """What is known of one setting.

    Attributes:
        name: its label.
        changes: by field.
        losses: of every run, in the measure's unit; what is lost against the paired run without a cache.
        speed_ups: of every run, against that one.
        xs: shares of views served from the cache.
        bounds: the speed-ups that x and r allow.
        confirming: from which run on they judge and no longer choose.
    """

    name: str
    changes: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    speed_ups: list[float] = field(default_factory=list)
    xs: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    confirming: int = 0

    def add(self, figures: dict[str, Any], loss: float) -> None:
        """Files one more run."""
        self.losses.append(loss)
        self.speed_ups.append(figures["speed_up"])
        self.xs.append(figures["x"])
        self.bounds.append(figures["bound_step"])

    @property
    def judging(self) -> list[float]:
        """Losses of the runs that judge; of all where there are none."""
        return self.losses[self.confirming :] or self.losses

    @property
    def loss(self) -> float:
        """Mean of ``judging``."""
        return mean(self.judging)

    @property
    def speed_up(self) -> float:
        """Geometric mean over all runs."""
        return geometric_mean(self.speed_ups)

    def confidence(self, bound: float) -> float | None:
        """Of the mean loss being at most ``bound``: one-sided, by Student's t over the runs that judge; None for a
        single run."""
        losses = self.judging
        if len(losses) < 2:
            return None
        from scipy.stats import t

        error = stdev(losses) / math.sqrt(len(losses))
        if error == 0.0:
            return float(self.loss <= bound)
        return float(t.cdf((bound - self.loss) / error, len(losses) - 1))


def ranked(outcomes: Sequence[Outcome], bound: float) -> list[Outcome]:
    """Those within the bound first, the fastest at the top; then the others, the smallest loss at the top."""
    within = [one for one in outcomes if one.loss <= bound]
    beyond = [one for one in outcomes if one.loss > bound]
    return sorted(within, key=lambda one: -one.speed_up) + sorted(beyond, key=lambda one: one.loss)


def choose(outcomes: Sequence[Outcome], bound: float, confidence: float) -> tuple[Outcome | None, bool]:
    """The fastest setting that is within the bound with at least this confidence, else the surest within it, else None;
    and whether the confidence was reached. Settings that make nothing faster are no choice."""
    within = [one for one in ranked(outcomes, bound) if one.loss <= bound and one.speed_up > 1.0]
    sure = [one for one in within if (one.confidence(bound) or 0.0) >= confidence]
    if sure:
        return sure[0], True
    return (max(within, key=lambda one: one.confidence(bound) or 0.0), False) if within else (None, False)
