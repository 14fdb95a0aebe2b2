"""Views that return: counts, which entries must be live, places inside cells, coverage, and runs that use them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sds_stand_ins import TinyPrior

from hash3d_cuda.sds.anchors import AnchorPlan, anchor_place, inside_cell
from hash3d_cuda.sds.coverage import coverage
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.sampler import ViewSampler
from hash3d_cuda.sds.settings import ANCHOR_GRIDS, PRESETS, GenerateSettings

FAST = PRESETS["fast"]


def sampler(**options):
    return ViewSampler(GenerateSettings(**{**FAST, **options}), (-10.0, 60.0), (1.8, 2.2))


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 60), batch=st.integers(1, 5), reuse=st.floats(0, 1), pool=st.integers(1, 40),
    power=st.floats(0.2, 6), first=st.none() | st.integers(1, 40), until=st.floats(0, 1),
)  # fmt: skip
def test_views_return_to_live_entries_of_earlier_steps_only(steps, batch, reuse, pool, power, first, until):
    plan = AnchorPlan(steps * batch, batch, reuse, pool, power, first, until)
    firsts = [step * batch + i for step in range(steps) for i, (_, fresh) in enumerate(plan.of_step(step)) if fresh]
    assert [plan.used(number) for number in range(len(firsts) + 2)] == [*firsts, steps * batch, steps * batch]
    known = 0
    for step in range(steps):
        chosen = plan.of_step(step)
        fresh = [number for number, is_fresh in chosen if is_fresh]
        assert fresh == list(range(known, known + len(fresh)))
        returned = [number for number, is_fresh in chosen if not is_fresh]
        assert all(max(0, known - pool) <= number < known for number in returned)
        known += len(fresh)
    views = steps * batch
    total = max(round((1 - reuse) * views), min(batch, views))
    assert known == total
    assert all(plan.fresh(view + 1) - plan.fresh(view) in (0, 1) for view in range(views))
    assert plan.fresh(min(max(round(until * views), total) + batch - 1, views)) == total
    after = [[fresh for _, fresh in plan.of_step(step)] for step in range(-(-plan.head // batch), steps)]
    assert all(all(step) or not any(step) for step in after)


def test_share_and_timing_of_returns():
    for power in (1.0, 2.0, 4.0):
        plan = AnchorPlan(800, 2, 0.85, 20, power)
        fresh = [is_fresh for step in range(400) for _, is_fresh in plan.of_step(step)]
        assert sum(fresh) == 120 and all(fresh[:20])
        late = sum(fresh[600:])
        assert late == pytest.approx(100 * (1 - (580 / 780) ** power), abs=2)


def test_few_views_first_and_the_rest_until_a_share_of_the_run():
    plan = AnchorPlan(280, 2, 0.85, 120, power=1.0, first=8, until=0.5)
    fresh = [is_fresh for step in range(140) for _, is_fresh in plan.of_step(step)]
    assert sum(fresh) == 42 and all(fresh[:8]) and not any(fresh[140:])
    assert fresh[::2] == fresh[1::2]
    assert set(np.diff(np.flatnonzero(fresh[8::2]))) == {3, 4}  # 17 of 66 steps
    assert AnchorPlan(280, 2, 0.85, 120).head == 42 and AnchorPlan(280, 2, 0.85, 120, first=1).head == 2


@settings(max_examples=100, deadline=None)
@given(
    value=st.floats(-10, 60), size=st.floats(0.5, 100), share=st.floats(0, 1), jitter=st.floats(0, 1),
)  # fmt: skip
def test_places_stay_in_cell_and_range(value, size, share, jitter):
    place = inside_cell(value, size, -10.0, 60.0, share, jitter)
    assert -10 <= place <= 60
    cell = np.floor(np.float32(place) / np.float32(size))
    assert cell == math.floor(value / size) or place == value


def test_anchors_in_a_row_cover_the_views():
    places = np.array([anchor_place(number, np.zeros(4)) for number in range(1000)])
    for start in (0, 137, 640):
        for axis in range(4):
            counts = np.bincount((places[start : start + 64, axis] * 8).astype(int), minlength=8)
            assert counts.min() >= 6 and counts.max() <= 10
        azimuth, elevation = places[start : start + 20, 0], places[start : start + 20, 1]
        assert len({*zip((azimuth * 4).astype(int), (elevation * 2).astype(int), strict=True)}) == 8


def test_views_follow_from_seed_and_step_and_stay_in_range():
    first, second = sampler(seed=3), sampler(seed=3)
    second.views(0)
    assert first.views(50) == second.views(50) != sampler(seed=4).views(50)
    for step in (0, 7, 399):
        views = first.views(step)
        assert all(isinstance(value, float) for value in (*views.elevation, *views.azimuth, *views.radius))
        assert all(-10 <= e <= 60 for e in views.elevation) and all(1.8 <= r <= 2.2 for r in views.radius)
        assert all(0 <= a < 360 for a in views.azimuth)


def test_annealed_timesteps_are_the_anchors_and_keep_the_schedule():
    own, schedule = sampler(anchors=20), sampler(sampler="uniform")
    times: dict[int, set[int]] = {}
    lags = []
    for step in range(400):
        drawn, (annealed, _) = own.views(step).timestep, schedule.views(step).timestep
        for (number, _), timestep in zip(own.plan.of_step(step), drawn, strict=True):
            times.setdefault(number, set()).add(timestep)
            lags.append(timestep - annealed)
    assert all(len(found) == 1 for found in times.values())
    falling = [found.pop() for _, found in sorted(times.items())]
    assert falling == sorted(falling, reverse=True) and falling[-1] >= 300
    assert abs(np.mean(lags)) < 15 and max(map(abs, lags)) < 250


def test_a_drawn_timestep_stays_in_the_cell_of_its_anchor():
    views = sampler(steps=200, schedule="uniform", grids=((5, 5, 0.5, 50),), anchors=4, views_per_step=1, jitter=0.0)
    seen: dict[tuple[float, float], set[int]] = {}
    for step in range(200):
        view = views.views(step)
        seen.setdefault((view.azimuth[0], view.elevation[0]), set()).add(view.timestep[0] // 50)
    assert len(seen) > 20 and all(len(cells) == 1 for cells in seen.values())
    assert len(set.union(*seen.values())) > 8


@pytest.mark.parametrize("uniform", [True, False])
def test_coverage_is_reported(uniform):
    found = coverage(sampler(sampler="uniform") if uniform else sampler(anchors=40), 200)
    assert found["window"] == 128 and found["regions"] == 16
    assert found["seen_least"] >= 0.9 and 0 < found["distance"] <= found["distance_most"] < 0.4
    staring = sampler(anchors=1, reuse=1.0)
    assert coverage(staring, 100)["distance"] > 0.8
    assert coverage(staring, 0) == {}


@pytest.mark.parametrize("spread", [{}, {"first_fresh": 2, "fresh_until": 0.8, "fresh_power": 1.0}])
def test_a_run_serves_what_the_plan_says_and_resumes(spread, tmp_path):
    options = GenerateSettings(steps=16, scene_size=8, reuse=0.7, anchors=5, **spread, **FAST)
    prior = TinyPrior()
    with SdsRun(prior, prior.resolve("cube"), options) as run:
        for _ in range(16):
            if run.step == 9:
                run.save(tmp_path)
            run.train_step()
        assert run.cache.table.capacity == 7
        whole = run.served
    assert whole["hits"] / 32 == pytest.approx(0.7, abs=0.1)  # a fresh anchor may lie in the cell of a live one
    with SdsRun(prior, prior.resolve("cube"), options) as run:
        run.restore(tmp_path)
        while run.step < 16:
            run.train_step()
        assert run.served == whole


@pytest.mark.parametrize(
    "field, value",
    [
        ("sampler", "clever"), ("reuse", 1.5), ("anchors", 0), ("jitter", -0.1), ("fresh_power", 0.0), ("max_age", 0),
        ("first_fresh", 0), ("first_fresh", 2.5), ("fresh_until", 1.1),
        ("max_change", -1.0), ("target_x", 2.0),
    ],
)  # fmt: skip
def test_bad_values_name_the_field(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        GenerateSettings(**{field: value})


def test_the_preset_is_settings():
    fast = GenerateSettings(**FAST)
    assert fast.grids == ANCHOR_GRIDS and fast.eta == 1.0 and fast.memory_budget is None
    assert GenerateSettings(**FAST, memory_budget="1MiB").memory_budget == 2**20
    assert GenerateSettings.from_dict(fast.as_dict()) == fast
