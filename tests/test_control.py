"""Targets that move eta, and audits: on a synthetic model whose feature drifts by a known amount, and under a U-Net."""

from __future__ import annotations

import contextlib
import json
import math
import random
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_freshness import Loop
from torch import Tensor

import hash3d_cuda as h3d
from hash3d_cuda.cached import CachedForward
from hash3d_cuda.control import Audit, Course, EtaControl, relative_errors
from hash3d_cuda.poses import HostCopies
from hash3d_cuda.rows import RowLayout


class Drifting:
    """A model of one item whose output is a unit vector that turns by ``angle`` per forward: what is served at age n is
    off by exactly 2 sin(n angle / 2)."""

    cut_blocks = ()

    def __init__(self, angle: float, **options: Any) -> None:
        config = h3d.Hash3DConfig(**{"groups": 1, "capacity": 4, "queue_length": 1, "eta": 0.5, **options})
        self.angle, self.turned, self.computed = angle, 0.0, 0
        self.cached = CachedForward(config, RowLayout("group-major", 1), self, 4, HostCopies(strict=False))
        self.keys = h3d.make_keys(10.0, 20.0, 2.0, 500)

    @property
    def now(self) -> Tensor:
        return torch.tensor([math.cos(self.turned), math.sin(self.turned)]).reshape(1, 2, 1, 1)

    during = staticmethod(lambda call: contextlib.nullcontext())
    prepare = staticmethod(lambda call, entered: None)
    finish = staticmethod(lambda state, feature: feature.clone())

    def compute(self, call: Any, state: None, rows: Any) -> Tensor:
        self.computed += 1
        return self.now

    def run(self, steps: int) -> list[float]:
        """The relative error of every forward's output."""
        errors = []
        for _ in range(steps):
            self.turned += self.angle
            output, _ = self.cached(SimpleNamespace(sample=torch.zeros(1, 4, 1, 1)), self.keys, ["one"])
            errors.append(float((output - self.now).norm()))
        return errors


@pytest.mark.parametrize("angle, target, start", [(0.02, 0.9, 0.1), (0.01, 0.97, 0.9)])
def test_quality_lands_on_its_target_and_follows_a_jump(angle: float, target: float, start: float) -> None:
    model = Drifting(angle, target_quality=target, audit=0.2, eta=start)
    model.run(150)
    assert mean(model.run(600)) == pytest.approx(1 - target, rel=0.25)
    before = model.cached.control.eta
    model.angle *= 3
    model.run(80)
    assert mean(model.run(600)) == pytest.approx(1 - target, rel=0.25), "without it, three times as much"
    assert model.cached.control.eta < before
    model.angle = 0.0
    model.run(100)
    assert model.cached.control.eta == 1.0, "what does not change may be served always"


def test_without_a_target_audits_only_watch() -> None:
    plain, watched = Drifting(0.03, eta=0.7), Drifting(0.03, eta=0.7, audit=0.2)
    watched.run(500)
    audits = watched.cached.control.audits()
    assert {audit.eta for audit in audits} == {0.7} and {audit.items for audit in audits} == {1}
    assert len(audits) == watched.cached.control.audited == pytest.approx(0.2 * 500, abs=30)
    # An entry of age n is off by 2 sin(n 0.015): each error is one of these.
    ages = [audit.error / 0.03 for audit in audits]
    assert all(age == pytest.approx(round(age), rel=0.02) and round(age) >= 1 for age in ages)
    plain.run(500)
    assert plain.cached.control.audits() == [] and plain.cached.control.mean_error is None
    assert watched.cached.control.mean_error == pytest.approx(mean(audit.error for audit in audits))


def test_off_by_default_and_then_as_before() -> None:
    """Audits have a coin of their own: the cache's tosses are the same with and without, forward by forward."""
    plain, watched = Drifting(0.1, eta=0.6), Drifting(0.1, eta=0.6, audit=1e-12)
    assert plain.run(200) == watched.run(200) and plain.computed == watched.computed < 200
    assert h3d.Hash3DConfig().audit_share is None and h3d.Hash3DConfig(target_quality=0.9).audit_share == 0.05


def test_an_audit_answers_with_what_it_computed_and_stores_it() -> None:
    always = Drifting(0.1, eta=1.0, audit=1.0)
    assert always.run(30) == [0.0] * 30 and always.computed == 30
    assert [audit.error for audit in always.cached.control.audits()] == pytest.approx([2 * math.sin(0.05)] * 29)
    bypassed = Drifting(0.1, eta=0.0, audit=1.0)
    bypassed.run(30)
    assert len(bypassed.cached.control.audits()) == 29, "audits do not depend on the coin"


@pytest.mark.parametrize("options", [{"position": 1, "feature_dtype": torch.int8}, {"mode": "noise"}])
def test_an_audit_under_a_unet_compares_what_would_have_been_served(options: dict[str, Any]) -> None:
    """Two items, of which one has an entry: its error is that of the output which the cache without audits gives."""
    outputs = {}
    for share in (None, 1.0):
        loop = Loop(**options, audit=share)
        outputs[share] = run_twice(loop)
    served, computed = outputs[None][0], outputs[1.0][0]
    (audit,) = outputs[1.0][1].cache.audits()
    assert (audit.found, audit.items, audit.forward) == (1, 2, 2)
    rows = [0, 2]  # of the item at azimuth 0, group-major
    expected = (served[rows] - computed[rows]).norm() / computed[rows].norm()
    assert audit.error == pytest.approx(float(expected), rel=1e-3) and audit.error > 1e-4
    stats = outputs[1.0][1].cache.stats()
    assert (stats.hits, stats.misses, stats.audits) == (0, 4, 1) and "1 audited (error" in str(stats)
    assert stats.audited_error == audit.error


@torch.no_grad()
def test_the_answer_of_an_audit_is_the_models_own_though_freeu_writes_in_place() -> None:
    loop = Loop(position=4, audit=1.0)
    loop.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)  # type: ignore[operator]
    for scale in (1.0, 1.5):
        inputs = {**loop.inputs, "sample": loop.inputs["sample"] * scale}
        with loop.cache.views(10.0, [0.0, 100.0], 2.0, timestep=500):
            audited = loop.unet(**inputs).sample
        with loop.cache.bypass():
            assert torch.allclose(audited, loop.unet(**inputs).sample, atol=1e-5)
    assert [audit.found for audit in loop.cache.audits()] == [2]


@torch.no_grad()
def run_twice(loop: Loop) -> tuple[Tensor, Loop]:
    """The second output, whose first item finds an entry made from another sample; and the loop."""
    made = []
    for azimuths, scale in (((0.0, 100.0), 1.0), ((0.0, 200.0), 1.5)):
        inputs = {**loop.inputs, "sample": loop.inputs["sample"] * scale}
        with loop.cache.views(10.0, list(azimuths), 2.0, timestep=500):
            made.append(loop.unet(**inputs).sample)
    return made[1], loop


def test_errors_of_items() -> None:
    computed = torch.ones(4, 3, 2, 2)
    served = computed.clone()
    served[2] += 0.5  # of item 0, half of whose rows are off by half
    served[1] = torch.nan
    errors = relative_errors(served, computed, [(0, 2), (1, 3)])
    assert errors.tolist() == pytest.approx([math.sqrt(0.125), 1.0])
    assert relative_errors(computed * 9, computed, [(0, 1, 2, 3)]).tolist() == [1.0]
    blank = torch.zeros(1, 3)
    assert relative_errors(blank, blank, [(0,)]).tolist() == [0.0]


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1), st.floats(0, 0.999), st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60))
def test_eta_stays_a_probability(eta: float, target: float, told: list[tuple[float, bool]]) -> None:
    control = EtaControl(eta, target_quality=target, audit=1.0)
    for forward, (error, found) in enumerate(told, 1):
        assert control.begin(forward)
        control.note(forward, torch.tensor([error, 0.0]), [found, False])
        assert 0.0 <= control.eta <= 1.0
    assert control.audited == sum(found for _, found in told) == len(control.audits())


def test_an_audit_counts_some_forwards_later_and_a_late_one_is_waited_for(monkeypatch: Any) -> None:
    copies = HostCopies(strict=False)
    control = EtaControl(0.5, target_quality=0.9, audit=1e-12, copies=copies)
    assert control.begin(1), "the first ones are made at once"
    control.note(1, torch.tensor([0.5]), [True])
    for forward in (2, 3, 4):
        control.begin(forward)
        assert control.eta == 0.5
    monkeypatch.setattr("hash3d_cuda.poses.Later.arrived", False)
    monkeypatch.setattr("hash3d_cuda.poses.Later.read", lambda self: float(self._value))
    control.begin(5)
    assert control.eta < 0.5 and copies.count == 1
    control.note(5, None, [False])
    assert control.eta < 0.5 and control.audits() == [Audit(1, 0.5, 0.5, 1, 1)]


def test_the_share_follows_its_target() -> None:
    for target, start in ((0.3, 1.0), (0.7, 0.0), (0.95, 0.1)):
        control, coin, hits = EtaControl.of(h3d.Hash3DConfig(target_x=target, eta=start)), random.Random(0), []
        for _ in range(600):
            hits.append(2 * (coin.random() < control.eta))
            control.observe(hits[-1], 2)
            assert 0.0 <= control.eta <= 1.0
        assert sum(hits[100:]) / 1000 == pytest.approx(target, abs=0.04)
    loop = Loop(target_x=1.0, eta=0.0)
    kinds = [loop.run(0.0, 100.0) for _ in range(40)]
    assert kinds[0] == ("bypass", "bypass") and kinds.count(("hit", "hit")) > 10
    assert loop.cache.eta == loop.cache._hooked.cached.control.eta > 0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_a_course_stays_short_and_even(forwards: int, stop: int) -> None:
    course = Course()
    for forward in range(1, forwards + 1):
        if forward == stop:
            course = Course(**json.loads(json.dumps(course.state())))
        course.note(forward, forward / 4096)
    told = [forward for forward, _ in course.rows]
    stride = told[1] - told[0] if len(told) > 1 else 1
    assert told == list(range(1, forwards + 1, stride)) and min(forwards, 128) <= len(told) <= 256
    assert all(eta == forward / 4096 for forward, eta in course.rows)


def test_eta_has_a_course_where_a_target_moves_it() -> None:
    loop = Loop(target_x=1.0, eta=0.0)
    for _ in range(5):
        loop.run(0.0, 100.0)
    assert loop.cache.eta_course() == [(n, pytest.approx(0.05 * (n - 1))) for n in range(1, 6)]
    watched = Loop(audit=0.5, eta=0.3)
    watched.run(0.0, 100.0)
    assert watched.cache.eta_course() == [], "nothing moves it"


def test_a_state_goes_through_json_and_a_damaged_one_is_refused() -> None:
    first = EtaControl(0.3, seed=5, target_quality=0.8, audit=0.5)
    for forward in range(1, 40):
        if first.begin(forward):
            first.note(forward, torch.tensor([0.1 + forward / 100]), [True])
    second = EtaControl(0.9, seed=1, target_quality=0.8, audit=0.5)
    second.load(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert [first.begin(n) for n in range(40, 90)] == [second.begin(n) for n in range(40, 90)]
    loop = Loop(target_quality=0.9)
    loop.run(0.0, 100.0)
    state = loop.cache.state_dict()
    del state["about"]["policy"]["control"]["odds"]
    with pytest.raises(ValueError, match="the policy that"):
        loop.cache.load_state_dict(state)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"target_quality": 1.0}, "target_quality"), ({"target_quality": -0.1}, "target_quality"),
        ({"target_quality": 0.9, "target_x": 0.5}, "target_quality"), ({"target_quality": 0.9, "audit": 0.0}, "audit"),
        ({"audit": 1.5}, "audit"), ({"audit": 0.1, "decide": "device"}, "audit"),
        ({"target_quality": 0.9, "decide": "device"}, "target_quality"),
    ],
)  # fmt: skip
def test_bad_options_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
        h3d.Hash3DConfig(**options)
