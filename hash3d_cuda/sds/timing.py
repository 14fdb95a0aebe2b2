"""Where the seconds of a run go, measured without ever making the host wait for the device.

On the CPU a part is timed with ``perf_counter``, or with another clock that is given. On CUDA a pair of events brackets
it and is read once the device has passed it, so the figures arrive a few steps late and nothing synchronises inside the
loop.
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

PARTS = ("render", "unet", "table", "backward")
COUNTS = ("hits", "misses", "bypasses")
COLUMNS = (*PARTS, *COUNTS, "wall")


class StepLog:
    """One row per step: seconds of each part, items served in each way, wall seconds of the whole step."""

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
        self._pending: deque[tuple[int, str, Any, Any]] = deque()

    @contextlib.contextmanager
    def step(self) -> Iterator[int]:
        """Brackets one step; yields its row in the log."""
        self.row = self.log.start_row()
        start = self.clock()
        yield self.row
        self.log.add(self.row, "wall", self.clock() - start)
        self.collect()

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Brackets one part of the step in progress."""
        if self.cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._pending.append((self.row, part, begin, end))
        else:
            start = self.clock()
            yield
            self.log.add(self.row, part, self.clock() - start)

    def collect(self, wait: bool = False) -> None:
        """Reads the events that the device has passed; all of them with ``wait``, which synchronises."""
        while self._pending and (wait or self._pending[0][3].query()):
            row, part, begin, end = self._pending.popleft()
            if wait:
                end.synchronize()
            self.log.add(row, part, begin.elapsed_time(end) / 1000)

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
        split: seconds by part: render, unet_full, unet_hit, table, backward, other.
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
    """Totals of a run. Steps in which only some views hit are divided by the measured cost of either kind."""
    hits, wall = log.column("hits"), log.column("wall")
    full = log.column("misses") + log.column("bypasses")
    unet = np.maximum(log.column("unet") - log.column("table"), 0.0)
    full_cost, hit_cost = item_costs(unet, full, hits)
    shares = hits * (hit_cost or 0.0)
    shares = np.divide(shares, shares + full * (full_cost or 0.0), out=np.zeros_like(shares), where=shares > 0)
    split = {
        "render": log.column("render").sum(),
        "unet_full": (unet * (1 - shares)).sum(),
        "unet_hit": (unet * shares).sum(),
        "table": log.column("table").sum(),
        "backward": log.column("backward").sum(),
    }
    split["other"] = max(wall.sum() - sum(split.values()), 0.0)
    return TimeSummary(float(wall.sum()), {k: float(v) for k, v in split.items()}, full_cost, hit_cost)


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
