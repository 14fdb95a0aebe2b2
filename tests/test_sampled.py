"""The short way of a sampler's step beside the general one: same answers, decisions and counts."""

from __future__ import annotations

import gc
import weakref
from types import MethodType
from typing import Any

import pytest
import torch
from tiny_pipelines import apply_every, build_pipeline, draw, watched
from torch import Tensor

from hash3d_cuda.tracked import TrackedTable


def run(pipe: Any, mode: str, **options: Any) -> tuple[Tensor, list[str], Any]:
    """What is drawn twice, what became of each step, and what the cache would save."""
    cache = apply_every(pipe, 3, mode=mode)
    kinds = watched(cache)
    with cache.sampling():
        pictures = torch.cat([draw(pipe, seed=seed, **options) for seed in (0, 1)])
    state = cache.state_dict()
    cache.remove()
    [table], about = state["tables"], {name: value for name, value in state["about"].items() if name != "names"}
    table["counters"] = table["counters"][:2]  # the short way does not query
    return pictures, kinds, about, {name: str(tensor.tolist()) for name, tensor in table.items()}


def general(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on each step asks the table."""
    monkeypatch.setattr(TrackedTable, "hold", lambda *given: False)
    monkeypatch.setattr(TrackedTable, "recall", lambda *given: None)
    monkeypatch.setattr(TrackedTable, "holds_nothing_for", lambda *given: False)


@pytest.mark.parametrize("mode", ["feature", "noise"])
@pytest.mark.parametrize("kind", ["text", "control", "xl"])
def test_both_ways_agree(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures bit for bit; the coin, the counters and all else that a checkpoint holds, the last entry included."""
    pipe = build_pipeline(kind)
    short = run(pipe, mode)
    general(monkeypatch)
    pictures, *rest = run(pipe, mode)
    assert torch.equal(short[0], pictures) and "hit" in rest[0]
    assert [*short[1:]] == rest


@pytest.mark.parametrize("freeu", [False, True])
def test_only_the_last_entry_is_copied(freeu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And that when somebody asks. Under FreeU the tail writes to the feature: each is copied before."""
    pipe = build_pipeline("text")
    if freeu:
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    copied: list[Tensor] = []
    append = TrackedTable.append
    monkeypatch.setattr(TrackedTable, "append", lambda *given: (copied.append(given[3]), append(*given))[1])
    cache = apply_every(pipe, 2, position=4)
    with cache.sampling():
        draw(pipe)
    assert len(copied) == (3 if freeu else 1)  # of three full steps; the first shows whether the tail writes
    stats = cache.table.stats()
    assert (stats.appended, stats.live, stats.rejected, len(copied)) == (3, 1, 0, 3 if freeu else 2)
    cache.remove()


@pytest.mark.parametrize("watched_over", [False, True])
def test_added_conditions_are_embedded_once_a_run(watched_over: bool) -> None:
    """Not so where a hook wants to see it happen."""
    pipe = build_pipeline("xl")
    cache, calls = apply_every(pipe, 3), []
    embedding = pipe.unet.add_embedding
    embed = embedding.forward
    embedding.forward = lambda given: (calls.append(given), embed(given))[1]
    if watched_over:
        embedding.linear_1.register_forward_hook(lambda *given: None)
    with cache.sampling():
        for seed in (0, 1):
            draw(pipe, seed=seed)
    assert len(calls) == (12 if watched_over else 2) and cache.stats().hits == 8
    cache.remove()


def test_an_embedding_of_the_models_own_is_made_at_every_step() -> None:
    """It may depend on the timestep, which the others do not."""
    pipe = build_pipeline("xl")
    embed = pipe.unet.get_aug_embed
    pipe.unet.get_aug_embed = lambda **given: embed(**given) * given["emb"].mean()
    plain = draw(pipe)
    cache = apply_every(pipe, 1)
    with cache.sampling():
        assert torch.equal(draw(pipe), plain)
    cache.remove()


def test_a_removed_cache_keeps_nothing_of_the_run() -> None:
    pipe = build_pipeline("xl")
    cache = apply_every(pipe, 2)
    kept = weakref.ref(pipe.unet.up_blocks[0].resnets[0].conv1)
    patched = pipe.unet.up_blocks[0].resnets[0]
    patched.forward = MethodType(type(patched).forward, patched)  # what a look at the model holds on to
    with cache.sampling():
        draw(pipe)
    cache.remove()
    del pipe, patched
    gc.collect()
    assert kept() is None


def test_what_was_embedded_before_the_table_was_cleared_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes to weights where nobody sees it clears the cache."""

    def write(pipe: Any, i: int, t: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        if i == 1:
            pipe.unet.add_embedding.linear_1.weight.data.mul_(3)
            caches[-1].clear()
        return {}

    caches, drawn = [], []
    for way in ("short", "general"):
        pipe = build_pipeline("xl")
        caches.append(apply_every(pipe, 6))
        if way == "general":
            general(monkeypatch)
        with caches[-1].sampling():
            drawn.append(draw(pipe, callback_on_step_end=write))
        assert caches[-1].stats().misses == 2
    assert torch.equal(*drawn)


def test_a_latent_that_is_not_finite_is_computed() -> None:
    """In the short way too (rule 10), and the run goes on from the feature that is there."""
    pipe = build_pipeline("text")
    cache = apply_every(pipe, 9)
    kinds = watched(cache)

    def spoil(pipe: Any, i: int, t: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": kept["latents"] * (torch.nan if i == 2 else 1)}

    with cache.sampling():
        draw(pipe, callback_on_step_end=spoil)
    assert "".join(kind[0] for kind in kinds) == "mhhmmm"
    cache.remove()


@pytest.mark.parametrize("wipe", ["cleared", "appended to"])
def test_a_table_that_others_write_to_is_asked(wipe: str) -> None:
    """``cache.table`` is the user's too: what was known of its content before holds no longer."""
    pipe = build_pipeline("text")
    cache = apply_every(pipe, 9)
    kinds = watched(cache)

    def write(pipe: Any, i: int, t: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        if i == 2:
            table, options = cache.table, cache.table.options
            if wipe == "cleared":
                table.clear()
            else:  # the only slot goes to another cell
                key = torch.tensor([[10.0, 100.0, 9.0, 5000.0]])
                table.append(key, torch.zeros(1, *options.latent_shape), torch.zeros(1, *options.feature_shape))
        return {}

    with cache.sampling():
        draw(pipe, callback_on_step_end=write)
    assert "".join(kind[0] for kind in kinds) == "mhhmhh"
