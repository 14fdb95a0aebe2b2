"""``cache.sampling()`` under diffusers pipelines: which steps are computed in full, and its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pipelines import SMALL, apply_every, build_pipeline, draw, watched
from unet_shapes import build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import apply_hash3d


def test_which_steps_are_full() -> None:
    pipe = build_pipeline("text")
    for interval, expected in ((1, "mmmmmm"), (2, "mhmhmh"), (4, "mhhhmh"), (20, "mhhhhh")):
        cache = apply_every(pipe, interval)
        kinds = watched(cache)
        with cache.sampling():
            draw(pipe)
        assert "".join(kind[0] for kind in kinds) == expected
        assert cache.stats().rows_saved == 2 * expected.count("h") and len(cache.table) == 1
        cache.remove()


def test_rows_without_guidance_are_counted() -> None:
    pipe = build_pipeline("text")
    cache = apply_every(pipe, 3)
    with cache.sampling():
        draw(pipe, guidance_scale=1.0)
    assert (cache.stats().hits, cache.stats().rows_saved) == (4, 4)  # one row a step, not groups of them
    cache.remove()


def test_steps_that_share_a_timestep() -> None:
    """Heun's method asks twice at each timestep: steps are counted, not timesteps."""
    pipe = build_pipeline("text", "HeunDiscreteScheduler")
    cache = apply_every(pipe, 3)
    kinds = watched(cache)
    with cache.sampling():
        draw(pipe, num_inference_steps=4)
    assert "".join(kind[0] for kind in kinds) == "mhhmhhm"
    cache.remove()


def test_whole_outputs_reused() -> None:
    pipe = build_pipeline("text")
    cache = apply_every(pipe, mode="noise")
    with cache.sampling():
        draw(pipe)
    assert (cache.stats().hits, cache.stats().misses) == (4, 2)
    cache.remove()


@pytest.mark.parametrize("mode", ["feature", "noise"])
def test_a_cached_step_copies_nothing_out_of_the_table(mode: str) -> None:
    """The table is not queried, and gives the same when it must be."""
    pipe = build_pipeline("text")
    cache = apply_every(pipe, mode=mode)
    with cache.sampling():
        first = draw(pipe)
        assert cache.table.stats().queries == 0 and cache.stats().hits == 4
        with torch.inference_mode():  # where nobody could see that a feature was written to
            assert torch.equal(draw(pipe), first)
    assert cache.table.stats().hits == 4 and cache.stats().hits == 8
    cache.remove()


def test_a_feature_that_the_tail_scales_in_place() -> None:
    """FreeU does: each cached step scales the feature as it was, not what the last one left."""
    pipe = build_pipeline("text")
    pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    cache = apply_every(pipe, 6)
    with cache.sampling(), torch.no_grad():
        counted = draw(pipe)
    assert cache.stats().hits == 5 and cache.table.stats().hits == 5
    with cache.sampling(), torch.inference_mode():
        assert torch.equal(draw(pipe), counted)
    cache.remove()


def test_timesteps_are_not_waited_for() -> None:
    """What a pipeline hands over is told by where it lies: even a cache that must not read it works."""
    pipe = build_pipeline("text")
    cache = apply_every(pipe, strict=True)
    fetched = []
    cache._hooked.copies.fetch = lambda name, value: fetched.append(name) or value  # type: ignore[method-assign]
    with cache.sampling():
        draw(pipe)
    assert "timestep" not in fetched
    assert cache.stats().hits == 4
    cache.remove()


def test_the_wrong_block_is_refused() -> None:
    unet = build_unet("sd15", **SMALL)
    cache = apply_hash3d(unet, Hash3DConfig.every(3))
    with pytest.raises(RuntimeError, match=r"use sampling\(\)"), cache.views(0, 0, 1):
        pass
    cache.remove()
    cache = apply_hash3d(unet, Hash3DConfig())
    with pytest.raises(RuntimeError, match="every"), cache.sampling():
        pass
    cache.remove()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eta", 0.5),
        ("groups", 2),
        ("decide", "device"),
        ("match", "bucket"),
        ("min_similarity", 0.9),
        ("max_age", 1),
        ("max_change", 0.1),
        ("target_x", 0.5),
    ],
)
def test_options_that_would_change_what_is_full(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected .* interval=3"):
        Hash3DConfig.every(3, **{name: value})


@pytest.mark.parametrize("interval", [0, 2.5, True, None])
def test_what_is_no_interval(interval: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="interval: expected an integer of at least 1"):
        Hash3DConfig.every(interval)


def test_memory_is_one_entry_per_condition() -> None:
    assert Hash3DConfig.every(3).capacity == 1 and Hash3DConfig.every(3, max_conditions=4).capacity == 4
    assert Hash3DConfig.every(3, memory_budget="1MiB").capacity is None
