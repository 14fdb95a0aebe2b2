"""A loop that saves its cache, is stopped, and goes on in another process's place decides as one that was not."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import random
import signal
from typing import Any

import pytest
import torch
from torch import nn
from unet_shapes import SMALL, build_inputs, build_unet

import hash3d_cuda as h3d
from hash3d_cuda.fingerprint import Same
from hash3d_cuda.hook import Hash3DCache
from hash3d_cuda.unet.multi_view import FrameRows

pytest_plugins = ["eager_runner"]
OPTIONS: dict[str, Any] = {"eta": 0.7, "position": 2, "groups": 2, "capacity": 24, "num_buckets": 101}
STEPS = 24


class Loop:
    """Forwards of a U-Net under a cache: random views of a few cells, two prompts in turn."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        self.unet = build_unet("sd15", seed=seed, **SMALL)
        self.cache = h3d.apply_hash3d(self.unet, h3d.Hash3DConfig(**{**OPTIONS, **options}))
        self.step = 0
        self.prompts = ["a bear", ("a horse", 2, None)]

    @torch.no_grad()
    def run(self, steps: int) -> list[Any]:
        """What each step decided and gave."""
        made = []
        for _ in range(steps):
            rng = random.Random(self.step)
            azimuth = [360.0 * rng.random() for _ in range(2)]
            condition = self.prompts[rng.randrange(2) % self.cache.config.max_conditions]
            views = self.cache.views([10.0, 40.0], azimuth, 2.0, timestep=500, condition=condition)
            with views:
                output = self.unet(**build_inputs(self.unet, rows=2 * self.cache.config.groups, seed=self.step)).sample
            made.append((self.cache.last.kinds, self.cache.table._state_dict()["serials"].tolist(), output))
            self.step += 1
        return made


def assert_same(some: list[Any], others: list[Any]) -> None:
    for (kinds, serials, output), (their_kinds, their_serials, their_output) in zip(some, others, strict=True):
        assert kinds == their_kinds and serials == their_serials
        assert torch.equal(output, their_output)


def through_torch(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save({"step": 3, "cache": state}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["cache"]


CASES: list[dict[str, Any]] = [
    {},
    {"max_conditions": 2},
    {"mode": "noise"},
    {"feature_dtype": torch.bfloat16},
    {"feature_dtype": torch.int8},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_resumed_loop_decides_as_one_that_was_not_stopped(options, tmp_path):
    whole = Loop(**options)
    expected = whole.run(STEPS)
    kinds = {kind for made in expected[STEPS // 2 :] for kind in made[0]}
    assert kinds == {"hit", "miss", "bypass"} or options, "or the test would show little"
    part = Loop(**options)
    first = part.run(STEPS // 2)
    part.cache.save(tmp_path / "cache.safetensors")
    by_file, by_state = Loop(**options), Loop(**options)
    by_file.cache.load(tmp_path / "cache.safetensors")
    by_state.cache.load_state_dict(through_torch(part.cache.state_dict()))
    for resumed in (by_file, by_state):
        resumed.step = part.step
        assert str(resumed.cache.stats()) == str(part.cache.stats())
        assert_same(first + resumed.run(STEPS - STEPS // 2), expected)
        assert str(resumed.cache.stats()) == str(whole.cache.stats())


def test_saving_changes_nothing_and_a_chain_of_resumes_is_one_run():
    expected = Loop(max_conditions=2).run(STEPS)
    made, loop = [], Loop(max_conditions=2)
    for _ in range(3):
        made += loop.run(STEPS // 3)
        loop.cache.state_dict()
        following = Loop(max_conditions=2)
        following.step = loop.step
        state = loop.cache.state_dict()
        following.cache.load_state_dict(state)
        again = following.cache.state_dict()  # before any forward: all tables still wait
        assert again["about"] == state["about"]
        loop = following
    assert_same(made, expected)


def test_decisions_on_the_device_resume_too(eager_runner):
    options = {"decide": "device", "eta": 1.0}
    whole = Loop(**options)
    expected = whole.run(STEPS)
    part = Loop(**options)
    first = part.run(8)
    resumed = Loop(**options)
    resumed.cache.load_state_dict(part.cache.state_dict())
    resumed.step = part.step
    assert_same(first + resumed.run(STEPS - 8), expected)
    assert str(resumed.cache.stats()) == str(whole.cache.stats()) and resumed.cache.served() == whole.cache.served()


def run_until_killed(path, decisions):
    """In a process of its own: saves after every step."""
    torch.set_num_threads(1)  # the parent's pool of threads is not here
    loop = Loop()
    for _ in range(STEPS):
        made = loop.run(1)
        with decisions.open("a") as file:
            print(made[0][0], file=file)
        loop.cache.save(path)
        if loop.step == 9:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process(tmp_path):
    """Forked: imports would take longer than the test."""
    path, decisions = tmp_path / "saved" / "cache.safetensors", tmp_path / "decisions"
    path.parent.mkdir()
    process = multiprocessing.get_context("fork").Process(target=run_until_killed, args=(path, decisions))
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    whole, resumed = Loop().run(STEPS), Loop()
    resumed.step = 9
    resumed.cache.load(path)
    made = resumed.run(STEPS - 9)
    assert_same(made, whole[9:])
    assert [str(kinds) for kinds, _, _ in whole[:9]] == decisions.read_text().splitlines()
    assert os.listdir(path.parent) == [path.name]


def test_before_the_first_forward():
    fresh, resumed = Loop(), Loop(seed=0)
    resumed.cache.load_state_dict(fresh.cache.state_dict())
    assert_same(resumed.run(6), Loop().run(6))


def test_entries_of_other_weights_are_refused_or_not_found():
    part = Loop(eta=1.0)
    part.run(6)
    state = part.cache.state_dict()
    other = Loop(seed=1, eta=1.0)
    before = other.cache.state_dict()["about"]
    with pytest.raises(ValueError, match="weights"):
        other.cache.load_state_dict(state)
    assert other.cache.state_dict()["about"] == before, "nothing was taken over"
    late = Loop(eta=1.0)
    late.cache.load_state_dict(state)
    with torch.no_grad():
        late.unet.conv_in.weight += 1  # between the load and the first forward
    assert set(late.run(1)[0][0]) == {"miss"}


def test_entries_of_weights_that_changed_are_left_out():
    loop = Loop(eta=1.0)
    loop.run(4)
    with torch.no_grad():
        loop.unet.conv_in.weight += 1
    state = loop.cache.state_dict()
    assert state["about"]["names"] == []
    resumed = Loop(eta=1.0)
    resumed.cache.load_state_dict(state)
    with torch.no_grad(), resumed.cache.views(0.0, 0.0, 2.0, timestep=5):  # nothing is left that fixes the shape
        resumed.unet(**build_inputs(resumed.unet, rows=4, size=(16, 16)))
    assert resumed.cache.last.kinds == ("miss", "miss")


def test_another_condition_or_state_of_the_model_is_not_served(monkeypatch):
    loop = Loop(eta=1.0)
    loop.run(6)
    state = loop.cache.state_dict()
    for change in (lambda it: it.prompts.insert(0, "another"), lambda it: it.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)):
        resumed = Loop(eta=1.0)
        resumed.cache.load_state_dict(state)
        change(resumed)
        assert set(resumed.run(1)[0][0]) == {"miss"}
    same = Loop(eta=1.0)
    same.cache.load_state_dict(state)
    same.step = 5
    assert set(same.run(1)[0][0]) == {"hit"}, "the last step's own views"


def with_processor(**attributes: Any) -> Loop:
    """A loop whose first attention has a processor with such attributes."""
    loop = Loop(eta=1.0)
    attention = next(module for module in loop.unet.modules() if hasattr(module, "processor"))
    vars(attention.processor).update(attributes)
    return loop


def test_attributes_of_processors_are_compared():
    loop = with_processor(strength=0.5)
    loop.run(6)
    state = loop.cache.state_dict()
    for strength, kind in ((0.5, "hit"), (0.7, "miss")):
        resumed = with_processor(strength=strength)
        resumed.cache.load_state_dict(state)
        resumed.step = 5
        assert set(resumed.run(1)[0][0]) == {kind}


def test_what_cannot_be_compared_is_left_out():
    loop = with_processor(mask=torch.ones(3))
    loop.run(2)
    with pytest.warns(RuntimeWarning, match="left out"):
        state = loop.cache.state_dict()
    assert state["about"]["names"] == []


@pytest.mark.parametrize("processor", [lambda *_, **__: None, functools.partial(print, 1)], ids=["function", "partial"])
def test_what_attributes_do_not_tell_is_left_out(processor):
    """Another process would take any function for this one."""
    with pytest.raises(TypeError, match="attributes"):
        Same(processor).portable()


def test_attributes_that_are_not_public_are_compared():
    class Processor:
        def __init__(self, strength: float) -> None:
            self._strength = strength

    assert Same(Processor(1.0)).portable() == Same(Processor(1.0)).portable() != Same(Processor(2.0)).portable()
    module = nn.Linear(2, 2)
    assert Same(module).portable()["in_features"] == 2 and "_parameters" not in Same(module).portable()


def test_a_device_by_another_name():
    loop = Loop(eta=1.0)
    loop.run(6)
    resumed = Loop(eta=1.0)
    resumed.cache.load_state_dict(loop.cache.state_dict(), device="cpu:0")
    resumed.step = 5
    assert set(resumed.run(1)[0][0]) == {"hit"}
    with pytest.raises(ValueError, match="device: expected"):
        resumed.cache.load_state_dict(loop.cache.state_dict(), device="nowhere")


def test_rows_of_the_users_own_are_compared():
    loop = Loop(groups=4, rows=FrameRows(2))
    loop.run(2)
    state = through_torch(loop.cache.state_dict())
    Loop(groups=4, rows=FrameRows(2)).cache.load_state_dict(state)
    with pytest.raises(ValueError, match="state_dict: rows: expected"):
        Loop(groups=4, rows=FrameRows(1)).cache.load_state_dict(state)
    matrix = Loop(rows=[[0, 2], [1, 3]])
    matrix.run(2)
    Loop(rows=torch.tensor([[0, 2], [1, 3]])).cache.load_state_dict(matrix.cache.state_dict())


def test_a_damaged_coin_changes_nothing():
    loop = Loop()
    loop.run(2)
    before = loop.cache.state_dict()
    for coin in (None, [3, [1, 2], None], [3, ["a"] * 625, None]):
        with pytest.raises(ValueError, match="coin"):
            loop.cache.load_state_dict({**before, "about": {**before["about"], "coin": coin}})
    assert loop.cache.state_dict()["about"] == before["about"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"position": 3}, "position"),
        ({"groups": 4}, "groups"),
        ({"capacity": 25}, "capacity"),
        ({"mode": "noise"}, "mode"),
        ({"grids": [(30, 30, 0.2, 30)]}, "grids"),
        ({"feature_dtype": torch.float16}, "feature_dtype"),
    ],
)
def test_other_options_are_refused_by_name(changes, name):
    loop = Loop()
    loop.run(2)
    with pytest.raises(ValueError, match=rf"state_dict: {name}: expected .*apply_hash3d"):
        Loop(**changes).cache.load_state_dict(loop.cache.state_dict())


def test_too_many_tables_are_refused():
    loop = Loop(max_conditions=2)
    loop.run(6)
    with pytest.raises(ValueError, match="max_conditions"):
        Loop(max_conditions=1, capacity=12).cache.load_state_dict(loop.cache.state_dict())


def test_the_layout_of_weights_does_not_matter():
    loop, other = Loop(), Loop()
    loop.run(2)
    other.unet.to(memory_format=torch.channels_last)
    other.cache.load_state_dict(loop.cache.state_dict())


def test_an_id_that_only_this_process_knows_is_refused():
    loop = Loop()
    loop.prompts[0] = object()
    loop.run(1)
    with pytest.raises(TypeError, match="condition"):
        loop.cache.state_dict()


def test_damaged_states_are_refused(tmp_path):
    loop = Loop()
    loop.run(2)
    path = tmp_path / "cache.safetensors"
    loop.cache.save(path)
    state = loop.cache.state_dict()
    for broken in ({}, {**state, "tables": []}, {**state, "about": {"format": 1}}, {"about": 1, "tables": 2}):
        with pytest.raises(ValueError, match="state_dict"):
            Loop().cache.load_state_dict(broken)
    with pytest.raises(ValueError, match="format"):
        Loop().cache.load_state_dict({**state, "about": {**state["about"], "format": 9}})
    content = path.read_bytes()
    for wrong in (content[:1000], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"cannot load a cache from {path}"):
            Loop().cache.load(path)
    loop.cache.table.save(path)
    with pytest.raises(ValueError, match=r"Hash3DCache\.save"):
        loop.cache.load(path)
    with pytest.raises(OSError, match="cannot write the cache"):
        loop.cache.save(tmp_path / "no" / "such" / "folder")


def test_a_removed_cache_is_refused():
    loop = Loop()
    state = loop.cache.state_dict()
    json.dumps(state["about"])
    loop.cache.remove()
    for call in (loop.cache.state_dict, lambda: loop.cache.load_state_dict(state)):
        with pytest.raises(RuntimeError, match="removed"):
            call()


def test_rejected_entries_stay_counted():
    loop = Loop()
    with torch.no_grad(), loop.cache.views(0.0, [0.0, float("nan")], 2.0, timestep=5):
        loop.unet(**build_inputs(loop.unet, rows=4))
    resumed: Hash3DCache = Loop().cache
    resumed.load_state_dict(loop.cache.state_dict())
    assert resumed.stats().rejected == loop.cache.stats().rejected == 1
    resumed.clear()
    assert resumed.stats().rejected == 1
