"""The host tier under a U-Net: decisions and outputs of a table that is large enough; hints, saved states, options."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tier_pair import SlowCopier
from unet_shapes import SMALL, build_inputs, build_unet

import hash3d_cuda as h3d
from hash3d_cuda import store
from hash3d_cuda.host_tier import HostTier
from hash3d_cuda.host_tier.hints import Hints

OPTIONS: dict[str, Any] = {"eta": 1.0, "position": 2, "num_buckets": 101}
FEW = {"capacity": 14, "host_budget": "4MiB"}  # of these, 9 slots are for what comes back
MANY = {"capacity": 200}


class Loop:
    """Forwards of two views out of 24 directions; hints come a step ahead."""

    def __init__(self, **options: Any) -> None:
        self.unet = build_unet("sd15", **SMALL)
        self.cache = h3d.apply_hash3d(self.unet, h3d.Hash3DConfig(**{**OPTIONS, **options}))
        self.prompts = ["a bear", "a horse"][: self.cache.config.max_conditions]
        self.step = 0

    def views(self, step: int) -> dict[str, Any]:
        rng = random.Random(step)
        azimuth = [15.0 * rng.randrange(24) + rng.random() for _ in range(2)]
        told = {"elevation": 10.0, "azimuth": azimuth, "radius": 2.0, "timestep": 500}
        return {**told, "condition": rng.choice(self.prompts)}

    @torch.no_grad()
    def run(self, steps: int, hint: bool = False) -> list[Any]:
        """What each step decided and gave."""
        made = []
        for _ in range(steps):
            with self.cache.views(**self.views(self.step)):
                output = self.unet(**build_inputs(self.unet, rows=4, seed=self.step)).sample
            made.append((self.cache.last.kinds, output))
            self.step += 1
            if hint:
                self.cache.prefetch(**self.views(self.step))
        return made


def assert_same(some: list[Any], others: list[Any]) -> None:
    for (kinds, output), (their_kinds, their_output) in zip(some, others, strict=True):
        assert kinds == their_kinds
        assert torch.equal(output, their_output)


CASES: list[dict[str, Any]] = [
    {}, {"max_age": 12}, {"feature_dtype": torch.int8, "mode": "noise"},
    {"max_conditions": 2, "grids": h3d.PAPER_GRIDS[:2]},
]  # fmt: skip


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_cache_with_a_tier_is_one_with_a_large_table(options):
    share = options.get("max_conditions", 1)
    few, many = Loop(**{**FEW, "capacity": 14 * share}, **options), Loop(**{**MANY, "capacity": 200 * share}, **options)
    assert_same(few.run(40), many.run(40))
    stats = few.cache.stats()
    assert stats.host_tier.hits > 3 and stats.host_tier.late == 0
    assert stats.hits == many.cache.stats().hits and many.cache.stats().host_tier is None
    assert "host tier: " in str(stats) and "host tier" not in str(many.cache.stats())


def test_a_resumed_loop_goes_on_alike(tmp_path):
    whole, part, resumed = (Loop(**{**FEW, "eta": 0.8}) for _ in range(3))
    expected = whole.run(40)
    first = part.run(25)
    part.cache.save(tmp_path / "cache.safetensors")
    resumed.cache.load(tmp_path / "cache.safetensors")
    resumed.step = part.step
    assert resumed.cache.stats() == part.cache.stats()
    assert_same(first + resumed.run(15), expected)
    assert resumed.cache.stats() == whole.cache.stats() and whole.cache.stats().host_tier.hits > 3
    for options in (MANY, {**FEW, "host_budget": "3MiB"}):
        with pytest.raises(ValueError, match=r"host_entries|capacity"):
            Loop(**{**options, "eta": 0.8}).cache.load(tmp_path / "cache.safetensors")


def test_clear_empties_both_tiers_and_keeps_the_counters():
    loop = Loop(**FEW)
    loop.run(20)
    before = loop.cache.stats().host_tier
    loop.cache.clear()
    after = loop.cache.stats().host_tier
    assert before.entries > after.entries == 0 and before.bytes_down == after.bytes_down > 0
    first = Loop(**FEW).run(20)
    loop.step = 0
    assert_same(loop.run(20), first)
    loop.cache.remove()
    assert loop.cache.stats().host_tier.nbytes == 0 and loop.cache.stats().host_tier.hits >= before.hits


@pytest.fixture
def slow(monkeypatch) -> SlowCopier:
    """What tiers built from now on copy with."""
    copier = SlowCopier()
    monkeypatch.setattr(store, "HostTier", lambda *told: HostTier(*told, copier=copier))
    return copier


def test_without_hints_a_slow_copy_is_a_miss(slow):
    loop = Loop(**FEW)
    loop.run(40)
    tier = loop.cache.stats().host_tier
    assert (tier.hits, tier.bytes_up) == (0, 0) and tier.late > 3


def test_with_hints_that_are_in_time_it_is_the_large_table(slow):
    few, many, made = Loop(**FEW), Loop(**MANY), []
    for _ in range(40):
        made += few.run(1, hint=True)
        slow.settle()
    assert_same(made, many.run(40))
    assert few.cache.stats().host_tier.late == 0 and few.cache.stats().host_tier.bytes_up > 0


def test_nothing_is_copied_for_a_forward_that_will_not_ask(slow):
    loop = Loop(**{**FEW, "eta": 0.3})
    for _ in range(40):
        before = loop.cache.stats()
        loop.cache.prefetch(**loop.views(loop.step))
        slow.settle()
        copied = loop.cache.stats().host_tier.bytes_up > before.host_tier.bytes_up
        loop.run(1)
        assert not copied or "bypass" not in loop.cache.last.kinds
    assert 0 < loop.cache.stats().host_tier.bytes_up


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


def test_a_hint_for_an_unknown_condition_or_before_the_first_forward_does_nothing():
    loop = Loop(**FEW)
    loop.cache.prefetch(10.0, [0.0, 5.0], 2.0, 500, condition="a bear")
    loop.run(12)
    loop.cache.prefetch(10.0, 0.0, 2.0, 500, condition="a cat")
    h3d.apply_hash3d(build_unet("sd15", **SMALL)).prefetch(10.0, 0.0, 2.0, None)


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
    with pytest.raises(ValueError, match="host_budget: expected more than .* copies of the 5 entries on the device"):
        Loop(**{**FEW, "host_budget": 20_000}).run(1)
