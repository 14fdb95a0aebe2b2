"""The split against the model's own forward, bit for bit: the test that a diffusers release has not changed it."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from unet_shapes import CONFIGS, POSITIONS, build_adapter, build_inputs, build_residuals, build_unet

from hash3d_cuda.unet import SplitUNet, UNetCall, count_positions

CHANGED = (
    f"diffusers {diffusers.__version__} changed UNet2DConditionModel.forward: hash3d_cuda/unet/split.py restates the order "
    "of its steps and must follow it"
)
EVERY_POSITION = [(name, k) for name, count in POSITIONS.items() for k in range(1, count + 1)]


@pytest.fixture(scope="module")
def unets() -> dict[str, UNet2DConditionModel]:
    return {name: build_unet(name) for name in CONFIGS}


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


@pytest.mark.parametrize(("name", "position"), EVERY_POSITION)
def test_every_position(unets: dict[str, UNet2DConditionModel], name: str, position: int) -> None:
    unet = unets[name]
    assert_parity(unet, position, **build_inputs(unet, rows=2))


@pytest.mark.parametrize(("name", "position"), EVERY_POSITION)
def test_odd_sizes(unets: dict[str, UNet2DConditionModel], name: str, position: int) -> None:
    unet = unets[name]
    assert_parity(unet, position, **build_inputs(unet, rows=1, size=(7, 10)))


@pytest.mark.parametrize(("name", "position"), EVERY_POSITION)
def test_controlnet_and_adapter(unets: dict[str, UNet2DConditionModel], name: str, position: int) -> None:
    unet = unets[name]
    inputs = build_inputs(unet, rows=1)
    inputs |= build_residuals(unet, inputs)
    assert_parity(unet, position, **inputs, down_intrablock_additional_residuals=build_adapter(unet, inputs))


@pytest.mark.parametrize(("name", "position"), EVERY_POSITION)
def test_adapter(unets: dict[str, UNet2DConditionModel], name: str, position: int) -> None:
    unet = unets[name]
    inputs = build_inputs(unet, rows=1)
    assert_parity(unet, position, **inputs, down_intrablock_additional_residuals=build_adapter(unet, inputs))


def test_adapter_under_the_controlnets_name(unets: dict[str, UNet2DConditionModel]) -> None:
    inputs = build_inputs(unets["sd15"], rows=1)
    inputs["down_block_additional_residuals"] = build_adapter(unets["sd15"], inputs)[:2]
    assert_parity(unets["sd15"], 6, **inputs)


@pytest.mark.parametrize("position", range(1, 13))
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
    assert_parity(
        unets["sd15"], 4, **inputs, encoder_attention_mask=mask, cross_attention_kwargs={"scale": 0.5}
    )


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
