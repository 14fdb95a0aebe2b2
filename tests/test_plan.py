"""Predictions of the cache: against an oracle, a real run, the published systems' hit rates, and the command line."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sds_stand_ins import TinyPrior

import hash3d_cuda as h3d
from hash3d_cuda.cli import main
from hash3d_cuda.plan import (
    PRESETS,
    RELEASED_INDEXING,
    RELEASED_ORDER,
    CacheSetting,
    ViewRanges,
    plan,
    plan_recipe,
    settings_keys,
    simulate,
)
from hash3d_cuda.plan.report import windows
from hash3d_cuda.plan.setting import setting_of
from hash3d_cuda.plan.simulation import BYPASS, MISS
from hash3d_cuda.sds.settings import POSE_GRIDS, GenerateSettings
from hash3d_cuda.sds.settings import PRESETS as SETTINGS

SMALL = ViewRanges((0, 40), (-180, 180), (1.9, 2.1), 400, 500, steps=60, views_per_step=3)
OTHER = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "hit-rates-other.json"
WAYS = (RELEASED_INDEXING, *({**RELEASED_ORDER, "num_buckets": n} for n in (200, 1000, 100_000)))
PUBLISHED = [
    (system, indexing, rate)
    for system, rates in json.loads(OTHER.read_text())["rates"].items()
    for indexing, rate in zip(WAYS, rates, strict=True)
]
POOLED = {"dreamfusion": 2, "zero123": 30, "dreamgaussian": 60}


@pytest.mark.parametrize("system, indexing, expected", PUBLISHED)
def test_hit_rates_of_the_published_systems(system, indexing, expected):
    setting = CacheSetting(eta=0.1, memory_budget="unlimited", **indexing)
    found = plan(PRESETS[system], setting, unet="sd21", runs=POOLED[system]).repeats
    assert found.hit_rate == pytest.approx(expected, abs=0.02)


def test_repeats_are_runs_with_the_next_seeds():
    setting = CacheSetting(eta=0.5, capacity=100, seed=4)
    found = plan(SMALL, setting, seed=2, runs=3)
    singly = [simulate(SMALL.keys(2 + n), 0.5, capacity=100, seed=4 + n) for n in range(3)]
    assert found.repeats.rates == tuple(run.hit_rate for run in singly) and len(set(found.repeats.rates)) > 1
    assert found.repeats.hit_rate == sum(run.hits for run in singly) / sum(run.hits + run.misses for run in singly)
    assert found.as_dict()["repeats"]["runs"] == 3 and plan(SMALL, setting).repeats is None
    settings = GenerateSettings(steps=30, eta=0.5, seed=1)
    assert plan(settings, runs=2).repeats.rates[1] == plan(replace(settings, seed=2)).simulation.hit_rate
    with pytest.raises(ValueError, match="runs"):
        plan(SMALL.keys(0), setting, runs=2)


def test_batches_hit_in_part():
    runs = [simulate(PRESETS["gaussian-dreamer"].keys(seed), 0.3, seed=seed, coverage=False) for seed in (0, 1)]
    assert all(0.14 < run.hit_rate < 0.22 and run.all_hit < 0.015 for run in runs)


@pytest.mark.parametrize("match", ["cell", "bucket"])
@pytest.mark.parametrize("capacity", [None, 40])
def test_the_same_as_step_by_step_with_the_oracle(match, capacity):
    keys, options = SMALL.keys(3), dict(num_buckets=97, queue_length=2, match=match)
    table = h3d.reference.HashTable((1,), (1,), capacity=capacity or 180, **options)
    coin, expected = random.Random(5), []
    for step in keys:
        kinds = [BYPASS] * 3
        if coin.random() < 0.6:
            found = (table.lookup(step)[:, :, 0] >= 0).tolist()
            kinds = [grids.index(True) if any(grids) else MISS for grids in found]
        stored = step[[kind < 0 for kind in kinds]]
        table.append(stored, torch.zeros(len(stored), 1), torch.ones(len(stored), 1))
        expected.append(kinds)
    run = simulate(keys, 0.6, capacity=capacity, seed=5, **options)
    assert run.grid.tolist() == expected and run.hits > 5 and run.misses > 5
    assert run.live == len(table) and run.stored == (run.grid < 0).sum()
    assert sum(run.by_grid) == pytest.approx(run.hit_rate) and run.x == run.hits / 180


@pytest.mark.parametrize("entries, more", [(20, {"schedule": "uniform", "grids": POSE_GRIDS}), (200, {})])
def test_the_same_hits_as_a_real_run(entries, more):
    from hash3d_cuda.sds.controls import distil

    prior = TinyPrior()
    shapes = (2, 16, 4, 4), prior.latent_shape
    table = h3d.HashTable(*shapes, capacity=entries, feature_dtype=torch.float32)
    settings = GenerateSettings(steps=100, scene_size=8, eta=0.9, seed=2, memory_budget=table.nbytes, **more)
    run = distil(prior, prior.resolve("cube"), settings)["run"]
    planned = simulate(settings_keys(settings), 0.9, grids=settings.grids, capacity=entries, seed=2)
    for name, kinds in (("hits", planned.grid >= 0), ("misses", planned.grid == MISS)):
        assert kinds.sum(axis=1).tolist() == run.log.column(name).tolist()
    assert planned.hits > 5


def test_age_and_audits_are_as_in_the_hook():
    """Twelve steps of one cell, tried each time: the entry serves three steps, then it is made anew."""
    keys = torch.tensor([[[10.0, 20.0, 2.0, 500.0]]]).expand(12, 1, 4).contiguous()
    aged = simulate(keys, 1.0, max_age=3)
    assert aged.grid[:, 0].tolist() == [MISS, 0, 0, 0] * 3 and aged.stored == 3
    followed = simulate(keys.repeat(50, 1, 1), 1.0, target_x=0.5)
    assert followed.x == pytest.approx(0.5, abs=0.05)
    audited = simulate(keys, 1.0, audit=1.0)
    assert audited.hits == 0 and audited.stored == 12 and audited.misses == 12


@pytest.mark.parametrize("option", [{"max_age": 5}, {"target_x": 0.05}, {"audit": 0.5}])
def test_settings_bring_what_limits_hits(option):
    base = dict(steps=80, schedule="uniform", grids=POSE_GRIDS, eta=0.9, capacity=160, seed=2)
    settings = GenerateSettings(**base, **option)
    found = plan(settings).simulation
    asked = dict(grids=settings.grids, capacity=160, seed=2)
    assert np.array_equal(found.grid, simulate(settings_keys(settings), 0.9, **asked, **option).grid)
    assert not np.array_equal(found.grid, plan(GenerateSettings(**base)).simulation.grid)


def test_memory_is_what_the_table_takes():
    setting = CacheSetting(memory_budget="64MiB", position=4)
    memory = plan(SMALL, setting, unet="sd21").memory
    table = h3d.HashTable((2, 640, 32, 32), (4, 64, 64), memory_budget="64MiB")
    assert (memory.capacity, memory.allocated) == (table.capacity, table.nbytes)
    everything = plan(SMALL, replace(setting, memory_budget="unlimited"), unet="sd21").memory
    assert everything.capacity == 180 and everything.allocated == everything.for_all == memory.for_all


def test_features_in_8_bits_leave_room_for_more():
    setting = CacheSetting(memory_budget="256MiB", num_buckets=1009)
    half, whole = (plan(SMALL, replace(setting, feature_dtype=name), unet="sd21").memory for name in ("int8", None))
    table = h3d.HashTable((2, 320, 64, 64), (4, 64, 64), feature_dtype=torch.int8, capacity=1)
    assert half.slot == table.options.slot_bytes <= 0.55 * whole.slot
    assert half.capacity > 1.8 * whole.capacity
    run = GenerateSettings(steps=5, feature_dtype="fp8")
    assert setting_of(run).feature_dtype == "fp8"


def test_bounds():
    found = plan(SMALL, CacheSetting(eta=1.0, memory_budget="unlimited"), unet="sd21", vae="KL-VAE", other_share=0.5)
    x, r = found.simulation.x, found.r
    assert r == pytest.approx(0.224, abs=6e-4)
    assert found.unet_bound == pytest.approx(1 / (1 - x * (1 - r)))
    assert found.unet_share == pytest.approx(0.5 * 2 * 402 / (2 * 402 + 558 + 576), abs=0.002)
    assert 1 < found.step_bound == pytest.approx(1 / (1 - found.unet_share * x * (1 - r)))


def test_settings_bring_their_own_cache():
    settings = GenerateSettings(steps=30, eta=0.5, grids=POSE_GRIDS, position=3, memory_budget="32MiB", seed=4)
    found = plan(settings)
    assert found.unet == "shipped" and found.setting.grids == POSE_GRIDS and found.setting.position == 3
    assert found.simulation.grid.shape == (30, 2) and found.memory.allocated <= 32 * 2**20
    assert plan(replace(settings, cache=False)).simulation.x == 0
    for steps, anchors, needed in ((300, 9, 9), (30, 100, 9)):  # no more anchors than the run comes to
        fast = GenerateSettings(**SETTINGS["fast"], steps=steps, anchors=anchors)
        assert plan(fast).memory.capacity == needed + fast.views_per_step


def test_recipes():
    pytest.importorskip("hash3d_cuda.sds.recipes", reason="a part of its own")
    found = plan_recipe("dreamgaussian", "small", {"seed": 3, "memory_budget": "64MiB"})
    assert len(found) == 1 and found[0].unet == "shipped"  # its second stage reuses in time
    assert found[0].setting.seed == 3 and found[0].memory.allocated <= 64 * 2**20
    assert plan_recipe("dreamgaussian", "paper")[0].unet == "zero123"
    assert found[0].title == "DreamGaussian, stage 1"
    assert [one.title for one in plan_recipe("magic123")] == [
        f"Magic123, stage {n}, one prior of its two" for n in (1, 2)
    ]
    with pytest.raises(ValueError, match="recipe"):
        plan_recipe("nothing of the kind")


def test_curves_add_up():
    run = simulate(PRESETS["zero123"].keys(0), 0.5)
    _, shares, served = windows(run.grid, 3)
    assert served.mean() == pytest.approx(run.x, abs=0.01) and shares.sum(axis=0).max() <= 1
    assert shares.sum(axis=0).mean() == pytest.approx(run.hit_rate, abs=0.05)


def test_coverage_grows_and_is_looked_at_without_a_trace():
    keys = PRESETS["zero123"].keys(0)
    run, blind = simulate(keys, 0.5), simulate(keys, 0.5, coverage=False)
    assert np.array_equal(run.grid, blind.grid) and len(run.looks) == len(run.coverage) > 10
    assert run.coverage[0] == 0 and run.coverage[-1] > 0.3
    assert run.coverage.mean() == pytest.approx(run.hit_rate, abs=0.06)


def test_views_stay_in_their_ranges():
    keys = replace(SMALL, t_low=(10, 700, 300, 40), t_high=(10, 980, 800, 40), steps=2000).keys(1)
    low, high = keys.flatten(0, 1).amin(0).tolist(), keys.flatten(0, 1).amax(0).tolist()
    assert low[0] >= 0 and high[0] <= 40 and low[1] >= -180 and high[1] <= 180 and 1.9 <= low[2] <= high[2] <= 2.1001
    assert keys[:10, :, 3].min() >= 700 and 300 <= keys[40:, :, 3].min() < 310 and 790 < keys[40:, :, 3].max() <= 800
    annealed = replace(SMALL, schedule="annealed").keys(0)[:, :, 3]
    assert annealed[0].tolist() == [500] * 3 and annealed[-1].tolist() == [400] * 3
    sectors = replace(SMALL, stratified=True).keys(0)[:, :, 1]
    assert ((sectors + 180) // 120).tolist() == [[0, 1, 2]] * 60
    assert torch.equal(SMALL.keys(7), SMALL.keys(7)) and not torch.equal(SMALL.keys(7), SMALL.keys(8))


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(elevation=(40, 0)), "elevation"), (dict(radius=2.0), "radius"), (dict(t_low=900, t_high=100), "t_low"),
        (dict(t_high=(50, 980, 800)), "t_high"), (dict(schedule="cosine"), "schedule"), (dict(steps=0), "steps"),
    ],
)  # fmt: skip
def test_ranges_that_cannot_be(change, word):
    with pytest.raises((ValueError, TypeError), match=word):
        replace(SMALL, **change)


def test_search_keeps_to_the_budget():
    found = plan(SMALL, CacheSetting(memory_budget="14MiB"), unet="shipped", search=True)
    assert [one.setting.eta for one in found.best] == [0.1, 0.5, 0.9]
    for one in found.best:
        again = plan(SMALL, one.setting, unet="shipped")
        assert (again.simulation.x, again.step_bound) == (one.x, one.step_bound)
        assert again.memory.allocated <= 14 * 2**20
    assert found.best[0].step_bound >= found.step_bound


def test_search_leaves_out_what_the_host_has_no_room_for():
    setting = CacheSetting(memory_budget="3MiB", host_budget="2MiB", num_buckets=1009)
    assert plan(replace(SMALL, steps=20), setting, unet="shipped", search=True).best


def test_command_line(tmp_path, capsys):
    arguments = ["plan", "zero123", "--steps", "200", "--eta", "0.5", "--grids", "pose", "--vae", "TAESD"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "hit rate" in printed and "bound on a step's speed-up" in printed and "plan.md" in printed
    written = json.loads((tmp_path / "out" / "plan.json").read_text())["plans"][0]
    assert written["unet"] == "zero123" and written["steps"] == 200 and 0 < written["x"] < 0.5
    assert f"{written['hit_rate']:.1%}" in printed
    assert written["encoder_gmacs_per_view"] == pytest.approx(122 / 4, abs=0.3), "TAESD's at 256 pixels"
    assert "TAESD, forward and backward" in printed
    assert f"| hit rate | {written['hit_rate']:.1%} |" in (tmp_path / "out" / "plan.md").read_text()
    with Image.open(tmp_path / "out" / "plan.png") as picture:
        assert picture.width > 500
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"][0]["hit_rate"] == written["hit_rate"]


def test_files_of_others_are_left_alone_and_earlier_plans_replaced(tmp_path, capsys):
    arguments = ["plan", "--steps", "20", "--out", str(tmp_path)]
    mine = tmp_path / "plan.md"
    mine.write_text("my holidays")
    assert main(arguments) == 1
    assert "plan.md, which hash3d plan did not write" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.md"] and mine.read_text() == "my holidays"
    mine.unlink()
    assert main(arguments) == 0 and main([*arguments, "--eta", "0.3"]) == 0
    assert json.loads((tmp_path / "plan.json").read_text())["plans"][0]["setting"]["eta"] == 0.3


def test_released_indexing_on_the_command_line(capsys):
    assert main(["plan", "dreamgaussian", "--indexing", "released", "--memory-budget", "unlimited", "--json"]) == 0
    setting = json.loads(capsys.readouterr().out)["plans"][0]["setting"]
    assert setting["match"] == "bucket" and setting["num_buckets"] == 200 and setting["azimuth_period"] is None
    assert setting["grids"] == [pytest.approx([20, 0.1, 10, 20])]
    assert main(["plan", "--steps", "50", "--indexing", "released-order", "--runs", "2"]) == 0
    assert "hit rate over 2 runs, other seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, word",
    [
        (["pixie"], "pixie"), (["--runs", "0"], "runs"), (["--eta", "2"], "eta"), (["--elevation", "5"], "elevation"),
        (["--unet", "sd9"], "unet: "),
        (["--memory-budget", "1MiB"], "memory-budget"), (["--position", "99"], " position: "), (["--vae", "VQ"], "vae"),
        (["--scale", "paper"], "scale"), (["--recipe", "x", "--steps", "5"], "steps"), (["--grids", "1,2"], "grids"),
    ],
)  # fmt: skip
def test_wrong_usage(argv, word, capsys):
    assert main(["plan", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and word in captured.err and captured.out == ""


def test_help(capsys):
    assert main(["plan", "--help"]) == 0
    assert "--memory-budget" in capsys.readouterr().out
