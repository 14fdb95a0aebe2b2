"""What does the hook add to the U-Net's own work? SD 1.5's width, position 2, two rows of guidance.

    hit      against the head and tail of the split U-Net, called without a hook
    bypass   against the U-Net's own forward and an append of the feature
    miss     the same; the retrieval that found nothing is the hook's

A hit moves a feature out of the table on top of what head and tail move; a bypass and a miss move one into it.
``HASH3D_BENCH_SIDE`` (default 64) sets the latents' side.
"""

from __future__ import annotations

import pytest
import torch
from axes import compare, devices
from sd_unet import POSE, SIDE, Bare, Call, Hooked, make_call, make_unet

import hash3d_cuda as h3d


def check_hook(unet: torch.nn.Module, call: Call) -> tuple[Hooked, Bare, torch.Tensor]:
    """Miss, hit and the bare parts all give the plain forward's output; returns a cache that now hits."""
    bare, hooked = Bare(unet), Hooked(unet, eta=1.0)
    expected = call.run(unet)
    assert torch.equal(hooked.run(call), expected)
    hooked.expect("miss")
    assert torch.equal(hooked.run(call), expected)
    hooked.expect("hit")
    feature = bare.feature(call)
    assert torch.equal(bare.head_and_tail(call, feature), expected)
    return hooked, bare, feature


@pytest.fixture(scope="module", params=devices())
def unet(request):
    return make_unet(request.param)


@pytest.fixture(scope="module")
def prepared(unet):
    call = make_call(unet)
    return call, *check_hook(unet, call)


def rounds(device: str, quick: bool) -> int:
    """A full forward at SD's size takes a CPU many seconds."""
    if device != "cpu":
        return 51
    return 15 if quick else 11


def test_hit(benchmark, unet, prepared):
    call, hooked, bare, feature = prepared
    compare(
        benchmark,
        lambda: hooked.run(call),
        lambda: bare.head_and_tail(call, feature),
        against="bare head and tail",
        rounds=rounds(unet.device.type, quick=True),
        warmup=1,
        device=unet.device.type,
        limit="<= 1.03",
        note=f"latents {SIDE}x{SIDE}",
    )
    hooked.expect("hit")


@pytest.mark.parametrize("kind", ["bypass", "miss"])
def test_full(benchmark, unet, prepared, kind):
    call, _, _, feature = prepared
    hooked = Hooked(unet, eta=1.0 if kind == "miss" else 0.0)
    table = h3d.HashTable(
        feature.shape, call.sample.shape[1:], capacity=4, feature_dtype=feature.dtype, device=unet.device
    )
    azimuths = iter(range(0, 10**9, 31))  # a new cell each time
    places = iter(range(0, 10**9, 31))

    def rival() -> None:
        call.run(unet)
        table.append(h3d.make_keys(**{**POSE, "azimuth": next(places)}, timestep=500), call.sample[:1], feature[None])

    compare(
        benchmark,
        lambda: hooked.run(call, azimuth=POSE["azimuth"] if kind == "bypass" else next(azimuths)),
        rival,
        against="bare forward and append",
        rounds=rounds(unet.device.type, quick=False),
        warmup=1,
        device=unet.device.type,
        limit="<= 1.02" if kind == "bypass" else "",
        note=f"latents {SIDE}x{SIDE}",
    )
    hooked.expect(kind)
