"""An adapter of a model that nobody foresaw; and what every adapter's call must offer."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from eager_runner import eager_runner  # noqa: F401
from ldm_shapes import build, build_call
from torch import Tensor, nn

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import apply_hash3d
from hash3d_cuda.unet import Adapter, BoundCall, adapter, find_adapter, multi_view, register_adapter

HERE = {"elevation": 0.0, "azimuth": 0.0, "radius": 2.0}


class Stack(nn.Module):
    """Three layers on rows ``[R, 4]``: in, middle, out; the last sees the first's output too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(12, 4)
        self.out_channels = 4

    def forward(self, noisy: Tensor, t: Tensor, *, gain: float = 1.0) -> Tensor:
        first = (self.first(noisy) + t[:, None] / 1000).relu()
        return self.last(torch.cat([first, gain * self.middle(first).tanh()], dim=1))


class StackAdapter(Adapter):
    looked_for = "a Stack (first, middle, last)"
    compiles = True
    cut_blocks = ()

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return all(hasattr(model, name) for name in ("first", "middle", "last"))

    def count_positions(self) -> int:
        return 1

    def split(self, position: int) -> StackAdapter:
        return self

    def inputs(self, call: Any, entered: Any) -> tuple[Any, ...]:
        return call.sample, call.timestep, call.as_kwargs()["gain"]

    def head(self, noisy: Tensor, t: Tensor, gain: float) -> tuple[Tensor, Tensor, float]:
        first = (self.model.first(noisy) + t[:, None] / 1000).relu()
        return first, first, gain

    def deep(self, hidden: Tensor, conditioning: float) -> Tensor:
        return conditioning * self.model.middle(hidden).tanh()

    def tail(self, feature: Tensor, skips: Tensor, conditioning: float) -> Tensor:
        return self.model.last(torch.cat([skips, feature], dim=1))


@pytest.fixture(autouse=True)
def own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(adapter, "_adapters", list(adapter._adapters))


def test_a_registered_adapter() -> None:
    model = Stack().eval().requires_grad_(False)
    with pytest.raises(TypeError, match=r"input_blocks.*got 'Stack'.*register an adapter"):
        apply_hash3d(model)
    assert register_adapter(StackAdapter) is StackAdapter
    cache = apply_hash3d(model, Hash3DConfig(eta=1.0, position=1, groups=2, capacity=8))
    noisy, t = torch.randn(4, 4), torch.tensor([1.0, 2.0, 1.0, 2.0])
    expected, louder = model(noisy, t), model(noisy, t, gain=2.0)
    for azimuths, kinds in (((0, 90), ("miss", "miss")), ((0, 180), ("hit", "miss"))):
        with cache.views(0, list(azimuths), 2):
            torch.testing.assert_close(model(noisy, t), expected, rtol=0, atol=1e-6)
        assert cache.last.kinds == kinds
    with cache.views(0, [0, 90], 2):  # an argument of another value is another condition
        assert torch.equal(model(noisy, t, gain=2.0), louder) and cache.last.kinds == ("miss", "miss")
    cache.remove()
    assert "forward" not in vars(model)


def test_what_cannot_be_registered() -> None:
    class Unfinished(Adapter):
        looked_for = "nothing"

    for kind in (Unfinished, Stack, StackAdapter(Stack()), None):
        with pytest.raises(TypeError, match="kind: expected a subclass of Adapter"):
            register_adapter(kind)  # type: ignore[arg-type]
    silent = type("Silent", (StackAdapter,), {"looked_for": None})
    with pytest.raises(TypeError, match="looked_for"):
        register_adapter(silent)


def test_calls_by_name() -> None:
    def forward(self: Any, x: Tensor, timesteps: Tensor, context: Any = None, **kwargs: Any) -> None: ...

    x, t = torch.zeros(4, 2), torch.arange(4)
    call = BoundCall.bind(forward, (x,), {"timesteps": t, "context": [x + 1], "more": "text"})
    assert call.sample is x and call.timestep is t and list(call.given()) == ["context", "more"]
    taken = call.take([0, 2])
    assert taken.timestep.tolist() == [0, 2] and len(taken.given()["context"][0]) == 2
    assert call.can_take and not BoundCall.bind(forward, (x, t), {"image": torch.zeros(2, 2)}).can_take
    assert call.with_values({"x": x + 2}, 7).timestep == 7
    with pytest.raises(TypeError):
        BoundCall.bind(forward, (x,), {})


def test_the_model_is_not_touched_meanwhile() -> None:
    """While a forward goes through the cache, another thread runs the plain model."""
    model, call = build("ldm"), build_call("ldm", rows=2)
    full = model(**call)
    cache = apply_hash3d(model, Hash3DConfig(eta=1.0, position=3, capacity=4))
    others: list[bool] = []

    def elsewhere(*_: Any) -> None:
        thread = threading.Thread(target=lambda: others.append(torch.equal(model(**call), full)))
        thread.start()
        thread.join()

    hook = model.input_blocks[2][0].register_forward_hook(
        lambda *_: elsewhere() if threading.current_thread() is threading.main_thread() else None
    )
    for _ in range(2):
        with cache.views(**HERE):
            assert torch.equal(model(**call), full)
    hook.remove()
    assert cache.last.kind == "hit" and len(others) >= 2 and all(others)
    cache.remove()


@pytest.mark.parametrize(("kind", "options", "rows"), [("ldm", {}, 4), ("imagedream", multi_view(5), 20)])
def test_decisions_on_the_device(kind: str, options: dict[str, Any], rows: int, eager_runner: Any) -> None:  # noqa: F811
    """The pieces that are captured on a GPU, run one by one: the same answers."""
    model, call = build(kind), build_call(kind, rows=rows, frames=5)
    full = model(**call)
    cache = apply_hash3d(model, Hash3DConfig(eta=1.0, position=2, capacity=8, decide="device", **options))
    for azimuths, kinds in (((0, 90), "mm"), ((0, 90), "hh"), ((0, 180), "hm")):
        with cache.views(0, list(azimuths), 2):
            torch.testing.assert_close(model(**call), full, rtol=0, atol=2e-6)
        assert [found[0] for found in cache.last.kinds] == list(kinds)
    cache.remove()


def test_what_a_wrapper_holds_is_named() -> None:
    wrapper = nn.Module()
    wrapper.unet = build("ldm")
    with pytest.raises(TypeError, match=r"pass its \.unet"):
        find_adapter(wrapper)
    with pytest.raises(TypeError, match=r"OptimizedModule.*pass its \._orig_mod"):
        find_adapter(torch.compile(build("ldm")))
    with pytest.raises(TypeError, match="got 'NoneType'"):
        find_adapter(None)


@pytest.mark.parametrize("options", [{}, {"mode": "noise"}, {"decide": "device"}], ids=str)
def test_a_removed_cache_lets_go_of_the_model(options: dict[str, Any], eager_runner: Any) -> None:  # noqa: F811
    model, call = build("ldm"), build_call("ldm", rows=2)
    cache = apply_hash3d(model, Hash3DConfig(eta=1.0, capacity=4, **options))
    for _ in range(2):
        with cache.views(10.0, 0.0, 2.0, timestep=5):
            model(**call)
    told = cache.stats()
    cache.remove()
    cache.remove()
    left = weakref.ref(model)
    del model
    gc.collect()
    assert left() is None
    assert cache.stats() == replace(told, nbytes=0) and told.hits == 1 and cache.table is None


def test_removed_while_a_forward_waits() -> None:
    model, call = build("ldm"), build_call("ldm", rows=2)
    full = model(**call)
    cache = apply_hash3d(model, Hash3DConfig(eta=1.0, capacity=4))
    found: list[Tensor] = []

    def run() -> None:
        with torch.no_grad(), cache.views(10.0, 0.0, 2.0, timestep=5):
            entered.set()
            found.append(model(**call))

    entered = threading.Event()
    with cache._hooked.lock:
        thread = threading.Thread(target=run)
        thread.start()
        entered.wait()
        time.sleep(0.05)  # it comes to the lock, or after the cache: the answer is right in either case
        cache.remove()
    thread.join()
    assert torch.equal(found[0], full)
