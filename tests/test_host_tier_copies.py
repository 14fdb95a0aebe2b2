"""The tier's copies on a GPU: which stream they are on, what they wait for, and that the host waits for nothing."""

from __future__ import annotations

import contextlib
import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from simulated_cuda import Event, HostWaits, on_gpu, simulated_cuda

import hash3d_cuda as h3d
from hash3d_cuda.host_tier import FrontTable, HostTier
from hash3d_cuda.host_tier.copier import CudaCopier
from hash3d_cuda.host_tier.front import host_bytes
from hash3d_cuda.results import QueryResult


class Recorder:
    """Streams, events and copies that only say in what order they were called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.streams = iter(("down", "up"))
        self.active = ["main"]
        self.registered: dict[int, int] = {}
        self.error = 0
        stubs: dict[str, Any] = {
            "Stream": lambda device: self.stream(next(self.streams)), "Event": self.event, "stream": self.entered,
            "current_stream": lambda device: self.stream("main"), "cudart": lambda: self,
        }  # fmt: skip
        for name, value in stubs.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def stream(self, name: str) -> Any:
        return SimpleNamespace(
            name=name, wait_event=lambda event: self.log.append(f"{name} waits for {event.name}"),
            synchronize=lambda: self.log.append(f"host waits for {name}"),
        )  # fmt: skip

    def event(self) -> Any:
        event = SimpleNamespace(name=f"event {sum('is on' in line for line in self.log)}", query=lambda: False)
        event.record = lambda stream: self.log.append(f"{event.name} is on {stream.name}")
        return event

    @contextlib.contextmanager
    def entered(self, stream: Any) -> Any:
        self.active.append(stream.name)
        yield
        self.active.pop()

    def tensor(self, name: str) -> Any:
        def copy_(source: Any, non_blocking: bool = False) -> None:
            assert non_blocking
            self.log.append(f"{source.name} to {name} on {self.active[-1]}")

        return SimpleNamespace(name=name, copy_=copy_, record_stream=lambda s: self.log.append(f"{name}: {s.name}"))

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.registered[address] = size
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


def test_each_direction_has_a_stream_and_waits_for_what_it_must(monkeypatch):
    seen = Recorder(monkeypatch)
    copier = CudaCopier(torch.device("cuda", 0), [seen.tensor("slots")])
    assert seen.log == ["slots: down", "slots: up"], "or the slots' memory could be reused under a copy"
    stored = copier.mark()
    left = copier.down([(seen.tensor("host row"), seen.tensor("slot"))], (stored, None))
    came = copier.up([(seen.tensor("landing"), seen.tensor("old row"))], (left,))
    copier.hold(came)
    copier.hold(None)
    assert seen.log[2:] == [
        "event 0 is on main",
        "down waits for event 0", "slot to host row on down", "event 1 is on down",
        "up waits for event 1", "old row to landing on up", "event 2 is on up",
        "main waits for event 2",
    ]  # fmt: skip
    assert not copier.arrived(came) and copier.arrived(None)


def test_host_memory_is_pinned_as_it_lies_and_let_go(monkeypatch):
    seen = Recorder(monkeypatch)
    copier = CudaCopier(torch.device("cuda", 0), [])
    rows = copier.empty(3, 5, torch.float16)
    assert seen.registered == {rows.data_ptr(): 30} and rows.shape == (3, 5)
    del copier, rows
    gc.collect()
    assert seen.registered == {} and seen.log == ["host waits for down", "host waits for up"]
    seen.error = 2
    seen.streams = iter(("down", "up"))
    with pytest.raises(MemoryError, match=r"host_budget: 30 bytes .* cannot be pinned \(CUDA error 2\)"):
        CudaCopier(torch.device("cuda", 0), []).empty(3, 5, torch.float16)


def key(azimuth: float) -> torch.Tensor:
    return h3d.make_keys(0.0, azimuth, 2.0, 100.0)


def gpu_tier() -> HostTier:
    """Six slots, two of them for what comes back; features of 80 KiB, whose copies a driver does not take along."""
    arguments = h3d.Hash3DConfig(grids=(h3d.Grid(30.0, 30.0, 1.0, 100.0),), capacity=8, queue_length=2, num_buckets=101)
    options = arguments.table_arguments(torch.float32, torch.device("cuda"))
    table = FrontTable((20_480,), (3,), **options)
    fixed, entry = host_bytes(table.options)
    return HostTier(table, options, fixed + 32 * entry)


def test_the_host_never_waits_and_answers_when_copies_have_arrived(monkeypatch):
    """On a simulated GPU: appends, hints and retrievals; a copy that is not over makes a miss."""
    asked = []

    def ask(self: FrontTable, slots: Any, key: Any, latent: Any, out: Any) -> QueryResult:
        asked.append(slots)
        return QueryResult(out, None, None, None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(FrontTable, "ask", ask)
    with simulated_cuda() as gpu:
        tier = gpu_tier()
        zeros = on_gpu(torch.zeros(1, 3)), on_gpu(torch.ones(1, 20_480))
        out = on_gpu(torch.full((1, 20_480), 7.0))
        with gpu.watch():
            for place in range(10):
                tier.append(key(30.0 * place), *zeros)
            assert tier.query(key(270.0), zeros[0], out) == [True] and not asked, "the device has it"
            monkeypatch.setattr(Event, "reached", False)
            tier.prefetch(key(0.0))
            assert tier.query(key(0.0), zeros[0], out) == [False] and tier.stats.late == 1
            monkeypatch.setattr(Event, "reached", True)
            assert tier.query(key(0.0), zeros[0], out) == [True]
            assert tier.stats.hits == 1 and len(asked) == 1 and asked[0][0][0] in tier.table.landing
            assert tier.query(key(30.0), zeros[0], out) == [False], "nobody named it"
            with pytest.raises(HostWaits):
                tier._state_dict()
        assert gpu.copies["to host"] >= 20 and gpu.copies["to device"] >= 2


def test_an_entry_stored_just_now_is_not_trusted_before_its_fate_is_known(monkeypatch):
    """It may have been rejected on the GPU; its slot then holds another's numbers."""
    asked = []
    monkeypatch.setattr(FrontTable, "ask", lambda *told: asked.append(told))
    with simulated_cuda() as gpu, gpu.watch():
        tier = gpu_tier()
        zeros = on_gpu(torch.zeros(1, 3)), on_gpu(torch.ones(1, 20_480))
        for place in range(7):
            tier.append(key(30.0 * place), *zeros)
        tier.prefetch(key(0.0))
        tier.query(key(180.0), zeros[0], on_gpu(torch.zeros(1, 20_480)))
        monkeypatch.setattr(Event, "reached", False)
        tier.append(key(1.0), *zeros)  # beside the entry that has come back
        assert tier.query(key(0.0), zeros[0], on_gpu(torch.zeros(1, 20_480))) == [True]
        assert not asked and tier.stats.late == 1, "the device answered alone"
