"""hash3d tune: the space, what is predicted, how runs are spent, what is chosen, and that a stopped search goes on."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sds_stand_ins import TinyPrior

from hash3d_cuda.cli.main import main
from hash3d_cuda.sds.metrics import cache_metrics
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.sds.settings_file import read_settings
from hash3d_cuda.tune import Request, make_space, report, tune
from hash3d_cuda.tune.measure import Measure, make_measure
from hash3d_cuda.tune.race import TuneContext, evaluation_views, race
from hash3d_cuda.tune.room import fitted
from hash3d_cuda.tune.rounds import Outcome, choose, make_plan, ranked
from hash3d_cuda.tune.screen import Prediction, calibrate, predict, spread
from hash3d_cuda.tune.space import FIELDS, SPACE, as_settings, candidates, label

OBJECTS = ("chicken", "cactus")
BASE = GenerateSettings(steps=12, scene_size=8, num_buckets=1009, memory_budget=2**22)
WIDE = "90,360,1,1000"
COSTS = {
    "share": 0.8, "r": {"1": 0.1, "2": 0.2, "3": 0.4},
    "table": {k: {"feature": [2, 16, 4, 4], "latent": [3, 4, 4], "dtype": "float32"} for k in "123"},
}  # fmt: skip


def tiny_prior():
    return TinyPrior(size=64, vocabulary=OBJECTS)


def context(out: Path, **changes) -> TuneContext:
    return TuneContext(**{"out": out, "quick": True, "objects": OBJECTS, "source": tiny_prior, **changes})


# The space


def test_every_field_of_the_default_space_is_a_setting():
    assert set(SPACE) <= set(FIELDS) and make_space() == {name: tuple(values) for name, values in SPACE.items()}
    assert "eta" not in make_space(fixed=["eta", "scene"])


def test_any_field_can_be_varied():
    space = make_space(["eta=0.5 1", "queue-length=1 3", "grids=pose 5,5,.5,1000", "min_similarity=none 0.9"])
    assert space["eta"] == (0.5, 1) and space["queue_length"] == (1, 3) and space["min_similarity"] == (None, 0.9)
    assert space["position"] == SPACE["position"]
    assert as_settings({"grids": space["grids"][1]}) == {"grids": [[5.0, 5.0, 0.5, 1000.0]]}
    assert GenerateSettings(**as_settings({"capacity": 7})).capacity == 7
    assert label({"eta": 0.5, "grids": "5,5,.5,1000;9,9,1,50", "min_similarity": None}) == "eta 0.5, grids 2x9/9/1/50"


@pytest.mark.parametrize("told", ["colour=1", "seed=1 2", "steps=5", "eta=2", "eta=", "grids=fine", "position=1.5"])
def test_a_wrong_field_or_value_is_named(told):
    with pytest.raises(ValueError, match=rf"^vary: .*{told.split('=')[0]}"):
        make_space([told])


def test_combinations_that_a_stage_does_not_take_are_left_out():
    space = {"position": (1, 2, 9), "compile": ((), ("scene",))}
    both = [BASE, replace(BASE, scene="mesh")]
    assert candidates(space, [BASE], 3) == [
        {"position": k, "compile": parts} for k in (1, 2) for parts in ((), ("scene",))
    ]
    assert candidates(space, both, 3) == [{"position": k, "compile": ()} for k in (1, 2)]


# What is predicted


@pytest.mark.parametrize("changes", [{"eta": 0.7, "grids": WIDE}, {"eta": 1.0, "grids": "30,60,1,300", "capacity": 6}])
def test_the_predicted_share_is_that_of_the_run(changes):
    prior = tiny_prior()
    (found,) = predict(prior, [BASE.as_dict()], 3, COSTS, [changes])
    asked = replace(BASE, seed=3, **as_settings(changes))
    with SdsRun(prior, prior.resolve("cactus"), asked) as run:
        for _ in range(asked.steps):
            run.train_step()
    assert found.x == cache_metrics(run.served)["x"] > 0
    assert found.speed_up == pytest.approx(1 / (1 - 0.8 * found.x * 0.8))


def test_stages_count_by_their_views_and_memory_that_holds_nothing_is_left_out():
    refine = replace(BASE, objective="refine", steps=36)
    stages = [BASE.as_dict(), refine.as_dict()]
    alone, both = (
        predict(tiny_prior(), some, 0, COSTS, [{"eta": 1.0, "grids": WIDE}])[0] for some in (stages[:1], stages)
    )
    assert both.x == pytest.approx(alone.x / 4)
    assert both.speed_up == pytest.approx(4 / (3 + 1 / alone.speed_up))
    assert predict(tiny_prior(), stages, 0, COSTS, [{"memory_budget": 2000}]) == []


def test_what_is_tried_is_spread_out():
    space = {"eta": (0.1, 0.5, 1.0), "position": (1, 2)}
    told = [
        Prediction({"eta": e, "position": k}, e, 1 + e * (2 - k / 2)) for e in space["eta"] for k in space["position"]
    ]
    chosen = spread([*told, Prediction({"eta": 0.5, "position": 1}, 0.0, 1.0)], space, 3)
    assert chosen[0].changes == {"eta": 1.0, "position": 1} and len({str(one.changes) for one in chosen}) == 3
    assert {"eta": 0.1, "position": 2} in [one.changes for one in chosen]
    assert len(spread(told, space, 100)) == 6 and spread([Prediction({}, 0, 1.0)], {}, 3) == []


def test_costs_are_measured(tmp_path):
    found = calibrate(context(tmp_path), "chicken", "name", BASE.as_dict(), [1, 3])
    assert 0 < found["share"] < 1 and set(found["r"]) == {"1", "3"} and all(r > 0 for r in found["r"].values())
    assert found["table"]["1"] == {"feature": [2, 16, 4, 4], "latent": [768, 4, 4], "dtype": "float32"}


# How runs are spent


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 500), st.integers(1, 300))
def test_a_plan_keeps_to_its_runs(runs, count):
    plan = make_plan(runs, count)
    assert plan.runs <= runs and 1 <= plan.finalists <= plan.first <= count and plan.confirming >= 1
    sizes = [*plan.halving, plan.finalists]
    assert all(after == max(math.ceil(before / 2), plan.finalists) for before, after in itertools.pairwise(sizes))
    assert runs - plan.runs < 2 * (plan.finalists + 1) or plan.first < count


def test_too_few_runs_are_refused():
    with pytest.raises(ValueError, match=r"^runs: "):
        make_plan(1, 5)


def outcome(name, losses, speed=2.0, confirming=0):
    return Outcome(name, {}, losses, [speed] * len(losses), [0.5] * len(losses), [speed] * len(losses), confirming)


def test_confidence_is_students():
    one = outcome("a", [9.0, 0.0, 0.1, 0.2], confirming=1)
    assert one.loss == pytest.approx(0.1)
    # mean 0.1, standard error 0.1 / sqrt(3); t = 0.2 * sqrt(3) at two degrees of freedom
    assert one.confidence(0.3) == pytest.approx(0.5 + (2 * 3**0.5) / (2 * (2 + 12) ** 0.5), abs=1e-9)
    assert one.confidence(0.1) == pytest.approx(0.5)
    assert outcome("b", [0.1]).confidence(0.2) is None
    assert outcome("c", [0.1, 0.1]).confidence(0.2) == 1.0 and outcome("c", [0.3, 0.3]).confidence(0.2) == 0.0


def test_the_fastest_that_is_surely_within_the_bound_is_chosen():
    fast, middle, slow = (
        outcome("fast", [0.3, 0.5], 3.0),
        outcome("middle", [-0.3, 0.5], 2.0),
        outcome("slow", [0, 0], 1.5),
    )
    assert [one.name for one in ranked([slow, fast, middle], 0.2)] == ["middle", "slow", "fast"]
    assert choose([fast, middle, slow], 0.2, 0.9) == (slow, True)
    assert choose([fast, middle], 0.2, 0.9) == (middle, False)
    assert choose([fast], 0.2, 0.9) == (None, False)
    assert choose([outcome("slower", [0.0, 0.0], 0.9)], 0.2, 0.9) == (None, False)


# What is lost


def test_losses():
    run, plain = (
        {"quality": {"psnr": 20.0, "agreement": 31.0, "LPIPS (VGG)": 0.3}},
        {"quality": {"psnr": 20.5, "LPIPS (VGG)": 0.1}},
    )
    assert Measure("psnr", 0.2).loss(run, plain) == pytest.approx(0.5) and Measure("psnr", 0.2).limit == 0.2
    assert Measure("agreement", 30).loss(run, plain) == -1 and Measure("agreement", 30).limit == 0
    assert Measure("LPIPS (VGG)", 0.1).loss(run, plain) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"^measure: .*psnr, agreement.*got 'clip'"):
        Measure("clip", 0.1).loss(run, plain)
    assert make_measure(None, None, truth=True) == Measure("psnr", 0.2)
    assert make_measure(None, None, truth=False) == Measure("agreement", 25.0)


def test_a_race_is_the_runs_alone(tmp_path):
    stages = [replace(BASE, steps=4), replace(BASE, steps=2, t_high=0.5)]
    steps = []
    where = context(tmp_path, on_step=lambda: steps.append(1))
    told = {"often": {"eta": 1.0, "grids": WIDE}}
    found = race(where, "cactus", "name", 5, [one.as_dict() for one in stages], False, told, [], {})["runs"]
    assert len(steps) == 2 * 6 and list(found) == ["none", "often"]
    assert found["none"]["quality"]["agreement"] == 100.0 and found["none"]["speed_up"] == 1.0
    assert found["none"]["x"] == 0 < found["often"]["x"] and found["often"]["bound_step"] > 1
    assert found["none"]["table_bytes"] == 0 < found["often"]["table_bytes"] <= BASE.memory_budget
    prior, scene = tiny_prior(), None
    for stage in stages:
        alone = replace(stage, seed=5, **as_settings(told["often"]))
        with SdsRun(prior, prior.resolve("cactus"), alone, previous=scene) as run:
            for _ in range(alone.steps):
                run.train_step()
        scene = run.scene
    from hash3d_cuda.sds.metrics import image_quality, known_truth

    wanted = image_quality(evaluation_views(run), known_truth(run.subject, 64))
    assert found["often"]["quality"]["psnr"] == pytest.approx(wanted["psnr"], abs=1e-6)


def test_no_table_is_larger_than_its_run_can_fill():
    table = COSTS["table"]["2"]
    assert fitted(BASE, {"2": table}) == {"capacity": 24, "memory_budget": None}
    assert fitted(replace(BASE, second_weight=1.0), {"2": table})["capacity"] == 48
    small = replace(BASE, memory_budget=None, capacity=6)
    assert (
        fitted(small, {"2": table})["capacity"]
        == 6
        == fitted(replace(small, second_weight=1.0), {"2": table})["capacity"]
    )
    assert fitted(replace(BASE, objective="refine", denoise_stride=100), {"2": table})["capacity"] == 20
    for changes in ({"cache": False}, {"mode": "noise"}, {"position": 1}):
        assert fitted(replace(BASE, **changes), {"2": table}) == {}
    assert replace(BASE, **fitted(BASE, {"2": table})).capacity == 24


# The whole search, on a race whose outcome is known


LOSSES = {1: 0.6, 2: 0.15, 3: 0.05, 4: 0.0}  # by position; a seed adds or takes a little


def known_race(context, subject, kind, seed, stages, two_priors, variants, measures, tables):
    """A unit's function: fast at small positions, and lossy there."""
    with (context.out / "races").open("a") as file:
        file.write(json.dumps([subject, seed, list(variants)]) + "\n")
    noise = 0.02 * (-1) ** (seed + OBJECTS.index(subject))
    runs = {"none": {"quality": {"psnr": 20.0, "agreement": 100.0}, "speed_up": 1.0, "x": 0.0, "bound_step": 1.0}}
    for name, changes in variants.items():
        served = changes["eta"] * 0.8
        psnr = 20.0 - changes["eta"] * (LOSSES[changes["position"]] + noise)
        speed = 1 / (1 - 0.8 * served * (1 - 0.2 * changes["position"]))
        quality = {"psnr": psnr, "agreement": 30.0 - changes["eta"]}
        runs[name] = {"quality": quality, "speed_up": speed, "x": served, "bound_step": speed}
        for _ in range(stages[0]["steps"] if context.on_step is not None else 0):
            context.on_step()
    return {"runs": runs}


def known_costs(context, subject, kind, settings, positions):
    return {
        "share": 0.8,
        "r": {str(k): 0.2 * k for k in positions},
        "table": dict.fromkeys(map(str, positions), COSTS["table"]["1"]),
    }


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr("hash3d_cuda.tune.search.race", known_race)
    monkeypatch.setattr("hash3d_cuda.tune.search.calibrate", known_costs)


def request_for(**changes) -> Request:
    space = {"eta": (0.5, 1.0), "position": (1, 2, 3, 4), "grids": (WIDE,)}
    told = dict(
        title="tiny", stages=[BASE.as_dict()], full_stages=[replace(BASE, steps=50).as_dict()],
        subjects=[(name, "name") for name in OBJECTS], space=space, measure=Measure("psnr", 0.2), runs=40,
    )  # fmt: skip
    return Request(**{**told, **changes})


def races(out: Path) -> list:
    path = out / "races"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_best_setting_is_found_within_the_runs(tmp_path, known):
    content = tune(context(tmp_path), request_for())
    chosen = content["chosen"]
    assert chosen["changes"] == {"eta": 1.0, "position": 2, "grids": WIDE} and chosen["confident"]
    assert chosen["loss"] == pytest.approx(0.15, abs=0.02) and chosen["confidence"] > 0.9
    assert content["runs_done"] == sum(len(names) + 1 for *_, names in races(tmp_path)) <= 40
    assert content["plan"]["halving"][0] == 8 and content["ended"] == "all runs done"
    units = [(subject, seed) for subject, seed, _ in races(tmp_path)]
    assert len(set(units)) == len(units), "every round is on an object and a seed of its own"
    finalists = races(tmp_path)[-1][2]
    assert (
        chosen["judging_runs"]
        == content["plan"]["confirming"]
        == sum(names == finalists for *_, names in races(tmp_path)[2:])
    )
    assert chosen["whole_run"]["steps"] == 50 and chosen["whole_run"]["x"] > chosen["whole_run"]["x_here"]


def test_a_search_that_was_stopped_goes_on(tmp_path, known, monkeypatch):
    whole = tune(context(tmp_path / "whole"), request_for())
    out = tmp_path / "stopped"
    count = 0

    def stop(key, steps, left):
        nonlocal count
        count += 1
        if count == 4:  # before the third race
            raise KeyboardInterrupt

    part = tune(context(out), request_for(), stop)
    assert part["ended"] == "interrupted" and part["points"] == whole["points"][: len(part["points"])]
    assert len(races(out)) == 2
    again = tune(context(out), request_for())
    assert races(out) == races(tmp_path / "whole"), "nothing ran twice"
    assert again == whole


def test_an_interrupt_before_anything_is_known_is_one(tmp_path, known):
    def stop(key, steps, left):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(context(tmp_path), request_for(), stop)


def test_minutes_end_it_between_rounds(tmp_path, known):
    content = tune(context(tmp_path), request_for(minutes=0.0))
    assert content["ended"] == "out of time" and len(races(tmp_path)) == 1
    assert content["chosen"]["judging_runs"] == 0 and not content["chosen"]["confident"]


def test_nothing_within_the_bound_is_no_choice(tmp_path, known):
    request = request_for(measure=Measure("psnr", -1.0))
    content = tune(context(tmp_path), request)
    assert content["chosen"] is None
    (tmp_path / report.SETTINGS).write_text("eta = 1.0\n")
    report.write(content, tmp_path, "hash3d tune", "tiny", {})
    assert not (tmp_path / report.SETTINGS).exists()
    assert "No setting was faster within the bound" in (tmp_path / report.MARKDOWN).read_text()


def test_a_space_that_promises_nothing_is_one_line(tmp_path, known):
    with pytest.raises(ValueError, match=r"^tune: none of 1 combinations promises a speed-up; the U-Net is 80%"):
        tune(context(tmp_path), request_for(space={"eta": (0.0,)}))


def test_steps_left_are_told(tmp_path, known):
    seen, taken = [], []
    where = context(tmp_path, on_step=lambda: taken.append(1))
    tune(where, request_for(), lambda key, steps, left: seen.append((key, steps, left)))
    assert (
        seen[0][0] == "costs" and seen[-1][2] == 0 and all(a[2] == b[1] + b[2] for a, b in itertools.pairwise(seen[1:]))
    )
    again = []
    tune(where, request_for(), lambda key, steps, left: again.append(steps))
    assert set(again) == {0}


# The command


@pytest.fixture
def tiny(monkeypatch, known):
    """The command line with the stand-in for the shipped prior."""
    prior = tiny_prior()
    monkeypatch.setattr("hash3d_cuda.prior.load_prior", lambda *_: prior)
    monkeypatch.setattr(TuneContext, "prior", property(lambda self: prior))


def test_the_command_writes_settings_that_generate_reads(tiny, tmp_path, capsys):
    out = tmp_path / "tuned"
    vary = ["--vary", "eta=0.5 1", "--vary", f"grids={WIDE}", "--vary", "min_similarity=none"]
    command = ["tune", *OBJECTS, "--out", str(out), *vary, "--scene", "gaussians", "--steps", "12", "--runs", "30"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "Chosen: eta 1, grids 90/360/1/1000, position 2" in printed and "(chosen)" in printed
    assert read_settings(out / "settings.toml") == {
        "scene": "gaussians",
        "eta": 1,
        "grids": [[90.0, 360.0, 1.0, 1000.0]],
        "position": 2,
    }
    assert (out / "settings.toml").read_text().startswith("# Found by hash3d ")
    content = json.loads((out / "tune.json").read_text())
    assert content["chosen"]["name"] in (out / "tune.md").read_text() and (out / "tune.png").stat().st_size > 5000
    assert len(content["points"]) + len({(p["subject"], p["seed"]) for p in content["points"]}) == content["runs_done"]
    before = len(races(out))
    assert main([*command, "--quiet"]) == 0 and len(races(out)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "1"], "runs: expected an integer of at least 2"),
        (["--vary", "colour=1"], "vary: 'colour'"),
        (["--measure", "agreement", "--max-loss", "1"], "--max-loss"),
        (["--measure", "psnr", "--min-agreement", "30"], "--min-agreement"),
        (["--recipe-scale", "paper"], "--recipe-scale goes with --recipe"),
        (["--recipe", "no-such"], "recipe: 'no-such'"),
        (["--confidence", "2"], "confidence: "),
        (["--minutes", "-1"], "minutes: "),
        (["--steps", "1"], "steps: "),
        (["picture.png", "--recipe", "dreamfusion"], "takes a name or prompt"),
        ([" "], "subject: expected"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, capsys, arguments, message):
    assert main(["tune", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hash3d: error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_foreign_files_are_refused(tiny, tmp_path, capsys):
    (tmp_path / "tune.md").write_text("mine")
    assert main(["tune", *OBJECTS, "--out", str(tmp_path)]) == 1
    assert "tune.md, which hash3d tune did not write" in capsys.readouterr().err
    assert (tmp_path / "tune.md").read_text() == "mine"


def test_without_a_truth_it_is_the_agreement(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hash3d_cuda.sds.metrics.known_truth", lambda subject, size: None)
    command = ["tune", *OBJECTS, "--out", str(tmp_path), "--vary", f"grids={WIDE}", "--steps", "12", "--runs", "12"]
    assert main([*command, "--min-agreement", "29.2"]) == 0
    assert "PSNR against the views of the run without the cache at least 29.2 dB" in capsys.readouterr().out
    assert json.loads((tmp_path / "tune.json").read_text())["measure"] == "agreement"
    assert main([*command, "--measure", "psnr"]) == 2
