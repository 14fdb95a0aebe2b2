"""Where the seconds of a run go, measured without ever making the host wait for the device.

On the CPU a part is timed with ``perf_counter``, or with another clock that is given. On CUDA a pair of events brackets
it and is read once the device has passed it, so the figures arrive a few steps late and nothing synchronises inside the
loop. A part inside another one counts for itself alone, so the parts never overlap.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

PARTS = ("render", "encode", "decode", "unet", "table", "backward", "optimizer")
COUNTS = ("hits", "misses", "bypasses")
COLUMNS = (*PARTS, *COUNTS, "wall")


class StepLog:
    """One row per step: seconds of each part, items served in each way, wall seconds of the whole step.

    Attributes:
        late: the counts arrived some steps later than the seconds, so that no step says what its hits cost.
    """

    late = False

    def __init__(self, rows: np.ndarray | None = None):
        self.rows: list[list[float]] = [] if rows is None else rows.tolist()

    def start_row(self) -> int:
        """Adds an empty row; returns its index."""
        self.rows.append([0.0] * len(COLUMNS))
        return len(self.rows) - 1

    def add(self, row: int, column: str, amount: float) -> None:
        """Adds ``amount`` to one figure of one step."""
        self.rows[row][COLUMNS.index(column)] += amount

    def column(self, name: str) -> np.ndarray:
        """One figure over all steps, float64 [N]."""
        return self.array()[:, COLUMNS.index(name)]

    def array(self) -> np.ndarray:
        """All figures, float64 [N, len(COLUMNS)]."""
        return np.array(self.rows, dtype=np.float64).reshape(-1, len(COLUMNS))


class TimeSplit:
    """Measures the parts of each step into a :class:`StepLog`.

    Args:
        device: where the measured work runs.
        log: where the figures go.
        clock: seconds on the host; None is ``time.perf_counter``. ``time.process_time`` leaves out what other processes
            of a busy machine take, which is right for a process of one thread.
    """

    def __init__(self, device: torch.device, log: StepLog, clock: Callable[[], float] | None = None):
        self.cuda, self.log, self.clock = device.type == "cuda", log, clock or time.perf_counter
        self.row = -1
        self._open: list[tuple[str, Any]] = []  # parts that have begun, the innermost last
        self._pending: deque[tuple[int, str, str | None, Any, Any]] = deque()

    @contextlib.contextmanager
    def step(self) -> Iterator[int]:
        """Brackets one step; yields its row in the log."""
        self.row = self.log.start_row()
        self._open.clear()  # what an error left
        start = self.clock()
        yield self.row
        self.log.add(self.row, "wall", self.clock() - start)
        self.collect()

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Brackets one part of the step in progress."""
        self.begin(part)
        yield
        self.end(part)

    def begin(self, part: str) -> None:
        """The part begins here; parts that begin before it ends are taken out of it."""
        self._open.append((part, self._now()))

    def end(self, part: str) -> None:
        """The part ends here; nothing happens where it is not the innermost one that has begun."""
        if not self._open or self._open[-1][0] != part:
            return
        begin, end = self._open.pop()[1], self._now()
        around = self._open[-1][0] if self._open else None
        if self.cuda:
            self._pending.append((self.row, part, around, begin, end))
        else:
            self._file(self.row, part, around, end - begin)

    def collect(self, wait: bool = False) -> None:
        """Reads the events that the device has passed; all of them with ``wait``, which synchronises. The time of that
        is part of the step in progress: the device is still at it."""
        start = self.clock()
        waited = False
        while self._pending and (wait or self._pending[0][4].query()):
            row, part, around, begin, end = self._pending.popleft()
            if wait:
                end.synchronize()
                waited = True
            self._file(row, part, around, begin.elapsed_time(end) / 1000)
        if waited:
            self.log.add(self.row, "wall", self.clock() - start)

    def watch_gradient(self, inner: Tensor, outer: Tensor, part: str) -> None:
        """Counts for ``part`` what the backward pass does between the gradients of ``outer``, which is made from
        ``inner`` alone, and of ``inner``. Both must be made for this: no other gradient may flow into them."""
        if inner.requires_grad and outer.requires_grad:
            outer.register_hook(lambda _: self.begin(part))
            inner.register_hook(lambda _: self.end(part))

    def _now(self) -> Any:
        if not self.cuda:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _file(self, row: int, part: str, around: str | None, seconds: float) -> None:
        self.log.add(row, part, seconds)
        if around is not None:
            self.log.add(row, around, -seconds)

    def watch_table(self, table: Any) -> None:
        """Times ``query`` and ``append`` of this one table from now on; they run inside the U-Net's call."""
        for name in ("query", "append"):
            setattr(table, name, self._timed(getattr(table, name)))

    def _timed(self, method: Any) -> Any:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.measure("table"):
                return method(*args, **kwargs)

        return timed


@dataclass(frozen=True)
class TimeSummary:
    """Seconds over a whole run.

    Attributes:
        total: wall seconds of all steps.
        split: seconds by part, whose sum is ``total``: render; encode, the encoder forward and backward; decode, of
            refined pictures alone; unet_full and unet_hit; table; backward, through the scene and the loss;
            optimizer; other.
        full_per_item, hit_per_item: U-Net seconds per view when it ran in full and when it was served from
            the cache; None when that never happened.
    """

    total: float
    split: dict[str, float]
    full_per_item: float | None
    hit_per_item: float | None

    @property
    def hit_cost(self) -> float | None:
        """r: what a hit costs as a share of a full pass, measured in this run."""
        if not self.full_per_item or self.hit_per_item is None:
            return None
        return self.hit_per_item / self.full_per_item


def summarise(log: StepLog) -> TimeSummary:
    """Totals of a run. Steps in which only some views hit are divided by the measured cost of either kind; of a log
    whose counts are late, all seconds of the U-Net are ``unet_full``'s."""
    hits, wall = log.column("hits"), log.column("wall")
    full = log.column("misses") + log.column("bypasses")
    unet = np.maximum(log.column("unet"), 0.0)
    full_cost, hit_cost = (None, None) if log.late else item_costs(unet, full, hits)
    shares = hits * (hit_cost or 0.0)
    shares = np.divide(shares, shares + full * (full_cost or 0.0), out=np.zeros_like(shares), where=shares > 0)
    sums = {name: float(log.column(name).sum()) for name in PARTS}
    hit = float((unet * shares).sum())
    split: dict[str, float] = {}
    for name in PARTS:
        split |= {"unet_full": float(unet.sum()) - hit, "unet_hit": hit} if name == "unet" else {name: sums[name]}
    # Events of a GPU and the host's clock differ a little.
    total = max(float(wall.sum()), sum(split.values()))
    split["other"] = total - sum(split.values())
    return TimeSummary(total, split, full_cost, hit_cost)


def item_costs(unet: np.ndarray, full: np.ndarray, hits: np.ndarray) -> tuple[float | None, float | None]:
    """Median seconds of a full item and of a hit item from per-step U-Net seconds and item counts, float [N]
    each."""
    only_full, any_hit = (hits == 0) & (full > 0), hits > 0
    full_cost = float(np.median(unet[only_full] / full[only_full])) if only_full.any() else None
    all_hit = any_hit & (full == 0)
    if all_hit.any():
        return full_cost, float(np.median(unet[all_hit] / hits[all_hit]))
    if any_hit.any() and full_cost is not None:
        rest = (unet[any_hit] - full[any_hit] * full_cost) / hits[any_hit]
        return full_cost, max(float(np.median(rest)), 0.0)
    return full_cost, None
