"""Views that come back: where to look when a table remembers.

Uniform poses all but never meet a live entry again, so that a short run serves few views however large eta is. Here a
view is either fresh, at the next of a sequence of *anchors*, or it returns to one of the latest ``pool`` anchors, whose
entries the table still holds. Which of the two, and to which anchor, is arithmetic on the number of the view: it needs
no state, waits for nothing, and a resumed run goes on as if nothing had happened.

Anchors are a low-discrepancy (Kronecker) sequence in azimuth, elevation and radius: any ``pool`` anchors in a row cover
the views evenly. All views of an anchor have its timestep, the one that an annealed schedule reaches in the middle of
the anchor's time: a feature that was made at a higher noise level would blur the answer. A view lies at a random place
in the cell of its anchor in the finest grid, so that it hits and yet is not the same again. None of this is in the
paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_GOLDEN = (math.sqrt(5) - 1) / 2
# Azimuth and elevation take powers of 1/p, p the real root of p^3 = p + 1, the golden ratio's counterpart in two
# dimensions: n points in a row leave no hole much larger than 1/n of the rectangle. Radius and timestep matter less.
_PLASTIC = 1.324717957244746
_STEPS = np.array([_PLASTIC**-1, _PLASTIC**-2, _GOLDEN, math.sqrt(2) - 1])
_EDGE = 0.02  # of a cell, left out on both sides: float32 could round into the next one


@dataclass(frozen=True)
class AnchorPlan:
    """Which anchor each view of a run looks at.

    Attributes:
        views: of the whole run.
        batch: views of a step; none returns to an anchor of its own step, whose entry is not stored yet.
        reuse: share of the views that return, 0 to 1.
        pool: how many of the latest anchors views return to.
        power: after n of N views, (n/N)^power of the anchors have been used up, the first few apart: 1 spreads them
            evenly, more saves them for the end, where the noise is low and the detail is made.
        first: at least so many views come first that are all fresh; None: as many as fill the pool. What is stored
            then has seen the scene before there was one, and its answers are off for as long as they serve. With
            few of these, most anchors are taken when the object has its shape and colours.
        until: N above as a share of the run, up to the end of a step: after it, all views return.
    """

    views: int
    batch: int
    reuse: float
    pool: int
    power: float = 1.0
    first: int | None = None
    until: float = 1.0

    @property
    def head(self) -> int:
        """The first views of a run, all fresh; a step's at least. What is left of the fresh ones fills whole steps."""
        wanted = min(self.pool if self.first is None else self.first, round((1 - self.reuse) * self.views))
        wanted = min(max(wanted, self.batch), self.views)
        return wanted + (self.total - wanted) % self.batch

    @property
    def total(self) -> int:
        """The fresh views of a run."""
        return max(round((1 - self.reuse) * self.views), min(self.batch, self.views))

    def fresh(self, view: int) -> int:
        """How many of the first ``view`` views are fresh. After the head a step's are all fresh or none: a step of both
        would run both ways through the U-Net, each with a smaller batch."""
        if view <= self.head:
            return view
        start = view - view % self.batch
        return min(self._until_step(start) + view - start, self._until_step(start + self.batch))

    def _until_step(self, view: int) -> int:
        """:meth:`fresh` where a step begins."""
        if view <= self.head:
            return view
        end = max(round(self.until * self.views), self.total)
        end += -end % self.batch
        if view >= end:
            return self.total
        share = (view - self.head) / (end - self.head)
        wanted = self.head + math.floor((self.total - self.head) * share**self.power + 1e-9)
        # One view uses up one anchor at most: where the curve is steeper, begin earlier, or end later.
        wanted = min(max(wanted, self.total - (end - view)), view)
        return wanted - (wanted - self.head) % self.batch

    def used(self, number: int) -> int:
        """The view that an anchor is fresh for; ``views`` for one that the run does not come to."""
        low, high = 0, self.views
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.fresh(middle + 1) > number else (middle + 1, high)
        return low

    def middle(self, number: int) -> float:
        """The view, about, in the middle of those that look at an anchor: after its first, until it has left the
        pool."""
        return (self.used(number) + self.used(number + self.pool)) / 2

    def of_step(self, step: int) -> list[tuple[int, bool]]:
        """Per view of a step the number of its anchor, 0, 1, 2 ... in the order of first use, and whether it is
        fresh."""
        first = step * self.batch
        known = self.fresh(first)
        chosen = []
        for view in range(first, first + self.batch):
            count = self.fresh(view)
            if self.fresh(view + 1) > count:
                chosen.append((count, True))
                continue
            place = math.floor((view * _GOLDEN % 1.0) * min(self.pool, known))
            chosen.append((known - 1 - place, False))
        return chosen


def anchor_place(number: int, offset: np.ndarray) -> np.ndarray:
    """Azimuth, elevation, radius and timestep of an anchor as shares of their ranges, float64 [4] in 0..1. ``offset``
    [4] is the run's."""
    return (offset + number * _STEPS) % 1.0


def inside_cell(value: float, size: float, low: float, high: float, share: float, jitter: float = 1.0) -> float:
    """A place in the part within [low, high] of the cell of ``size`` that ``value`` lies in.

    Args:
        share: where in it, 0 to 1.
        jitter: 1 goes there, 0 stays at ``value`` (or as near as the cell's margin lets it).
    """
    start = math.floor(value / size) * size
    first, last = max(start + _EDGE * size, low), min(start + (1 - _EDGE) * size, high)
    if first > last:  # only the margin of the cell is within the range
        return value
    return (1 - jitter) * min(max(value, first), last) + jitter * (first + share * (last - first))
