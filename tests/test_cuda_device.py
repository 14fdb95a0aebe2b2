"""``decide="device"`` on a GPU: one graph launch per forward, no waiting, the answers of ``decide="host"``."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
from unet_shapes import build_unet

import hash3d_cuda as h3d
from hash3d_cuda import _C

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(bool(_C.missing_for_joins()), reason=f"no joined graphs: {_C.missing_for_joins()}"),
    pytest.mark.skipif(not hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"), reason="torch is older than 2.8"),
]
CELLS = 5  # azimuths that the views fall on
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")


class Loop:
    """A small U-Net under a cache, and calls of it from views of one's choice, told on the device."""

    def __init__(self, decide: str, views: int = 1, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self.views = views
        self.unet = build_unet("sd15").to("cuda", dtype)
        config = {"eta": 1.0, "position": 3, "capacity": 12, "num_buckets": 101, "strict": decide == "device"}
        self.cache = h3d.apply_hash3d(self.unet, h3d.Hash3DConfig(**{**config, **options}, decide=decide))
        random = torch.Generator("cuda").manual_seed(0)
        rows = 2 * views
        self.sample = torch.randn(rows, 4, 8, 8, device="cuda", generator=random).to(dtype)
        self.text = torch.randn(rows, 7, 12, device="cuda", generator=random).to(dtype)

    @torch.no_grad()
    def run(self, azimuth: torch.Tensor, timestep: torch.Tensor, noise: float = 0.0, **views: Any) -> torch.Tensor:
        with self.cache.views(elevation=0.0, azimuth=azimuth, radius=2.0, **views):
            return self.unet(self.sample + noise, timestep, encoder_hidden_states=self.text).sample


def walk(views: int, steps: int) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """Azimuths ``[views]``, a timestep and a shift of the latents per step, the tensors on the device."""
    rng = random.Random(0)
    azimuths = [[360.0 / CELLS * rng.randrange(CELLS) for _ in range(views)] for _ in range(steps)]
    return [
        (torch.tensor(a, device="cuda"), torch.tensor(500, device="cuda"), 0.01 * i) for i, a in enumerate(azimuths)
    ]


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("views", [1, 3])
def test_fifty_steps_equal_those_decided_on_the_host(views, eta):
    host, device = Loop("host", views, eta=eta), Loop("device", views, eta=eta)
    seen = set()
    for step in walk(views, 50):
        expected = host.run(*step)
        torch.testing.assert_close(device.run(*step), expected, rtol=1e-3, atol=1e-4)
        assert device.cache.last.kinds == host.cache.last.kinds
        seen |= set(device.cache.last.kinds)
    assert {"hit", "miss"} <= seen
    mine, theirs = device.cache.stats(), host.cache.stats()
    names = ("forwards", "hits", "misses", "bypasses", "rejected", "nbytes")
    assert [getattr(mine, name) for name in names] == [getattr(theirs, name) for name in names]
    assert mine.host_syncs == 0
    assert torch.equal(device.cache.table._state_dict()["serials"], host.cache.table._state_dict()["serials"])


def test_a_repeat_is_exact():
    """The very same input is answered with the very same numbers, by whichever branch."""
    loop = Loop("device", dtype=torch.float16)
    first, *rest = (loop.run(*walk(1, 1)[0]) for _ in range(4))
    assert [loop.cache.stats().misses, loop.cache.stats().hits] == [1, 3]
    for output in rest:
        torch.testing.assert_close(output, first, rtol=2e-3, atol=2e-3)


def test_no_step_waits():
    loop, steps = Loop("device", views=2, eta=0.8), walk(2, 20)
    loop.run(*steps[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in steps[1:]:
            loop.run(*step)
            loop.cache.served()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    loop.cache.served()  # sends for the last numbers, unless they are on their way
    torch.cuda.synchronize()
    loop.cache.served()
    torch.cuda.synchronize()
    stats = loop.cache.stats()
    assert loop.cache.served() == {"hits": stats.hits, "misses": stats.misses, "bypasses": stats.bypasses}
    assert stats.hits + stats.misses + stats.bypasses == 40


def test_a_step_is_one_graph_launch():
    loop, steps = Loop("device"), walk(1, 12)
    loop.run(*steps[0])
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for step in steps[1:]:
            loop.run(*step)
    names = [event.name for event in profile.events()]
    assert sum(name == "cudaGraphLaunch" for name in names) == len(steps) - 1
    waits = [name for name in names if any(wait in name for wait in WAITS) and "Pinned" not in name]
    assert not waits, waits


def test_a_hit_leaves_the_deep_part_out():
    """The time between events: a hit takes less of it than a miss, on a U-Net whose deep part is most of it."""
    loop = Loop("device", position=1)
    where, timestep, _ = walk(1, 1)[0]
    took = {}
    for kind, noise in (("warm", 0.0), ("hit", 0.0), ("miss", 0.0)):
        times = []
        for step in range(10):
            azimuth = where + 18.0 + 36.0 * step if kind == "miss" else where
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            loop.run(azimuth, timestep + (300 if kind == "miss" else 0), noise)
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
            assert kind == "warm" or loop.cache.last.kind == kind
        took[kind] = sorted(times)[5]
    assert took["hit"] < took["miss"], took


def test_conditions_weights_and_shapes_change_in_between():
    host, device = Loop("host", max_conditions=2), Loop("device", max_conditions=2)
    step = walk(1, 1)[0]

    def both(**views: Any) -> str:
        expected = host.run(*step, **views)
        torch.testing.assert_close(device.run(*step, **views), expected, rtol=1e-3, atol=1e-4)
        assert device.cache.last.kind == host.cache.last.kind
        return device.cache.last.kind

    assert [both(condition=name) for name in "abaabc"] == ["miss", "miss", "hit", "hit", "hit", "miss"]
    for loop in (host, device):
        with torch.no_grad():
            loop.unet.conv_in.weight.mul_(1.5)
    assert [both(condition="c") for _ in range(3)] == ["miss", "hit", "hit"]
    for loop in (host, device):  # the weights move: another graph, the same entries
        loop.unet.to("cpu").to("cuda")
    assert both(condition="c") in ("hit", "miss")
    for loop in (host, device):
        loop.cache.clear()
        loop.sample, loop.text = loop.sample.repeat(1, 1, 2, 2), loop.text
    assert [both() for _ in range(3)] == ["miss", "hit", "hit"]
    with device.cache.bypass():
        plain = device.run(*step)
    device.cache.remove()
    with torch.no_grad():
        assert torch.equal(device.unet(device.sample, step[1], encoder_hidden_states=device.text).sample, plain)


def test_autocast_and_another_stream():
    host, device = Loop("host"), Loop("device")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.autocast("cuda", torch.float16):
        for step in walk(1, 8):
            torch.testing.assert_close(device.run(*step), host.run(*step), rtol=1e-2, atol=1e-2)
    torch.cuda.current_stream().wait_stream(stream)
    assert device.cache.stats().hits == host.cache.stats().hits > 0


def test_what_cannot_work_is_named():
    loop = Loop("device")
    step = walk(1, 1)[0]
    loop.run(*step)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="decide: the forward is a CUDA graph of its own"), torch.cuda.graph(graph):
        loop.run(*step)
    torch.cuda.synchronize()
    unet = build_unet("sd15")
    cache = h3d.apply_hash3d(unet, h3d.Hash3DConfig(decide="device", capacity=4))
    wrong = pytest.raises(
        ValueError, match=r'decide: .*expected a sample on a CUDA device, got cpu; pass decide="host"'
    )
    with wrong, cache.views(0.0, 0.0, 2.0, 500), torch.no_grad():
        unet(torch.zeros(2, 4, 8, 8), 500, encoder_hidden_states=torch.zeros(2, 7, 12))
