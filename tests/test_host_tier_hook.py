"""The host tier under a U-Net: decisions and outputs of a table that is large enough; hints, saved states, options."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tier_pair import SlowCopier
from torch import Tensor
from unet_shapes import SMALL, build_inputs, build_unet

import hash3d_cuda as h3d
from hash3d_cuda import store
from hash3d_cuda.cached import CachedForward
from hash3d_cuda.host_tier import HostTier
from hash3d_cuda.host_tier.hints import Hints
from hash3d_cuda.poses import HostCopies
from hash3d_cuda.rows import RowLayout
from hash3d_cuda.stats import HostTierStats

OPTIONS: dict[str, Any] = {"eta": 1.0, "position": 2, "num_buckets": 101, "grids": h3d.PAPER_GRIDS[1:2]}
FEW = {"capacity": 8, "host_budget": "4MiB"}  # of these, 3 slots are for what comes back
MANY = {"capacity": 100}


def view_of(step: int, prompts: list[str]) -> dict[str, Any]:
    """Two views out of 18 directions."""
    rng = random.Random(step)
    azimuth = [20.0 * rng.randrange(18) + rng.random() for _ in range(2)]
    told = {"elevation": 10.0, "azimuth": azimuth, "radius": 2.0, "timestep": 500}
    return {**told, "condition": rng.choice(prompts)}


class Parts:
    """A model whose feature is its input, so that forwards cost nothing."""

    cut_blocks = ()

    def during(self, call: Any) -> Any:
        return contextlib.nullcontext()

    def prepare(self, call: Any, entered: Any) -> None:
        return None

    def compute(self, call: Any, state: Any, rows: Any) -> Tensor:
        return call.sample.clone() if rows is None else call.sample[list(rows)]

    def finish(self, state: Any, feature: Tensor) -> Tensor:
        return feature


class Forwards:
    """The cache's forwards over :class:`Parts`, of two views each."""

    def __init__(self, **options: Any) -> None:
        config = h3d.Hash3DConfig(**{**OPTIONS, **options})
        self.cached = CachedForward(config, RowLayout("group-major", 2), Parts(), 3, HostCopies(True))
        self.prompts = ["a bear", "a horse"][: config.max_conditions]
        self.step = 0

    def told(self) -> tuple[Tensor, list[Any]]:
        view = view_of(self.step, self.prompts)
        return h3d.make_keys(*(view[name] for name in ("elevation", "azimuth", "radius", "timestep"))), view[
            "condition"
        ]

    def run(self, steps: int) -> list[Any]:
        """What each step decided and gave."""
        made = []
        for _ in range(steps):
            keys, condition = self.told()
            sample = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(self.step))
            output, decision = self.cached(SimpleNamespace(sample=sample), keys, [(condition, "weights")] * 2)
            made.append((decision.kinds, output))
            self.step += 1
        return made

    def prefetch(self) -> None:
        keys, condition = self.told()
        self.cached.prefetch(keys, [condition] * 2)

    @property
    def tier(self) -> HostTierStats:
        found = self.cached.host_tier
        assert found is not None
        return found


class Loop:
    """The same through the hook, over a U-Net; hints come a step ahead."""

    def __init__(self, **options: Any) -> None:
        self.unet = build_unet("sd15", **SMALL)
        self.cache = h3d.apply_hash3d(self.unet, h3d.Hash3DConfig(**{**OPTIONS, **options}))
        self.step = 0

    @torch.no_grad()
    def run(self, steps: int) -> list[Any]:
        made = []
        for _ in range(steps):
            with self.cache.views(**view_of(self.step, ["a bear"])):
                output = self.unet(**build_inputs(self.unet, rows=4, seed=self.step)).sample
            made.append((self.cache.last.kinds, output))
            self.step += 1
            self.cache.prefetch(**view_of(self.step, ["a bear"]))
        return made


def assert_same(some: list[Any], others: list[Any]) -> None:
    for (kinds, output), (their_kinds, their_output) in zip(some, others, strict=True):
        assert kinds == their_kinds
        assert torch.equal(output, their_output)


CASES: list[dict[str, Any]] = [
    {}, {"max_age": 12}, {"feature_dtype": torch.int8}, {"max_conditions": 2, "weighting": "nearest_key"},
    {"grids": h3d.PAPER_GRIDS, "queue_length": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_cache_with_a_tier_is_one_with_a_large_table(options):
    share = options.get("max_conditions", 1)
    few, many = (Forwards(**{**room, **options, "capacity": room["capacity"] * share}) for room in (FEW, MANY))
    assert_same(few.run(60), many.run(60))
    assert few.tier.hits > 3 and few.tier.late == 0 and many.cached.host_tier is None


def test_through_the_hook():
    few, many = Loop(**FEW), Loop(**MANY)
    assert_same(few.run(14), many.run(14))
    stats = few.cache.stats()
    assert stats.host_tier.hits > 0 and stats.hits == many.cache.stats().hits
    assert "host tier: " in str(stats) and "host tier" not in str(many.cache.stats())
    before = stats.host_tier
    few.cache.clear()
    after = few.cache.stats().host_tier
    assert before.entries > after.entries == 0 and before.bytes_down == after.bytes_down > 0
    few.step = 0
    assert few.run(1)[0][0] == ("miss", "miss")
    few.cache.remove()
    few.cache.prefetch(**view_of(0, ["a bear"]))
    assert few.cache.stats().host_tier.nbytes == 0 and few.cache.stats().host_tier.hits == before.hits


def test_a_resumed_loop_goes_on_alike(tmp_path):
    whole, part, resumed = (Loop(**{**FEW, "eta": 0.8}) for _ in range(3))
    expected = whole.run(18)
    first = part.run(10)
    part.cache.save(tmp_path / "cache.safetensors")
    resumed.cache.load(tmp_path / "cache.safetensors")
    resumed.step = part.step
    assert resumed.cache.stats() == part.cache.stats()
    resumed.cache.prefetch(**view_of(resumed.step, ["a bear"]))  # under no name that it knows yet
    assert_same(first + resumed.run(8), expected)
    mine, theirs = (loop.cache.stats().host_tier for loop in (resumed, whole))
    assert mine == replace(theirs, bytes_up=mine.bytes_up) and theirs.hits > 0
    for options in (MANY, {**FEW, "host_budget": "3MiB"}):
        with pytest.raises(ValueError, match=r"host_entries|capacity"):
            Loop(**{**options, "eta": 0.8}).cache.load(tmp_path / "cache.safetensors")


@pytest.fixture
def slow(monkeypatch) -> SlowCopier:
    """What tiers built from now on copy with."""
    copier = SlowCopier()
    monkeypatch.setattr(store, "HostTier", lambda *told: HostTier(*told, copier=copier))
    return copier


def test_without_hints_a_slow_copy_is_a_miss(slow):
    few = Forwards(**FEW)
    few.run(60)
    assert (few.tier.hits, few.tier.bytes_up) == (0, 0) and few.tier.late > 3


def test_with_hints_that_are_in_time_it_is_the_large_table(slow):
    few, many, made = Forwards(**FEW), Forwards(**MANY), []
    for _ in range(60):
        few.prefetch()
        slow.settle()
        made += few.run(1)
    assert_same(made, many.run(60))
    assert few.tier.late == 0 and few.tier.hits > 3 and few.tier.bytes_up > 0


def test_nothing_is_copied_for_a_forward_that_will_not_ask(slow):
    few = Forwards(**{**FEW, "eta": 0.3})
    for _ in range(60):
        before = few.tier.bytes_up
        few.prefetch()
        copied = few.tier.bytes_up > before
        slow.settle()
        assert not copied or "bypass" not in few.run(1)[0][0]
        few.run(0 if copied else 1)
    assert few.tier.bytes_up > 0


def test_hints_know_the_tosses_to_come():
    coin, same = random.Random(7), random.Random(7)
    hints = Hints(coin)
    expected = [same.random() < 0.5 for _ in range(12)]
    assert [hints.tries(0.5) for _ in range(3)] == expected[:3]
    for step in range(3):
        hints.forward()
        coin.random()
        if step == 0:
            assert hints.tries(0.5) == expected[3], "the third after the next"
    hints.forward()
    coin.random()
    assert [hints.tries(0.5), hints.tries(0.5)] == expected[4:6]


def test_a_hint_for_an_unknown_condition_or_before_the_first_forward_does_nothing(slow):
    few = Forwards(**FEW)
    few.prefetch()
    few.run(40)
    few.prompts = ["a cat"]
    few.prefetch()
    assert few.tier.bytes_up == 0
    few.prompts = ["a bear"]
    few.cached.prefetch(h3d.make_keys(10.0, [20.5 * n for n in range(18)], 2.0, 500), ["a bear"] * 18)
    assert few.tier.bytes_up > 0


@pytest.mark.parametrize("options, message", [
    ({"decide": "device"}, "host_budget: expected None with decide=\"device\""),
    ({"min_similarity": 0.5}, "min_similarity: expected None with a host_budget"),
    ({"host_budget": "many"}, "host_budget: expected bytes"),
    ({"host_budget": 0}, "host_budget: expected an integer of at least 1"),
])  # fmt: skip
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        h3d.Hash3DConfig(**{"host_budget": "1GiB", **options})


def test_hash3d_every_takes_no_tier():
    with pytest.raises(ValueError, match="host_budget: expected None with interval=3"):
        h3d.Hash3DConfig.every(3, host_budget="1GiB")


def test_hints_need_timesteps_and_host_values():
    cache = Loop(**FEW).cache
    with pytest.raises(TypeError, match="timestep: expected the timesteps of the forward to come"):
        cache.prefetch(10.0, 0.0, 2.0, None)
    with pytest.raises((TypeError, ValueError), match="azimuth"):
        cache.prefetch(10.0, "north", 2.0, 500)


def test_a_budget_below_the_device_is_refused_at_the_first_forward():
    with pytest.raises(ValueError, match=r"host_budget: expected more than .* copies of the 5 entries on the device"):
        Forwards(**{**FEW, "host_budget": 4_000}).run(1)
