"""Units of hash3d reproduce: each runs once and is taken up again, whatever ends the run."""

from __future__ import annotations

import multiprocessing
import signal
import time
from pathlib import Path

import pytest
from reproduce_cases import collect, context, experiment
from reproduce_units import break_at_three, interrupt_at_three, interrupt_the_command, sleep_for_ever

from hash3d_cuda.reproduce import runner
from hash3d_cuda.reproduce.base import experiment_units


def calls(out: Path) -> list[int]:
    path = out / "calls"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_units_run_longest_first_and_only_once(tmp_path):
    where = context(tmp_path)
    assert collect(experiment(), where) == ({"1": {"double": 2}, "2": {"double": 4}, "3": {"double": 6}}, [])
    assert calls(tmp_path) == [3, 2, 1]
    again, _ = collect(experiment((1, 2, 3, 4)), where)
    assert again["4"] == {"double": 8} and calls(tmp_path) == [3, 2, 1, 4], "what is there is taken up"
    collect(experiment((1,)), context(tmp_path, seed=1))
    assert calls(tmp_path)[-1] == 1, "another seed is other work"
    assert not list((tmp_path / "units").glob("*.tmp"))


def test_two_experiments_share_a_unit(tmp_path):
    shared = [experiment(name="one"), experiment((3, 4), name="two")]
    seen = []
    runner.reproduce(shared, context(tmp_path), 1, lambda module, results: seen.append(module.ID), quiet=True)
    assert sorted(calls(tmp_path)) == [1, 2, 3, 4] and sorted(seen) == ["one", "two"]


def test_an_interrupt_loses_the_unit_under_way_alone(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        collect(experiment((2, 3, 4), interrupt_at_three), context(tmp_path))
    assert calls(tmp_path) == [4]
    found, _ = collect(experiment((2, 4), interrupt_at_three), context(tmp_path))
    assert found == {"2": {"double": 4}, "4": {"double": 8}} and calls(tmp_path) == [4, 2]


def test_a_failing_unit_is_told_and_the_others_are_kept(tmp_path):
    found, failures = collect(experiment(function=break_at_three), context(tmp_path))
    assert found == {} and failures == [runner.Failure("3", "ValueError: three is too much")]
    assert calls(tmp_path) == [2, 1]


def test_a_damaged_result_is_made_anew(tmp_path):
    collect(experiment((1,)), context(tmp_path))
    (path,) = (tmp_path / "units").iterdir()
    path.write_text(path.read_text()[:-20])
    assert collect(experiment((1,)), context(tmp_path))[0] == {"1": {"double": 2}}
    assert calls(tmp_path) == [1, 1]


def test_worker_processes_give_the_same(tmp_path):
    found, failures = collect(experiment(function=break_at_three), context(tmp_path), jobs=2)
    assert found == {} and [failure.unit for failure in failures] == ["3"]
    assert sorted(calls(tmp_path)) == [1, 2]


def test_an_interrupt_ends_the_workers(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            collect(experiment((3,), interrupt_the_command), context(tmp_path), jobs=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not multiprocessing.active_children() and not list((tmp_path / "units").iterdir())


def test_workers_of_a_parent_that_was_killed_end(tmp_path):
    asked = (experiment((1,), sleep_for_ever), context(tmp_path), 2)
    parent = multiprocessing.get_context("fork").Process(target=collect, args=asked)
    parent.start()
    worker = tmp_path / "worker"
    until(lambda: worker.exists() and worker.read_text())
    parent.kill()
    parent.join()
    until(lambda: not Path(f"/proc/{worker.read_text()}").exists())


def until(done, seconds=120.0):
    """Waits for something that other processes do; fails after far longer than it takes."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_summary_that_fails_does_not_take_the_others_along(tmp_path):
    def write(module, results):
        seen.append(module.ID)
        assert module.ID != "one", "no such row"

    seen = []
    modules = [experiment(name="one"), experiment((4,), name="two")]
    failures = runner.reproduce(modules, context(tmp_path), 1, write, quiet=True)
    assert sorted(seen) == ["one", "two"] and [failure.unit for failure in failures] == ["one"]


def test_units_with_one_key_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same key, '2'"):
        experiment_units(experiment((1, 2, 2)), context(tmp_path))
