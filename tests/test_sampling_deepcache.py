"""``cache.sampling()`` gives what DeepCache gives at its interval and branch, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pipelines import apply_every, build_pipeline, draw
from torch import Tensor

DeepCache = pytest.importorskip("DeepCache", reason="the package DeepCache is missing")

SCHEDULERS = ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "LCMScheduler"]


def by_deepcache(pipe: Any, interval: int, branch: int, **options: Any) -> Tensor:
    helper = DeepCache.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        return draw(pipe, **options)
    finally:
        helper.disable()


def check_equal(pipe: Any, interval: int, branch: int, **options: Any) -> None:
    """The same picture, bit for bit, with steps that were not computed in full."""
    theirs = by_deepcache(pipe, interval, branch, **options)
    cache = apply_every(pipe, interval, position=branch + 1)
    with cache.sampling():
        mine = draw(pipe, **options)
    stats = cache.stats()
    cache.remove()
    assert torch.equal(mine, theirs)
    assert stats.hits > 0 and stats.hits + stats.misses == stats.forwards


@pytest.mark.parametrize(
    ("kind", "scheduler"), [*(("text", name) for name in SCHEDULERS), *(("image", name) for name in SCHEDULERS[1::2])]
)
def test_equal_to_deepcache_under_each_scheduler(kind: str, scheduler: str) -> None:
    check_equal(build_pipeline(kind, scheduler), interval=3, branch=1)


@pytest.mark.parametrize("branch", [0, 2, 3, 5])
def test_equal_to_deepcache_at_each_branch(branch: int) -> None:
    check_equal(build_pipeline("text"), interval=2, branch=branch)


@pytest.mark.parametrize("kind", ["xl", "control"])
def test_equal_to_deepcache_in_other_pipelines(kind: str) -> None:
    check_equal(build_pipeline(kind, "EulerDiscreteScheduler"), interval=4, branch=1)


@pytest.mark.parametrize("options", [{"prompts": 3}, {"num_images_per_prompt": 2}, {"guidance_scale": 1.0}], ids=str)
def test_equal_to_deepcache_in_batches(options: dict[str, Any]) -> None:
    check_equal(build_pipeline("text"), interval=3, branch=1, **options)


def test_inference_mode_and_back() -> None:
    pipe = build_pipeline("text")
    expected = by_deepcache(pipe, 3, 1)
    cache = apply_every(pipe)
    with torch.inference_mode(), cache.sampling():
        assert torch.equal(draw(pipe), expected)
    with cache.sampling():
        assert torch.equal(draw(pipe), expected)
    cache.remove()
