"""The host tier in a run of score distillation, in a plan of it, and on the command line."""

from __future__ import annotations

import json

import pytest
from sds_stand_ins import TinyPrior

import hash3d_cuda as h3d
from hash3d_cuda.cli import main
from hash3d_cuda.host_tier.front import divide, entry_bytes, slots_for
from hash3d_cuda.plan import CacheSetting, ViewRanges, plan, settings_keys, simulate
from hash3d_cuda.plan.simulation import MISS
from hash3d_cuda.sds.metrics import cache_metrics
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import POSE_GRIDS, GenerateSettings

VIEWS = ViewRanges((0, 40), (-180, 180), (1.9, 2.1), 400, 500, steps=80, views_per_step=3)
SETTING = CacheSetting(eta=1.0, memory_budget="100MiB", grids=POSE_GRIDS)


@pytest.mark.parametrize("more", [{}, {"audit": 0.3, "max_age": 20}])
def test_a_run_hits_and_copies_as_planned(more):
    prior, grids = TinyPrior(), (h3d.Grid(30.0, 60.0, 1.0, 1000.0),)
    settings = GenerateSettings(
        steps=40, scene_size=8, eta=0.9, seed=2, grids=grids, schedule="uniform", num_buckets=1009, capacity=12,
        host_budget="8MiB", **more,
    )  # fmt: skip
    with SdsRun(prior, prior.resolve("cube"), settings) as run:
        for _ in range(settings.steps):
            run.train_step()
        table = run.cache.table
    shared = dict(grids=grids, num_buckets=1009, seed=2, **more)
    planned = simulate(settings_keys(settings), 0.9, front=9, **shared)  # of 12 slots, 3 are for what comes back
    for name, kinds in (("hits", planned.grid >= 0), ("misses", planned.grid == MISS)):
        assert kinds.sum(axis=1).tolist() == run.log.column(name).tolist()
    assert planned.hits > simulate(settings_keys(settings), 0.9, capacity=12, **shared).hits
    done = cache_metrics(run.served, *run.caches)["host_tier"]
    assert (len(table.landing), table.capacity) == (3, 9) and done["late"] == 0
    assert done["bytes_up"] == planned.copied * entry_bytes(table.options) > 0
    assert done["hits"] >= planned.from_host > 0 and (done["hits"] == planned.from_host) == ("audit" not in more)
    assert "host_tier" not in cache_metrics(run.served)


def test_the_next_step_is_named_to_the_cache(monkeypatch):
    prior, told = TinyPrior(), []
    monkeypatch.setattr("hash3d_cuda.hook.Hash3DCache.prefetch", lambda self, *values: told.append(values))
    for budget in (None, "32MiB"):
        settings = GenerateSettings(steps=2, scene_size=8, capacity=20, host_budget=budget)
        with SdsRun(prior, prior.resolve("cube"), settings) as run:
            run.train_step()
            next_views = run.sampler.views(1)
            run.train_step()  # the last one names nothing
        assert len(told) == (budget is not None)
    assert told == [
        (next_views.elevation, next_views.azimuth, next_views.radius, next_views.timestep, ("cube", "name"))
    ]


def test_a_plan_has_both_tiers():
    alone, both = plan(VIEWS, SETTING), plan(VIEWS, CacheSetting(**{**vars(SETTING), "host_budget": "1GiB"}))
    table = h3d.HashTable((2, 320, 64, 64), (4, 64, 64), grids=POSE_GRIDS, capacity=1)
    assert both.memory.allocated == alone.memory.allocated and alone.as_dict()["host_tier"] is None
    assert both.memory.capacity == divide(table.options, alone.memory.capacity)[0]
    assert both.memory.capacity < alone.memory.capacity < both.memory.host_capacity
    assert 2**30 - 6 * 2**20 < both.memory.host_allocated <= 2**30
    assert both.memory.host_entry == 2 * 2 * 320 * 64 * 64 + 4 * 4 * 64 * 64
    everything = simulate(VIEWS.keys(0), 1.0, grids=POSE_GRIDS, capacity=both.memory.host_capacity)
    assert both.simulation.hits == everything.hits > alone.simulation.hits
    assert 0 < both.simulation.from_host <= both.simulation.hits and both.simulation.copied > 0


@pytest.mark.parametrize("queue, grids", [(1, 1), (2, 1), (3, 3)])
def test_slots_for_as_many_entries_as_are_wanted(queue, grids):
    options = h3d.HashTable((1,), (1,), grids=h3d.PAPER_GRIDS[:grids], queue_length=queue, capacity=1).options
    for own in range(1, 60):
        slots = slots_for(options, own)
        assert divide(options, slots)[0] == own and divide(options, slots + 1)[0] >= own
        assert slots - 1 <= queue * grids or divide(options, slots - 1)[0] < own, "no slot too many"


def test_room_for_every_view_on_the_device_is_room_beside_a_host_tier_too():
    setting = CacheSetting(**{**vars(SETTING), "memory_budget": "unlimited"})
    alone, both = plan(VIEWS, setting), plan(VIEWS, CacheSetting(**{**vars(setting), "host_budget": "4GiB"}))
    assert both.memory.capacity == alone.memory.capacity == 240 and both.memory.allocated > alone.memory.allocated
    assert both.simulation.hits == alone.simulation.hits and both.simulation.from_host == both.simulation.copied == 0
    with pytest.raises(ValueError, match="copies of the 240 entries on the device take"):
        plan(VIEWS, CacheSetting(**{**vars(setting), "host_budget": "1GiB"}))


def test_command_lines(capsys):
    argv = ["plan", "dreamgaussian", "--steps", "60", "--eta", "1", "--grids", "pose", "--memory-budget", "100MiB"]
    assert main([*argv, "--host-budget", "1GiB"]) == 0
    printed = capsys.readouterr().out
    assert "memory of the host tier" in printed and "copied to the device" in printed
    assert main([*argv, "--host-budget", "1GiB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["plans"][0]
    assert found["setting"]["host_budget"] == "1GiB" and found["memory"]["host_capacity"] > found["memory"]["capacity"]


@pytest.mark.parametrize("argv, words", [
    (["plan", "--host-budget", "2MiB"], "host_budget: expected more than"),
    (["plan", "--host-budget", "much"], "host_budget: expected bytes"),
    (["plan", "--memory-budget", "40MiB", "--host-budget", "1GiB"], "room for at least 10 entries"),
    (["generate", "cube", "--host-budget", "1GiB", "--decide", "device"], "decide: expected 'host' with a host_budget"),
])  # fmt: skip
def test_wrong_usage(argv, words, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and words in captured.err and captured.out == ""
