"""Age and change: which items are served, and that a saved cache goes on alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from unet_shapes import SMALL, build_inputs, build_unet

import hash3d_cuda as h3d
from hash3d_cuda.freshness import Freshness, sketch_items


class Loop:
    """Forwards of two items, at azimuths of the caller's, on inputs that grow by ``drift`` per forward."""

    def __init__(self, drift: float = 0.0, **options: Any) -> None:
        self.unet: nn.Module = build_unet("sd15", **SMALL)
        config = h3d.Hash3DConfig(**{"eta": 1.0, "capacity": 16, "num_buckets": 101, **options})
        self.cache = h3d.apply_hash3d(self.unet, config)
        self.inputs, self.drift, self.step = build_inputs(self.unet, rows=4, seed=0), drift, 0

    @torch.no_grad()
    def run(self, *azimuth: float) -> tuple[str, ...]:
        inputs = {**self.inputs, "sample": self.inputs["sample"] * (1 + self.drift * self.step)}
        self.step += 1
        with self.cache.views(10.0, list(azimuth), 2.0, timestep=500):
            self.unet(**inputs)
        return self.cache.last.kinds


@pytest.mark.parametrize("age", [1, 3])
def test_an_entry_serves_max_age_forwards(age: int) -> None:
    loop = Loop(max_age=age)
    kinds = [loop.run(0.0, 100.0) for _ in range(2 * (age + 1) + 1)]
    period = [("miss", "miss")] + [("hit", "hit")] * age
    assert kinds == (period * 3)[: len(kinds)]


def test_items_age_on_their_own() -> None:
    loop = Loop(max_age=2)
    assert loop.run(0.0, 100.0) == ("miss", "miss")
    assert loop.run(200.0, 100.0) == ("miss", "hit")
    loop.run(200.0, 100.0)
    assert loop.run(200.0, 0.0) == ("hit", "miss")  # 0 is 3 forwards old, 200 is 2
    assert loop.run(0.0, 200.0) == ("hit", "miss")


def test_change_of_the_shallow_features_decides() -> None:
    still, moving = Loop(max_change=0.05), Loop(drift=0.5, max_change=0.05)
    assert [loop.run(0.0, 100.0) for loop in (still, moving)] == [("miss", "miss")] * 2
    assert still.run(0.0, 100.0) == ("hit", "hit")
    assert moving.run(0.0, 100.0) == ("miss", "miss")
    lenient = Loop(drift=0.5, max_change=1e6)
    lenient.run(0.0, 100.0)
    assert lenient.run(0.0, 100.0) == ("hit", "hit")


@pytest.mark.parametrize(
    "options",
    [
        {"max_age": 2, "eta": 0.7}, {"max_change": 0.4, "eta": 0.8}, {"target_x": 0.5, "max_age": 4},
        {"target_quality": 0.95, "audit": 0.3, "eta": 0.6},
    ],
)  # fmt: skip
def test_a_saved_cache_goes_on_alike(options: dict[str, Any], tmp_path: Any) -> None:
    views = [(10.0 * (step * 7 % 5), 100.0 + 30 * (step % 3)) for step in range(16)]
    whole, first, second = (Loop(drift=0.05, **options) for _ in range(3))
    expected = [whole.run(*view) for view in views]
    assert len(set(expected)) > 1
    made = [first.run(*view) for view in views[:7]]
    first.cache.save(tmp_path / "cache")
    second.cache.load(tmp_path / "cache")
    second.step = 7
    assert made + [second.run(*view) for view in views[7:]] == expected


@pytest.mark.parametrize(
    "options, name",
    [
        ({"max_age": 0}, "max_age"), ({"max_age": 1.5}, "max_age"), ({"max_change": -0.1}, "max_change"),
        ({"max_change": float("nan")}, "max_change"), ({"target_x": 1.5}, "target_x"),
        ({"max_change": 0.1, "mode": "noise"}, "max_change"), ({"max_age": 3, "decide": "device"}, "max_age"),
    ],
)  # fmt: skip
def test_bad_options_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        h3d.Hash3DConfig(**options)


def test_every_grid_must_pass_and_unknown_entries_do_not() -> None:
    fresh = Freshness(4, max_age=2, max_change=None)
    fresh.note([0, 1, -1, 3], forward=5, sketch=None)
    fresh.note([2], forward=9, sketch=None)
    found = torch.tensor([[[0, -1], [2, 0]], [[2, -1], [2, 0]], [[-1, -1], [1, -1]], [[-1, -1], [-1, -1]]])
    assert fresh.passing(found, 7, None).tolist() == [True, True, True, True]
    assert fresh.passing(found, 9, None).tolist() == [False, True, False, True]
    sketched = Freshness(4, max_age=None, max_change=0.5)
    sketched.note([0], forward=1, sketch=torch.tensor([[1.0, -1.0]]))
    now = torch.tensor([[1.4, -1.4], [1.6, -1.6], [1.0, -1.0]])
    one = torch.tensor([[[0]], [[0]], [[1]]])  # nothing was noted of serial 1
    assert sketched.passing(one, 2, now).tolist() == [True, False, False]


def test_entries_without_a_sketch_do_not_pass() -> None:
    """As after a load of a cache that was saved without max_change."""
    bare = Freshness(4, max_age=None, max_change=1e6)
    assert bare.passing(torch.tensor([[[0]], [[-1]]]), 1, torch.ones(2, 3)).tolist() == [False, True]


def test_a_transformers_tokens_are_averaged_as_space_is() -> None:
    tokens = torch.arange(24.0).reshape(2, 4, 3)  # [rows, tokens, C]
    assert torch.equal(sketch_items(tokens, [(0, 1)]), tokens.mean(1).reshape(1, 6))
    image = tokens.transpose(1, 2).reshape(2, 3, 2, 2)
    assert torch.equal(sketch_items(image, [(0, 1)]), tokens.mean(1).reshape(1, 6))


def test_a_loaded_cache_keeps_its_own_eta() -> None:
    first, second = Loop(max_age=2, eta=0.0), Loop(max_age=2, eta=1.0)
    first.run(0.0, 100.0)
    second.cache.load_state_dict(first.cache.state_dict())
    assert second.run(0.0, 100.0) == ("hit", "hit")


def test_a_state_of_another_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="births"):
        Freshness(4, 1, None).load(Freshness(5, 1, None).state())
