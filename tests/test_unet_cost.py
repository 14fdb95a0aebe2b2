"""Multiply-accumulates of the public U-Nets, against figures counted by other means."""

from __future__ import annotations

import pytest

from hash3d_cuda.unet import configs
from hash3d_cuda.unet import cost as cost_module
from hash3d_cuda.unet.configs import UNETS, UNetConfig, find_unet
from hash3d_cuda.unet.cost import encoder_cost, paper_macs, unet_cost

# Share of a full pass that a hit costs, by k, attention counted.
HIT_COSTS = {
    "sd21": {1: 0.079, 2: 0.224, 3: 0.380, 4: 0.470, 5: 0.564, 6: 0.673, 7: 0.759},
    "zero123": {1: 0.066, 2: 0.185, 4: 0.414, 7: 0.730},
    "sdxl": {1: 0.015, 2: 0.038},
}
FULL = {"sd21": 402, "zero123": 88, "sdxl": 3381}
SHAPES = {1: (320, 64, 64), 2: (320, 64, 64), 3: (640, 64, 64), 4: (640, 32, 32), 6: (1280, 32, 32), 7: (1280, 16, 16)}
BLOCKS = dict(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=16, attention_head_dim=8,
)  # fmt: skip
PAPER = {"sd21": (678.60, 622.21), "zero123": (168.78, 154.76)}  # its tables 1 and 2


@pytest.mark.parametrize("name", HIT_COSTS)
def test_full_passes_and_hits(name):
    cost = unet_cost(name, positions=tuple(HIT_COSTS[name]))
    assert cost.full_gmacs == pytest.approx(FULL[name], abs=0.6)
    assert cost.r == pytest.approx(HIT_COSTS[name], abs=6e-4)
    assert cost.hit_gmacs[2] == pytest.approx(cost.r[2] * cost.full_gmacs)


def test_by_default_all_positions_are_counted(monkeypatch):
    small = UNetConfig(
        "small", dict(block_out_channels=(32, 64), layers_per_block=1, **BLOCKS), latent_size=8, tokens=3
    )
    for module in (configs, cost_module):
        monkeypatch.setattr(module, "UNETS", {"small": small})
    cost = unet_cost("small")
    assert list(cost.r) == [1, 2, 3, 4] == list(cost.feature_shape)
    assert list(cost.r.values()) == sorted(cost.r.values()) and cost.r[4] < 1
    assert unet_cost("small", attention=False).full_gmacs < cost.full_gmacs


def test_without_attention_is_what_the_counter_gives_on_cpu_tensors():
    assert unet_cost("sd15", attention=False, positions=(1,)).full_gmacs == pytest.approx(338.61, abs=0.01)


def test_feature_shapes():
    shapes = unet_cost("sd21", positions=tuple(SHAPES)).feature_shape
    assert shapes == SHAPES
    assert unet_cost("zero123", positions=(2,)).feature_shape == {2: (320, 32, 32)}


def test_a_larger_latent_costs_more():
    small, large = unet_cost("sd21", positions=(2,)), unet_cost("sd21-768", positions=(2,))
    assert large.latent_size == 96 and large.full_gmacs > 2.25 * small.full_gmacs  # attention grows faster than area
    assert unet_cost("sd21", latent_size=96, positions=(2,)).full_gmacs == large.full_gmacs


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_figures(name):
    assert paper_macs(name) == pytest.approx(PAPER[name], abs=0.01)


def test_encoders():
    assert encoder_cost("TAESD", 512) == pytest.approx(122, abs=1)
    assert encoder_cost("KL-VAE", 512) == pytest.approx(558 + 576, abs=2)


def test_names():
    assert find_unet("SD 2.1") == "sd21" and find_unet("Zero123") == "zero123" and find_unet("SDXL") == "sdxl"
    assert len({config.label for config in UNETS.values()}) == len(UNETS)
    with pytest.raises(ValueError, match="name: expected one of 'sd15'"):
        unet_cost("sd9")
    with pytest.raises(ValueError, match="positions: expected an integer of at least 1 and at most 9, got 10"):
        unet_cost("sdxl", positions=(10,))
    with pytest.raises(ValueError, match="kind"):
        encoder_cost("VQ", 512)
