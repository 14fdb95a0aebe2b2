"""The hook on a GPU: whole calls that hit, miss or bypass without the host ever waiting for the device."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
from unet_shapes import build_unet

import hash3d_cuda as h3d

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not h3d.HashTable.supports("cuda"), reason="this build has no CUDA code (nvcc was not found)"),
]
VIEWS = 4
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")


class Steps:
    """A small U-Net with a strict cache, and calls of it from views of one's choice."""

    def __init__(self, eta: float) -> None:
        self.unet = build_unet("sd15").cuda().half().requires_grad_(False)
        config = h3d.Hash3DConfig(eta=eta, groups=2, capacity=32, strict=True)
        self.cache = h3d.apply_hash3d(self.unet, config)
        self.sample = torch.randn(2 * VIEWS, self.unet.config.in_channels, 16, 16, device="cuda", dtype=torch.float16)
        self.context = torch.randn(2 * VIEWS, 7, self.unet.config.cross_attention_dim, device="cuda").half()
        self.timestep = torch.full((2 * VIEWS,), 500, device="cuda")

    @torch.no_grad()
    def run(self, radii: list[float]) -> torch.Tensor:
        """One call; the cache is told the views on the host."""
        with self.cache.views(elevation=10.0, azimuth=20.0, radius=radii, timestep=500):
            return self.unet(self.sample, self.timestep, encoder_hidden_states=self.context).sample


def radii(kind: str, step: int) -> list[float]:
    """Of views whose cells are all known, all new, or half and half."""
    known, new = [1.0 + i for i in range(VIEWS)], [10.0 * (step + 1) + i for i in range(VIEWS)]
    return {"hit": known, "miss": new, "partial": known[:2] + new[2:], "bypass": known}[kind]


def prepared(kind: str) -> Steps:
    """Steps whose next call is of the kind, warm."""
    steps = Steps(eta=0.0 if kind == "bypass" else 1.0)
    steps.run(radii("hit", 0))
    steps.run(radii(kind, 0))
    torch.cuda.synchronize()
    return steps


KINDS = ("hit", "miss", "partial", "bypass")


@pytest.mark.parametrize("kind", KINDS)
def test_no_call_waits(kind):
    steps = prepared(kind)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            steps.run(radii(kind, step))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps.cache.stats().host_syncs == 0
    half = ("hit",) * (VIEWS // 2) + ("miss",) * (VIEWS // 2)
    assert steps.cache.last.kinds == (half if kind == "partial" else (kind,) * VIEWS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_has_no_wait_and_no_copy_to_the_host(kind):
    """But for the serials of an append, which are copied to pinned memory and read when they have arrived."""
    steps = prepared(kind)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for step in range(1, 4):
            steps.run(radii(kind, step))
    names = [event.name for event in profile.events()]
    assert any("weigh" in name or "store" in name for name in names), "the trace has none of the engine's kernels"
    waits = [name for name in names if any(wait in name for wait in WAITS) and "Pinned" not in name]
    assert not waits, waits


@pytest.mark.parametrize("kind", KINDS)
def test_calls_equal_the_bare_unet(kind):
    """The same input from the same view: whatever the cache does, the answer is the plain forward's."""
    steps = prepared(kind)
    cached = steps.run(radii(kind, 1))
    with steps.cache.bypass():
        plain = steps.run(radii(kind, 1))
    torch.testing.assert_close(cached, plain, rtol=2e-3, atol=2e-3)
