"""hash3d tune: the space, what is predicted, how runs are spent, what is chosen, and what a setting loses."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tune_cases import BASE, COSTS, WIDE, context, tiny_prior

from hash3d_cuda.sds.metrics import cache_metrics, image_quality, known_truth
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import DEFAULT_BUDGET, GenerateSettings
from hash3d_cuda.tune import make_space
from hash3d_cuda.tune.measure import Measure, make_measure
from hash3d_cuda.tune.race import evaluation_views, perceptual, race
from hash3d_cuda.tune.room import fitted
from hash3d_cuda.tune.rounds import Outcome, choose, make_plan, ranked
from hash3d_cuda.tune.screen import Prediction, calibrate, predict, spread
from hash3d_cuda.tune.space import FIELDS, SPACE, as_settings, candidates, label

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


ANCHORED = {"sampler": "anchored", "eta": 1.0, "grids": "anchor", "memory_budget": None}


@pytest.mark.parametrize(
    "changes",
    [
        {"eta": 0.7, "grids": WIDE},
        {"eta": 1.0, "grids": "30,60,1,300", "capacity": 6},
        {**ANCHORED, "anchors": 3, "reuse": 0.6},
        {"eta": 1.0, "grids": WIDE, "max_age": 1},
        {"eta": 0.1, "grids": WIDE, "target_x": 0.9},
        {"eta": 1.0, "grids": WIDE, "audit": 0.4},
    ],
)
def test_the_predicted_share_is_that_of_the_run(changes):
    prior = tiny_prior()
    (found,) = predict(prior, [BASE.as_dict()], 3, COSTS, [changes])
    asked = replace(BASE, seed=3, **as_settings(changes))
    with SdsRun(prior, prior.resolve("cactus"), asked) as run:
        for _ in range(asked.steps):
            run.train_step()
    assert found.x == cache_metrics(run.served)["x"] > 0
    assert found.speed_up == pytest.approx(1 / (1 - 0.8 * found.x * 0.8))


def test_what_draws_the_views_is_not_mistaken_for_the_same():
    shares = [{**ANCHORED, "reuse": reuse} for reuse in (0.3, 0.8)]
    few, many = predict(tiny_prior(), [BASE.as_dict()], 0, COSTS, shares)
    assert few.x < many.x
    told = {"eta": 0.9, "grids": WIDE}
    plain, aged, followed, held, audited = predict(
        tiny_prior(), [BASE.as_dict()], 0, COSTS,
        [told, {**told, "max_age": 1}, {**told, "target_x": 0.1}, {**told, "eta": 0.0, "target_quality": 0.9},
         {**told, "audit": 0.9}],
    )  # fmt: skip
    assert aged.x < plain.x and followed.x < plain.x and audited.x < plain.x < held.x + 0.2


def test_memory_that_was_not_given_is_that_of_the_sampler_in_the_run_and_in_the_settings_file():
    """What is varied over settings without a budget must be the table that ``--settings`` gives a run."""
    base = replace(BASE, memory_budget=None)
    for changes in ({"sampler": "anchored"}, {"sampler": "uniform"}, {"sampler": "anchored", "capacity": 9}):
        varied = replace(base, **as_settings({**ANCHORED, **changes}))
        written = {name: value for name, value in {**ANCHORED, **changes}.items() if value is not None}
        size = {"steps": BASE.steps, "views_per_step": BASE.views_per_step}  # of the run, not of the file
        assert varied.room() == GenerateSettings(**size, **as_settings(written)).room()
    back = replace(replace(base, sampler="anchored"), sampler="uniform")
    assert back.room() == base.room() == {"capacity": None, "memory_budget": DEFAULT_BUDGET}


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


def test_a_perceptual_score_is_measured_when_it_is_asked_for():
    from hash3d_cuda.perceptual import available

    name = "ST-LPIPS (Alex)"
    if available()[name] is not None:
        pytest.skip(f"{name}: {available()[name]}")
    subject = tiny_prior().resolve("chicken")
    truth = known_truth(subject, 64)
    assert perceptual(truth, truth, subject, [name]) == {name: pytest.approx(0.0, abs=1e-6)}
    assert perceptual(truth.flip(0), truth, subject, [name])[name] > 0.01
    assert perceptual(truth, None, subject, [name]) == {} == perceptual(truth, truth, subject, [])


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
    anchored = replace(BASE, **as_settings(ANCHORED), anchors=3)
    assert fitted(anchored, {"2": table})["capacity"] == 3 + BASE.views_per_step
    assert fitted(replace(anchored, second_weight=1.0), {"2": table})["capacity"] == 2 * (3 + BASE.views_per_step)
    tight = replace(BASE, steps=10**6)
    held = [fitted(replace(tight, feature_dtype=name), {"2": table})["capacity"] for name in ("float32", "int8")]
    assert held[1] > 2 * held[0]


def test_returning_views_are_held_against_uniform_ones(tmp_path):
    stages = [replace(BASE, **as_settings(ANCHORED), steps=6).as_dict()]
    told = ("cactus", "name", 0)
    drawn, plain = (
        race(context(tmp_path), *told, [values], False, {}, [], {})["runs"]["none"]["quality"]
        for values in (stages[0], replace(BASE, steps=6).as_dict())
    )
    assert drawn == plain
