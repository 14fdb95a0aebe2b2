"""Settings and the view sampler: what they accept, and that everything follows from (seed, step)."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from hash3d_cuda.keys import PAPER_GRIDS, Grid
from hash3d_cuda.sds.sampler import ViewSampler
from hash3d_cuda.sds.settings import GenerateSettings, parse_grids


@pytest.mark.parametrize(
    "field, value",
    [
        ("steps", 0), ("steps", -3), ("steps", 2.5), ("views_per_step", 0), ("eta", 1.01), ("eta", -0.1),
        ("eta", float("nan")), ("position", 0), ("seed", -1), ("scene", "cloud"), ("schedule", "cosine"),
        ("weighting", "none"), ("guidance_scale", -1.0), ("t_low", 0.99), ("memory_budget", "lots"),
        ("memory_budget", 0), ("feature_dtype", "int4"), ("device", "tpu"), ("grids", ()), ("grids", ((1, 2, 3),)),
        ("grids", ((0, 1, 1, 1),)), ("grids", (5,)), ("grids", (("a", 1, 1, 1),)), ("grids", ((None, 1, 1, 1),)),
        ("cache", "yes"), ("lr_scale", 0.0), ("scene_size", 1), ("turntable_size", 4),
    ],
)  # fmt: skip
def test_bad_values_name_the_field(field, value):
    with pytest.raises((ValueError, TypeError), match="(?i)grid" if field == "grids" else field):
        GenerateSettings(**{field: value})


def test_round_trip_through_json():
    settings = GenerateSettings(steps=7, grids=[(30, 30, 0.2, 100)], memory_budget="2MiB", scene_size=12)
    assert settings.memory_budget == 2 * 2**20 and settings.grids == (Grid(30, 30, 0.2, 100),)
    again = GenerateSettings.from_dict(json.loads(json.dumps(settings.as_dict())))
    assert again == settings and again.differences(settings) == []
    assert settings.differences(GenerateSettings(steps=8, memory_budget="2MiB", scene_size=12)) == [
        "steps",
        "grids",
    ]
    with pytest.raises(ValueError, match="colour"):
        GenerateSettings.from_dict({"colour": 1})


def test_grids_from_the_command_line():
    assert parse_grids("paper") == PAPER_GRIDS
    assert parse_grids("10,10,.1,10; 30,30,.2,100") == (Grid(10, 10, 0.1, 10), Grid(30, 30, 0.2, 100))
    for bad in ("", "1,2,3", "a,b,c,d", "1,2,3,4;5"):
        with pytest.raises(ValueError, match="grids"):
            parse_grids(bad)


def sampler(**settings):
    return ViewSampler(GenerateSettings(**settings), (-10.0, 60.0), (1.8, 2.2))


def test_views_follow_from_seed_and_step_alone():
    first, second = sampler(seed=3), sampler(seed=3)
    second.views(0)
    assert first.views(5) == second.views(5)
    assert first.views(5) != first.views(6) and first.views(5) != sampler(seed=4).views(5)
    assert first.noise_seed(5) == second.noise_seed(5) != first.noise_seed(6)


def test_poses_lie_in_range_and_azimuth_is_stratified():
    drawn = [sampler(views_per_step=4).views(step) for step in range(200)]
    elevation = np.array([view.elevation for view in drawn])
    radius, azimuth = np.array([view.radius for view in drawn]), np.array([view.azimuth for view in drawn])
    assert -10 <= elevation.min() < -5 and 55 < elevation.max() <= 60
    assert radius.min() >= 1.8 and radius.max() <= 2.2
    assert azimuth.min() >= 0 and azimuth.max() < 360
    gaps = np.diff(np.sort(azimuth, axis=1), axis=1)
    assert gaps.max() < 180, "each quarter of the circle has one view"
    assert np.histogram(azimuth, 8, (0, 360))[0].min() > 60


def test_timesteps():
    annealed = sampler(steps=11, t_high=0.98, t_low=0.3)
    times = [annealed.views(step).timestep for step in range(11)]
    assert times[0] == [979, 979] and times[-1] == [300, 300]
    assert all(a[0] > b[0] for a, b in pairwise(times))
    uniform = sampler(schedule="uniform", t_high=0.6, t_low=0.4, views_per_step=8)
    flat = np.array([uniform.views(step).timestep for step in range(50)])
    assert flat.min() >= 400 and flat.max() <= 599 and len(np.unique(flat)) > 100
    assert sampler(steps=1).views(0).timestep == [979, 979]
