"""``cache.sampling()`` under diffusers pipelines: equal to DeepCache at its interval and branch, never stale."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_pipelines import SMALL, build_pipeline, draw, normal
from torch import Tensor
from unet_shapes import build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d

DeepCache = pytest.importorskip("DeepCache", reason="the package DeepCache is missing")

SCHEDULERS = ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "LCMScheduler"]


def apply(pipe: Any, interval: int = 3, **options: Any) -> Hash3DCache:
    return apply_hash3d(pipe.unet, Hash3DConfig.every(interval, **options))


def by_deepcache(pipe: Any, interval: int, branch: int, **options: Any) -> Tensor:
    helper = DeepCache.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        return draw(pipe, **options)
    finally:
        helper.disable()


def watched(cache: Hash3DCache) -> list[str]:
    """Fills up with what becomes of each forward from now on."""
    kinds: list[str] = []
    run = cache._run_cached

    def noting(*args: Any) -> Any:
        output = run(*args)
        kinds.append(cache.last.kind)
        return output

    cache._run_cached = noting  # type: ignore[method-assign]
    return kinds


def check_equal(pipe: Any, interval: int, branch: int, **options: Any) -> None:
    """The same picture, bit for bit, with steps that were not computed in full."""
    theirs = by_deepcache(pipe, interval, branch, **options)
    cache = apply(pipe, interval, position=branch + 1)
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


def test_which_steps_are_full() -> None:
    pipe = build_pipeline("text")
    for interval, expected in ((1, "mmmmmm"), (2, "mhmhmh"), (4, "mhhhmh"), (20, "mhhhhh")):
        cache = apply(pipe, interval)
        kinds = watched(cache)
        with cache.sampling():
            draw(pipe)
        assert "".join(kind[0] for kind in kinds) == expected
        assert cache.stats().rows_saved == 2 * expected.count("h") and len(cache.table) == 1
        cache.remove()


def test_steps_that_share_a_timestep() -> None:
    """Heun's method asks twice at each timestep: steps are counted, not timesteps."""
    pipe = build_pipeline("text", "HeunDiscreteScheduler")
    cache = apply(pipe, 3)
    kinds = watched(cache)
    with cache.sampling():
        draw(pipe, num_inference_steps=4)
    assert "".join(kind[0] for kind in kinds) == "mhhmhhm"
    cache.remove()


CALLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "another prompt": ("text", {}, {"prompt": 5}),
    "another seed": ("text", {}, {"seed": 5}),
    "more prompts": ("text", {}, {"prompts": 2}),
    "another size": ("text", {}, {"height": 96, "width": 64}),
    "no guidance": ("text", {}, {"guidance_scale": 1.0}),
    "one step each": ("text", {"num_inference_steps": 1}, {"num_inference_steps": 1, "seed": 5}),
    "one step, then one later": ("text", {"timesteps": [900]}, {"timesteps": [400], "seed": 5}),
    "another picture": ("image", {}, {"image": normal(1, 4, 8, 8, seed=9)}),
    "a later start": ("image", {"strength": 1.0}, {"strength": 0.3, "seed": 5}),
    "another control picture": ("control", {}, {"image": torch.zeros(1, 3, 64, 64)}),
    "another size condition": ("xl", {}, {"original_size": (999, 9)}),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_second_call_reuses_nothing_of_the_first(case: str) -> None:
    """In one block, the second gives what it gives alone."""
    kind, *calls = CALLS[case]
    first, second = ({"num_inference_steps": 4, **options} for options in calls)
    scheduler = "DDPMScheduler" if "timesteps" in first else "DDIMScheduler"
    pipe = build_pipeline(kind, scheduler)
    cache = apply(pipe)
    with cache.sampling():
        alone = draw(pipe, **second)
    kinds = watched(cache)
    with cache.sampling():
        draw(pipe, **first)
        kinds.clear()
        again = draw(pipe, **second)
    assert kinds[0] == "miss" and torch.equal(again, alone)
    cache.remove()


def test_a_call_that_is_broken_off_leaves_nothing() -> None:
    pipe = build_pipeline("image")
    cache = apply(pipe, 9)
    with cache.sampling():
        alone = draw(pipe, strength=0.3, seed=5)
        with pytest.raises(StopIteration):
            draw(pipe, callback_on_step_end=_break_off)
        assert torch.equal(draw(pipe, strength=0.3, seed=5), alone)
    cache.remove()


def _break_off(*args: Any) -> None:
    raise StopIteration


def test_a_block_of_its_own_reuses_nothing_of_the_last() -> None:
    """A loop of one's own with numbers for timesteps, whose second run goes on where the first was broken off."""
    unet, tokens = build_unet("sd15", **SMALL), normal(2, 7, 12)
    cache = apply_hash3d(unet, Hash3DConfig.every(5))
    x = normal(2, 4, 8, 8)
    kinds = []
    for timesteps in ([900, 800, 700], [600, 500]):
        with cache.sampling():
            for t in timesteps:
                unet(x, t, encoder_hidden_states=tokens)
                kinds.append(cache.last.kind)
    assert kinds == ["miss", "hit", "hit", "miss", "hit"]
    cache.remove()


def test_embeddings_that_change_under_way() -> None:
    """Guidance that ends half-way, a prompt that is exchanged, one that is written to: each starts anew."""

    def halve(pipe: Any, i: int, t: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        if i == 2:
            pipe._guidance_scale = 1.0
            kept["prompt_embeds"] = kept["prompt_embeds"].chunk(2)[-1]
        return kept

    def exchange(pipe: Any, i: int, t: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": kept["prompt_embeds"] + 1} if i == 2 else kept

    def write(pipe: Any, i: int, t: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        if i == 2:
            kept["prompt_embeds"].mul_(2)
        return kept

    pipe = build_pipeline("text")
    cache = apply(pipe, 9)
    kinds = watched(cache)
    for change in (halve, exchange, write):
        kinds.clear()
        with cache.sampling():
            draw(pipe, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"])
        assert "".join(kind[0] for kind in kinds) == "mhhmhh", change
    cache.remove()


def _write_weight(unet: Any) -> None:
    with torch.no_grad():
        unet.mid_block.resnets[0].conv1.weight.mul_(2)


def _enable_freeu(unet: Any) -> None:
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)


@pytest.mark.parametrize("change", [_write_weight, _enable_freeu])
def test_a_model_that_changes_under_way(change: Callable[[Any], None]) -> None:
    pipe = build_pipeline("text")
    cache = apply(pipe, 9)
    kinds = watched(cache)

    def after_three(pipe: Any, i: int, t: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        if i == 2:
            change(pipe.unet)
        return kept

    with cache.sampling():
        draw(pipe, callback_on_step_end=after_three)
    assert "".join(kind[0] for kind in kinds) == "mhhmhh"
    cache.remove()


def test_embeddings_made_at_every_step_are_warned_of() -> None:
    unet = build_unet("sd15", **SMALL)
    cache = apply_hash3d(unet, Hash3DConfig.every(2))
    x, tokens = normal(2, 4, 8, 8), normal(2, 7, 12)
    with cache.sampling(), pytest.warns(RuntimeWarning, match="before the loop"):
        for t in torch.tensor([900, 800, 700, 600]):
            assert torch.equal(
                unet(x, t, encoder_hidden_states=tokens.clone()).sample, unet_alone(cache, unet, x, t, tokens)
            )
    assert cache.stats().hits == 0
    cache.remove()


def unet_alone(cache: Hash3DCache, unet: Any, x: Tensor, t: Any, tokens: Tensor) -> Tensor:
    with cache.bypass():
        return unet(x, t, encoder_hidden_states=tokens).sample


def test_two_questions_at_one_step() -> None:
    """Text and no text in two calls at each timestep: neither is answered with the other's feature."""
    unet = build_unet("sd15", **SMALL)
    cache = apply_hash3d(unet, Hash3DConfig.every(4))
    x, both = normal(1, 4, 8, 8), [normal(1, 7, 12, seed=seed) for seed in (0, 1)]
    with cache.sampling():
        for t in torch.tensor([900, 800, 700]):
            for tokens in both:
                asked = unet(x, t, encoder_hidden_states=tokens).sample
                assert torch.equal(asked, unet_alone(cache, unet, x, t, tokens))
    cache.remove()


def test_inference_mode_and_back() -> None:
    pipe = build_pipeline("text")
    expected = by_deepcache(pipe, 3, 1)
    cache = apply(pipe)
    with torch.inference_mode(), cache.sampling():
        assert torch.equal(draw(pipe), expected)
    with cache.sampling():
        assert torch.equal(draw(pipe), expected)
    cache.remove()


def test_whole_outputs_reused() -> None:
    pipe = build_pipeline("text")
    cache = apply(pipe, mode="noise")
    with cache.sampling():
        draw(pipe)
    assert (cache.stats().hits, cache.stats().misses) == (4, 2)
    cache.remove()


def test_two_threads_on_one_unet() -> None:
    """Each has its own run, and with room for both the steps that it would have alone."""
    pipes = [build_pipeline("text"), build_pipeline("text")]
    pipes[1].unet = pipes[0].unet
    cache = apply(pipes[0], 3, max_conditions=2)

    def run(place: int) -> Tensor:
        with cache.sampling():
            return draw(pipes[place], prompt=place)

    alone = [run(0), run(1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, (0, 1)))
    assert all(map(torch.equal, together, alone)) and cache.stats().hits == 4 * 4
    cache.remove()


def test_timesteps_are_not_waited_for() -> None:
    """What a pipeline hands over is told by where it lies: even a cache that must not read it works."""
    pipe = build_pipeline("text")
    cache = apply(pipe, strict=True)
    fetched = []
    cache._copies.fetch = lambda name, value: fetched.append(name) or value  # type: ignore[method-assign]
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
    [("eta", 0.5), ("groups", 2), ("decide", "device"), ("match", "bucket"), ("min_similarity", 0.9)],
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


def test_a_saved_state_is_never_found_again() -> None:
    pipe = build_pipeline("text")
    cache = apply(pipe)
    with cache.sampling():
        expected = draw(pipe)
        state = cache.state_dict()
        cache.load_state_dict(state)
        kinds = watched(cache)
        assert torch.equal(draw(pipe), expected) and kinds[0] == "miss"
        cache.load_state_dict(state)
        draw(pipe, guidance_scale=1.0)  # entries of half as many rows
    assert cache.stats().hits == 4 + 4  # the counters go on from the state's
    cache.remove()
