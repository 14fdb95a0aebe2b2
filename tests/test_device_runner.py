"""How the pieces of ``decide="device"`` are run: what is refused, captured and launched, and that nothing waits."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from both_caches import OPTIONS, SAME, Both, walk
from eager_runner import eager_runner  # noqa: F401
from simulated_cuda import HostWaits, module_to_gpu, on_gpu, simulated_cuda
from torch import nn
from unet_shapes import build_inputs, build_unet

import hash3d_cuda as h3d
from hash3d_cuda.hook import Hash3DCache, apply_hash3d

pytestmark = pytest.mark.usefixtures("eager_runner")


class TestRealRunner:
    """What ``GraphRunner`` says where it cannot work."""

    @pytest.fixture(autouse=True)
    def real(self, monkeypatch, eager_runner):  # noqa: F811
        from hash3d_cuda.device_forward import DeviceForward
        from hash3d_cuda.device_runner import GraphRunner

        monkeypatch.setattr(DeviceForward, "runner", GraphRunner)

    def apply(self) -> tuple[nn.Module, Hash3DCache]:
        unet = build_unet("sd15")
        return unet, apply_hash3d(unet, h3d.Hash3DConfig(**OPTIONS, decide="device"))

    def test_without_a_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match=r'decide: with "device", expected a CUDA device.*pass decide="host"'):
            self.apply()

    def test_an_old_torch(self, monkeypatch):
        monkeypatch.delattr(torch.cuda.CUDAGraph, "raw_cuda_graph")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", type("CUDAGraph", (), {}))
        with pytest.raises(RuntimeError, match=r"decide: .*2\.8 or later"):
            self.apply()

    def test_an_old_driver_and_a_sample_on_the_cpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr("hash3d_cuda._C.missing_for_joins", lambda: "the driver is one for CUDA 12.2")
        with pytest.raises(RuntimeError, match=r"decide: .*CUDA 12\.2; pass decide="):
            self.apply()
        monkeypatch.setattr("hash3d_cuda._C.missing_for_joins", lambda: "")
        unet, cache = self.apply()
        wrong = pytest.raises(ValueError, match=r"decide: .*sample on a CUDA device, got cpu")
        with wrong, torch.no_grad(), cache.views(0.0, 0.0, 2.0, 500):
            unet(**build_inputs(unet, rows=2))
        cache.remove()


class SimulatedRunner:
    """Launches the pieces on a GPU that is not there; what it has to know of ``need`` it does not ask the GPU."""

    def __init__(self, pieces: Any, unet: nn.Module) -> None:
        self.pieces = pieces

    @staticmethod
    def check_machine() -> None: ...

    @staticmethod
    def check_sample(sample: Any) -> None: ...

    def is_stale(self) -> bool:
        return False

    def launch(self) -> None:
        with self.pieces.running():
            self.pieces.before()
            if self.pieces.need.inner[0] != 0:
                self.pieces.body()
            self.pieces.after()


def test_no_piece_waits(monkeypatch):
    """Nothing that fills, runs or reads out the pieces would make the host wait for a GPU: poses, timesteps and all
    else lie there. Answers and counters are those of a CPU."""
    from hash3d_cuda.device_forward import DeviceForward

    kinds = [((10.0, 95.0), 500), ((10.0, 95.0), 500), ((10.0, 200.0), 500), ((10.0, 200.0), 800)]
    options = {**OPTIONS, "eta": 0.8, "seed": 3}

    def answers(there: Any, unet: nn.Module, decide: str) -> tuple[list[Any], Hash3DCache]:
        cache = apply_hash3d(unet, h3d.Hash3DConfig(**options, decide=decide))
        made = []
        for step, (azimuth, timestep) in enumerate(kinds * 3):
            inputs = {name: there(value) for name, value in build_inputs(unet, rows=4, seed=step).items()}
            inputs["timestep"] = there(torch.full((4,), timestep))
            views = cache.views(0.0, there(torch.tensor(azimuth)), 2.0)
            with guard.watch() if decide == "device" else contextlib.nullcontext(), torch.no_grad(), views:
                made.append((unet(**inputs).sample, cache.last))
                cache.served()
        return made, cache

    expected, host = answers(lambda value: value, build_unet("sd15"), "host")
    monkeypatch.setattr(DeviceForward, "runner", SimulatedRunner)
    with simulated_cuda() as guard:
        made, cache = answers(on_gpu, module_to_gpu(build_unet("sd15")), "device")
        assert guard.copies["to host"] > 0, "the counters, to pinned memory"
        for (output, decision), (same, decided) in zip(made, expected, strict=True):
            torch.testing.assert_close(output.inner, same, **SAME)
            assert decision.kinds == decided.kinds
        with pytest.raises(HostWaits), guard.watch():
            cache.stats()
        mine, theirs = cache._hooked.counted(wait=True), host._hooked.counted(wait=True)
        assert all(mine[kind] == theirs[kind] > 0 for kind in ("hit", "miss", "bypass"))
        assert cache.served() == host.served()


class FakeGraph:
    """In place of ``torch.cuda.CUDAGraph``: a piece, kept to be run."""

    pieces: ClassVar[dict[int, Any]] = {}

    def __init__(self, keep_graph: bool = False) -> None:
        assert keep_graph

    def raw_cuda_graph(self) -> int:
        return id(self)


class FakeJoined:
    """In place of the engine's: runs captured pieces in the order in which it was given them."""

    def __init__(self, device: int, before: int, body: int, after: int, need: int) -> None:
        self.order, self.need, self.streams = (before, body, after), need, []

    def launch(self, stream: int) -> None:
        before, body, after = (FakeGraph.pieces[place] for place in self.order)
        self.streams.append(stream)
        runner = before.__self__
        assert runner.need.data_ptr() == self.need
        with runner.running():
            before()
            if runner.need.item():
                body()
            after()


def test_graphs_are_captured_joined_and_launched(monkeypatch):
    """All of ``GraphRunner`` but torch's capture and CUDA's graphs."""
    from hash3d_cuda import device_runner
    from hash3d_cuda.device_forward import DeviceForward
    from hash3d_cuda.device_pieces import DevicePieces

    captured, kept, stream = [], [], SimpleNamespace(cuda_stream=7)

    def keep(piece: Any, *told: Any) -> FakeGraph:
        captured.append(piece.__name__)
        graph = FakeGraph(keep_graph=True)
        FakeGraph.pieces[id(graph)] = piece
        return graph

    for name in ("check_machine", "check_sample"):
        monkeypatch.setattr(device_runner.GraphRunner, name, staticmethod(lambda *told: None))
    monkeypatch.setattr(DeviceForward, "runner", device_runner.GraphRunner)
    monkeypatch.setattr(device_runner, "_capture", keep)
    monkeypatch.setattr(device_runner._C, "JoinedGraph", FakeJoined)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(DevicePieces, "keep_for", lambda self, stream: kept.append(stream.cuda_stream))
    both = Both(eta=0.8)
    made = walk(both, 1, 8)
    assert captured == ["before", "body", "after"] and len(set(made)) == 3
    both.compare()
    stream = SimpleNamespace(cuda_stream=9)
    walk(both, 1, 2)
    assert kept == [7, 9]
    for unet in both.unets:
        unet.conv_in.weight.data = unet.conv_in.weight.data.clone()
    with pytest.warns(RuntimeWarning, match="the weights have moved"):
        walk(both, 1, 1)
    assert captured == ["before", "body", "after"] * 2
    for unet in both.unets:
        unet.down_blocks[0].resnets[0].dropout.p = 0.1
        unet.train()
    with pytest.raises(RuntimeError, match=r"decide: .*dropout's random numbers.*pass decide="):
        walk(both, 1, 1)
    for unet in both.unets:
        unet.eval()
        unet.down_blocks[0]._hf_hook = SimpleNamespace(offload=True)
    with pytest.raises(RuntimeError, match=r"decide: the weights are offloaded.*pass decide="):
        walk(both, 2, 1)


def test_a_capture_converts_weights_itself(monkeypatch):
    """Autocast's cache is off within, and as it was behind it."""
    from hash3d_cuda.device_runner import _capture

    told, seen = {}, []

    @contextlib.contextmanager
    def graph(graph: Any, **options: Any):
        told.update(options)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    pieces = SimpleNamespace(running=contextlib.nullcontext)
    with torch.autocast("cpu", torch.bfloat16):
        before = torch.is_autocast_cache_enabled()
        _capture(lambda: seen.append(torch.is_autocast_cache_enabled()), pieces, "stream", "pool")
        assert torch.is_autocast_cache_enabled() == before
    assert seen == [False]
    assert told == {"pool": "pool", "stream": "stream", "capture_error_mode": "thread_local"}
