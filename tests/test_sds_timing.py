"""The time split: parts, the table inside the U-Net, and the cost of a hit."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from hash3d_cuda.sds.metrics import history, time_metrics
from hash3d_cuda.sds.timing import COLUMNS, StepLog, TimeSplit, item_costs, summarise


class Clock:
    """Time that passes when it is told to: what is measured is then exact, on a busy machine too."""

    now = 0.0

    def pass_seconds(self, seconds):
        self.now += seconds


class Table:
    def __init__(self, clock):
        self.clock = clock

    def query(self, value):
        self.clock.pass_seconds(0.02)
        return value + 1

    append = query


def test_parts_are_measured_and_the_table_is_taken_out_of_the_unet(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    log = StepLog()
    split = TimeSplit(torch.device("cpu"), log)
    table = Table(clock)
    split.watch_table(table)
    with split.step() as row:
        with split.measure("render"):
            clock.pass_seconds(0.01)
        with split.measure("unet"):
            assert table.query(1) == 2 and table.append(2) == 3
            clock.pass_seconds(0.03)
        log.add(row, "misses", 2)
    summary = summarise(log)
    rest = dict.fromkeys(("encode", "decode", "unet_hit", "backward", "optimizer", "other"), 0.0)
    assert summary.split == pytest.approx({"render": 0.01, "unet_full": 0.03, "table": 0.04, **rest}, abs=1e-12)
    assert sum(summary.split.values()) == pytest.approx(summary.total)
    before = log.array().copy()
    Table(clock).query(1)
    assert np.array_equal(log.array(), before), "another table is not watched"


def test_the_encoders_way_back_is_taken_out_of_backward(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)

    class Slow(torch.autograd.Function):
        """The same numbers; ``seconds`` pass on the way back."""

        @staticmethod
        def forward(context, value, seconds):
            context.seconds = seconds
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            clock.pass_seconds(context.seconds)
            return gradient, None

    log = StepLog()
    split = TimeSplit(torch.device("cpu"), log)
    with split.step():
        images = Slow.apply(torch.ones(3, requires_grad=True), 0.5)  # the scene's
        seen = []
        for seconds in (0.25, 0.125):  # two encoders look at the same pictures
            inner = images.view_as(images)
            outer = Slow.apply(inner, seconds)
            split.watch_gradient(inner, outer, "encode")
            seen.append(outer)
        with split.measure("backward"):
            (Slow.apply(images, 2.0).sum() + sum(one.square().sum() for one in seen)).backward()
    assert log.column("encode").tolist() == [0.375] and log.column("backward").tolist() == [2.5]
    assert not split._open


def test_what_an_error_left_open_does_not_count(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    log = StepLog()
    split = TimeSplit(torch.device("cpu"), log)
    with pytest.raises(ZeroDivisionError), split.step(), split.measure("render"):
        raise ZeroDivisionError
    with split.step(), split.measure("unet"):
        clock.pass_seconds(1.0)
    split.end("backward")
    assert log.column("render").tolist() == [0, 0] and log.column("unet").tolist() == [0, 1]


def log_of(unet, hits, full, other=0.0):
    """A log of steps that took ``unet`` seconds for ``hits`` and ``full`` views, lists of length N."""
    rows = np.zeros((len(unet), len(COLUMNS)))
    rows[:, COLUMNS.index("unet")], rows[:, COLUMNS.index("hits")] = unet, hits
    rows[:, COLUMNS.index("bypasses")], rows[:, COLUMNS.index("wall")] = full, np.array(unet) + other
    rows[:, COLUMNS.index("render")] = other
    return StepLog(rows)


def test_a_run_says_what_it_would_take_without_the_cache():
    log = log_of([2.0, 2.0, 0.4, 0.4], hits=[0, 0, 2, 2], full=[2, 2, 0, 0], other=1.0)
    figures, _ = time_metrics(log)
    found = figures["without_cache"]
    assert found["total_s"] == pytest.approx(12.0) and found["unet_share"] == pytest.approx(8 / 12)
    assert found["speed_up"] == pytest.approx(12.0 / 8.8)
    assert found["bound_step"] == pytest.approx(12.0 / 8.8), "nothing but the cache made it faster"
    assert found["bound_unet"] == pytest.approx(8 / 4.8)
    assert found["bound_step_at_x_1"] == pytest.approx(12 / (4 + 1.6))
    assert time_metrics(log_of([2.0], hits=[0], full=[2]))[0]["without_cache"] is None, "nothing was served"


def test_what_slowed_a_run_for_a_while_would_have_slowed_it_without_the_cache_too():
    log = log_of([9.0, 2.0, 2.0, 2.0, 0.4], hits=[0, 0, 0, 0, 2], full=[2, 2, 2, 2, 0], other=1.0)
    found = time_metrics(log)[0]["without_cache"]
    assert found["total_s"] == pytest.approx(5 + 15 / 4 * 5) and found["speed_up"] > 1


def test_late_counts_say_no_hits_cost():
    log = log_of([2.0, 0.4], hits=[0, 2], full=[2, 0])
    log.late = True
    summary = summarise(log)
    assert summary.hit_cost is None and summary.split["unet_full"] == pytest.approx(2.4)
    assert summary.split["unet_hit"] == 0 and time_metrics(log)[0]["without_cache"] is None


def test_a_devices_clock_may_be_ahead_of_the_hosts():
    log = log_of([2.0], hits=[0], full=[2])
    log.rows[0][COLUMNS.index("wall")] = 1.5
    assert summarise(log).total == 2.0 and sum(summarise(log).split.values()) == 2.0


def test_mixed_steps_are_divided_by_the_cost_of_either_kind():
    full, hits = np.array([2, 2, 0, 1, 2]), np.array([0, 0, 2, 1, 0])
    unet = full * 0.10 + hits * 0.02
    assert item_costs(unet, full, hits) == pytest.approx((0.10, 0.02))
    only_mixed = item_costs(unet[[0, 1, 3]], full[[0, 1, 3]], hits[[0, 1, 3]])
    assert only_mixed == pytest.approx((0.10, 0.02)), "no step was all hits"
    assert item_costs(unet[:2], full[:2], hits[:2]) == (pytest.approx(0.10), None)
    rows = np.zeros((5, len(COLUMNS)))
    rows[:, COLUMNS.index("unet")], rows[:, COLUMNS.index("hits")] = unet, hits
    rows[:, COLUMNS.index("bypasses")], rows[:, COLUMNS.index("wall")] = full, unet
    summary = summarise(StepLog(rows))
    assert summary.split["unet_full"] == pytest.approx(0.7) and summary.split["unet_hit"] == pytest.approx(0.06)
    assert summary.hit_cost == pytest.approx(0.2)


def test_empty_log_and_history():
    assert summarise(StepLog()).total == 0
    assert history(StepLog()) == {"step": [], "hit_rate": [], "x": []}
    log = StepLog()
    for step in range(450):
        row = log.start_row()
        log.add(row, "hits" if step % 3 == 0 else "misses" if step % 3 == 1 else "bypasses", 1)
    thinned = history(log)
    assert len(thinned["step"]) <= 200 and thinned["step"][-1] == 450
    assert thinned["hit_rate"][-1] == 0.5 and thinned["x"][-1] == pytest.approx(1 / 3, abs=1e-4)


class FakeEvent:
    """A CUDA event on a made-up clock; ``passed`` is how far the device has come."""

    clock = passed = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        FakeEvent.clock += 1
        self.at = FakeEvent.clock

    def query(self):
        return self.at <= FakeEvent.passed

    def synchronize(self):
        FakeEvent.passed = max(FakeEvent.passed, self.at)

    def elapsed_time(self, end):
        assert end.query(), "read before the device had passed it"
        return 1000.0 * (end.at - self.at)


def test_cuda_events_are_read_late_and_in_their_own_steps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    log = StepLog()
    split = TimeSplit(torch.device("cuda"), log)
    for _ in range(2):
        with split.step(), split.measure("unet"), split.measure("table"):
            pass
    assert log.column("unet").tolist() == [0, 0], "the device has not come so far"
    FakeEvent.passed = 4
    split.collect()
    assert log.column("unet").tolist() == [2, 0] and log.column("table").tolist() == [1, 0]
    split.collect(wait=True)
    assert log.column("unet").tolist() == [2, 2] and log.column("table").tolist() == [1, 1]
