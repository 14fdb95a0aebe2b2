"""The split against the model's own forward, bit for bit: the test that a diffusers release has not changed it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from unet_shapes import CONFIGS, POSITIONS, build_adapter, build_inputs, build_residuals, build_unet

from hash3d_cuda.unet import SplitUNet, UNetCall, count_positions

CHANGED = (
    f"diffusers {diffusers.__version__} changed UNet2DConditionModel.forward: hash3d_cuda/unet/split.py restates the "
    "order of its steps and must follow it"
)
EVERY_POSITION = [(name, k) for name, count in POSITIONS.items() for k in range(1, count + 1)]


@pytest.fixture(scope="module")
def unets() -> dict[str, UNet2DConditionModel]:
    return {name: build_unet(name) for name in CONFIGS}


@pytest.fixture(scope="module")
def cases(unets: dict[str, UNet2DConditionModel]) -> Callable[[str, str], tuple[dict[str, Any], torch.Tensor]]:
    """``(topology, variant)`` -> inputs and the model's own output, computed once for all positions."""

    @functools.cache
    def case(name: str, variant: str) -> tuple[dict[str, Any], torch.Tensor]:
        unet = unets[name]
        inputs = build_inputs(unet, rows=2, size=(7, 5) if "odd" in variant else (8, 8))
        if "controlnet" in variant:
            inputs |= build_residuals(unet, inputs)
        if "adapter" in variant:
            inputs["down_intrablock_additional_residuals"] = build_adapter(unet, inputs)
        return inputs, unet(**copied(inputs)).sample

    return case


def assert_parity(unet: UNet2DConditionModel, position: int, **inputs: Any) -> None:
    with torch.no_grad():
        split = SplitUNet(unet, position)(**copied(inputs))
        full = unet(**copied(inputs)).sample
    assert split.dtype == full.dtype and torch.equal(split, full), CHANGED


def copied(inputs: dict[str, Any]) -> dict[str, Any]:
    """``inputs`` with lists of their own: the model pops adapters' residuals from the caller's."""
    return {name: list(value) if isinstance(value, list) else value for name, value in inputs.items()}


def test_arguments_are_those_of_the_model() -> None:
    theirs = list(inspect.signature(UNet2DConditionModel.forward).parameters)[1:]
    assert [field.name for field in fields(UNetCall)] == theirs, CHANGED


@pytest.mark.parametrize("name", CONFIGS)
def test_number_of_positions(unets: dict[str, UNet2DConditionModel], name: str) -> None:
    assert count_positions(unets[name]) == POSITIONS[name]


@pytest.mark.parametrize("variant", ["plain", "odd size, controlnet, adapter"])
@pytest.mark.parametrize(("name", "position"), EVERY_POSITION)
def test_every_position(unets: Any, cases: Any, name: str, position: int, variant: str) -> None:
    inputs, full = cases(name, variant)
    assert torch.equal(SplitUNet(unets[name], position)(**inputs), full), CHANGED


@pytest.mark.parametrize("variant", ["controlnet", "adapter"])
@pytest.mark.parametrize(("name", "position"), [("sd15", 5), ("sdxl", 3), ("uneven", 6)])
def test_one_kind_of_residuals(unets: Any, cases: Any, name: str, position: int, variant: str) -> None:
    inputs, full = cases(name, variant)
    assert torch.equal(SplitUNet(unets[name], position)(**inputs), full), CHANGED


def test_adapter_under_the_controlnets_name(unets: dict[str, UNet2DConditionModel]) -> None:
    inputs = build_inputs(unets["sd15"], rows=1)
    inputs["down_block_additional_residuals"] = build_adapter(unets["sd15"], inputs)[:2]
    assert_parity(unets["sd15"], 6, **inputs)


@pytest.mark.parametrize("position", [1, 5, 6, 8, 9, 10, 12])
def test_freeu(position: int) -> None:
    unet = build_unet("sd15")
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    assert_parity(unet, position, **build_inputs(unet, rows=2))


@pytest.mark.parametrize("timestep", [7, 7.5, torch.tensor(7), torch.tensor([7]), torch.tensor([7.5])])
def test_timesteps(unets: dict[str, UNet2DConditionModel], timestep: Any) -> None:
    assert_parity(unets["sd15"], 3, **build_inputs(unets["sd15"], rows=2) | {"timestep": timestep})


def test_masks_and_attention_arguments(unets: dict[str, UNet2DConditionModel]) -> None:
    inputs = build_inputs(unets["sd15"], rows=2)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
    assert_parity(unets["sd15"], 4, **inputs, encoder_attention_mask=mask, cross_attention_kwargs={"scale": 0.5})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    unet = build_unet("sd21").to(dtype)
    inputs = build_inputs(unet, rows=1)
    inputs |= {name: inputs[name].to(dtype) for name in ("sample", "encoder_hidden_states")}
    assert_parity(unet, 5, **inputs)


def test_autocast(unets: dict[str, UNet2DConditionModel]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert_parity(unets["sd15"], 5, **build_inputs(unets["sd15"], rows=1))


@pytest.mark.parametrize("position", [1, 4, 7, 12])
def test_channels_last(position: int) -> None:
    unet = build_unet("sd15").to(memory_format=torch.channels_last)
    inputs = build_inputs(unet, rows=2)
    inputs["sample"] = inputs["sample"].to(memory_format=torch.channels_last)
    assert_parity(unet, position, **inputs)


def test_image_embeddings() -> None:
    """An IP-Adapter's shape: encoder_hidden_states becomes a pair."""
    unet = build_unet("sd15", encoder_hid_dim_type="text_image_proj", encoder_hid_dim=9)
    inputs = build_inputs(unet, rows=2)
    inputs["encoder_hidden_states"] = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(3))
    inputs["added_cond_kwargs"] = {"image_embeds": torch.ones(2, 12)}
    assert_parity(unet, 5, **inputs)
