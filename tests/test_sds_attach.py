"""What settings put under a prior, and what a run tells of an eta that was moved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sds_stand_ins import TinyPrior

from hash3d_cuda.keys import Grid
from hash3d_cuda.sds.attach import attach_caches, cache_config
from hash3d_cuda.sds.metrics import control_metrics
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings

WIDE = (Grid(90.0, 360.0, 1.0, 1000.0),)
SMALL = GenerateSettings(steps=14, scene_size=8, grids=WIDE, capacity=8, num_buckets=101)


def test_options_reach_the_cache():
    asked = dict(
        eta=0.3, position=3, mode="noise", queue_length=2, min_similarity=0.5, max_age=4, target_quality=0.8, audit=0.2,
        seed=7,
    )  # fmt: skip
    config = cache_config(replace(SMALL, aggregation="uniform", feature_dtype="int8", **asked), groups=3, conditions=2)
    assert {name: getattr(config, name) for name in asked} == asked
    assert (config.groups, config.max_conditions, config.weighting, config.capacity) == (3, 2, "uniform", 8)
    assert config.feature_dtype is torch.int8 and config.grids == WIDE
    with pytest.raises(ValueError, match=r"^target_quality: "):
        cache_config(replace(SMALL, target_x=0.5, target_quality=0.9))


@pytest.mark.parametrize("target", [{"target_x": 0.1}, {"target_quality": 0.9}, {"audit": 0.5}])
def test_refinement_keeps_its_intervals_whatever_the_targets(target):
    (cache,) = attach_caches([TinyPrior()], replace(SMALL, objective="refine", **target))
    config = cache.config
    assert (config.eta, config.target_x, config.target_quality, config.audit) == (1.0, None, None, None)


def test_a_target_for_the_share_has_a_course_without_audits():
    prior = TinyPrior()
    with SdsRun(prior, prior.resolve("cube"), replace(SMALL, eta=0.6, target_x=0.5)) as run:
        advance(run, SMALL.steps)
        (told,) = control_metrics(run.caches)
    course = told["course"]
    assert course["forward"] == list(range(1, SMALL.steps + 1)) and course["eta"][0] == 0.6
    assert len(set(course["eta"])) > 3 and told["audits"]["eta"] == []


def advance(run, step):
    while run.step < step:
        run.train_step()


def test_a_run_tells_what_moved_eta_and_a_resumed_one_goes_on(tmp_path):
    settings = replace(SMALL, eta=0.6, target_quality=0.9, audit=0.3)
    found = []
    for stop in (None, 8):
        prior = TinyPrior()
        with SdsRun(prior, prior.resolve("cube"), settings) as run:
            advance(run, stop or settings.steps)
            run.save(tmp_path)
            last = run
        if stop is not None:
            with SdsRun(prior, prior.resolve("cube"), settings) as last:
                last.restore(tmp_path)
                advance(last, settings.steps)
        found.append((control_metrics(last.caches), dict(last.served)))
    (told,), _ = found[0]
    assert found[0] == found[1]
    assert (told["target_quality"], told["audit"], told["target_x"]) == (0.9, 0.3, None)
    assert told["course"]["forward"] == list(range(1, settings.steps + 1)), "of both parts"
    columns = told["audits"]
    assert len(columns["error"]) >= 4 and sum(columns["found"]) == told["audited"]
    assert columns["eta"][0] == 0.6 and len(set(columns["eta"])) > 1
    pairs = zip(columns["error"], columns["found"], strict=True)
    assert told["mean_error"] == pytest.approx(sum(error * count for error, count in pairs) / told["audited"])
    assert control_metrics([]) is None
