"""Where a run of ``cache.sampling()`` begins: no step is served from another run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_pipelines import SMALL, apply_every, build_pipeline, draw, normal, watched
from torch import Tensor
from unet_shapes import build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d

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
    cache = apply_every(pipe)
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
    cache = apply_every(pipe, 9)
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
    cache = apply_every(pipe, 9)
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
    cache = apply_every(pipe, 9)
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


def test_two_threads_on_one_unet() -> None:
    """Each has its own run, and with room for both the steps that it would have alone."""
    pipes = [build_pipeline("text"), build_pipeline("text")]
    pipes[1].unet = pipes[0].unet
    cache = apply_every(pipes[0], 3, max_conditions=2)

    def run(place: int) -> Tensor:
        with cache.sampling():
            return draw(pipes[place], prompt=place)

    alone = [run(0), run(1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, (0, 1)))
    assert all(map(torch.equal, together, alone)) and cache.stats().hits == 4 * 4
    cache.remove()


def test_a_saved_state_is_never_found_again() -> None:
    pipe = build_pipeline("text")
    cache = apply_every(pipe)
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
