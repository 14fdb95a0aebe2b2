"""Hits and partial batches under every kind of input: residuals, layouts, dtypes, sizes, row orders, masks."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from unet_shapes import CONFIGS, build_adapter, build_inputs, build_residuals, build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import apply_hash3d


@pytest.fixture(scope="module")
def unets() -> dict[str, UNet2DConditionModel]:
    return {name: build_unet(name) for name in CONFIGS}


def check(unet: UNet2DConditionModel, inputs: dict[str, Any], tolerance: float = 2e-6, **options: Any) -> Tensor:
    """Two items of two rows: misses equal the plain U-Net, hits too, and a partial batch within ``tolerance``. Returns
    what the hits returned."""
    cache = apply_hash3d(unet, Hash3DConfig(**{"eta": 1.0, "capacity": 8, **options}))
    try:
        with cache.bypass():
            full = unet(**copied(inputs)).sample
        with cache.views(10.0, [0.0, 120.0], 2.0):
            assert torch.equal(unet(**inputs).sample, full) and cache.last.kinds == ("miss", "miss")
            hit = unet(**inputs).sample
        assert cache.last.kinds == ("hit", "hit") and torch.equal(hit, full)
        assert hit.stride() == full.stride() and hit.dtype == full.dtype
        with cache.views(10.0, [240.0, 120.0], 2.0):
            partial = unet(**inputs).sample
        assert cache.last.kinds == ("miss", "hit")
        torch.testing.assert_close(partial, full, rtol=0, atol=tolerance)
        return hit
    finally:
        cache.remove()


def copied(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in inputs.items()}


@pytest.mark.parametrize("position", [1, 4, 8])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_controlnet_and_adapter(unets: Any, name: str, position: int) -> None:
    unet = unets[name]
    inputs = build_inputs(unet, rows=4)
    inputs |= build_residuals(unet, inputs)
    check(unet, inputs, position=position)
    adapter = build_adapter(unet, inputs)
    check(unet, inputs | {"down_intrablock_additional_residuals": adapter}, position=position)
    assert len(adapter) == len(unet.down_blocks) + 1  # the caller's list is left alone


def test_adapter_of_a_noise_cache(unets: Any) -> None:
    """The model pops an adapter's residuals from the list it is given: that is not the caller's."""
    unet = unets["sd15"]
    inputs = build_inputs(unet, rows=4)
    adapter = build_adapter(unet, inputs)
    check(unet, inputs | {"down_intrablock_additional_residuals": adapter}, mode="noise")
    assert len(adapter) == len(unet.down_blocks) + 1


@pytest.mark.parametrize("mode", ["feature", "noise"])
def test_every_conditioning_input(unets: Any, mode: str) -> None:
    """Class labels, timestep_cond, masks, one timestep per row, no mid block, uneven layers."""
    unet = unets["uneven"]
    inputs = build_inputs(unet, rows=4)
    mask = (torch.arange(28).view(4, 7) % 3 > 0).long()
    check(unet, inputs | {"encoder_attention_mask": mask}, mode=mode, position=5)


@pytest.mark.parametrize("timestep", [500, 500.5, torch.tensor(500), torch.tensor([500])])
def test_timesteps(unets: Any, timestep: Any) -> None:
    check(unets["sd15"], build_inputs(unets["sd15"], rows=4) | {"timestep": timestep})


@pytest.mark.parametrize("size", [(7, 5), (16, 9)])
@pytest.mark.parametrize("position", [2, 4, 6])
def test_odd_sizes(unets: Any, size: tuple[int, int], position: int) -> None:
    check(unets["sd15"], build_inputs(unets["sd15"], rows=4, size=size), position=position)


@pytest.mark.parametrize("position", [2, 3, 9])
def test_channels_last(position: int) -> None:
    unet = build_unet("sd15").to(memory_format=torch.channels_last)
    inputs = build_inputs(unet, rows=4)
    inputs["sample"] = inputs["sample"].to(memory_format=torch.channels_last)
    hit = check(unet, inputs, position=position)
    assert hit.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    unet = build_unet("sd21").to(dtype)
    inputs = build_inputs(unet, rows=4)
    inputs |= {name: inputs[name].to(dtype) for name in ("sample", "encoder_hidden_states")}
    check(unet, inputs, tolerance=0.02, position=5)


def test_autocast(unets: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check(unets["sd15"], build_inputs(unets["sd15"], rows=4), tolerance=0.02, position=5)


def test_freeu() -> None:
    """FreeU scales features in place: what was stored must not be scaled twice."""
    unet = build_unet("sd15")
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    for position in (7, 9, 12):
        check(unet, build_inputs(unet, rows=4), position=position)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 2e-3), (torch.int8, 2e-2), (torch.float8_e4m3fn, 8e-2)])
def test_stored_dtype(unets: Any, dtype: torch.dtype, most: float) -> None:
    """Storage in fewer bits: hits are near, misses of a partial batch are not rounded."""
    unet = unets["sd15"]
    inputs = build_inputs(unet, rows=4)
    cache = apply_hash3d(unet, Hash3DConfig(eta=1.0, capacity=8, feature_dtype=dtype))
    full = unet(**inputs).sample
    for azimuths in ([0.0, 120.0], [240.0, 120.0]):
        with cache.views(10.0, azimuths, 2.0):
            output = unet(**inputs).sample
    cache.remove()
    assert cache.last.kinds == ("miss", "hit")
    torch.testing.assert_close(output[[0, 2]], full[[0, 2]], rtol=0, atol=2e-6)
    difference = (output[[1, 3]] - full[[1, 3]]).abs().max().item()
    assert 2e-6 < difference < most


def test_attention_arguments_with_tensors(unets: Any) -> None:
    """Tensors handed to attention processors have rows of unknown meaning: the deep part then runs for all."""
    unet = unets["sd15"]
    inputs = build_inputs(unet, rows=4)
    rows: list[int] = []
    counter = unet.mid_block.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    check(unet, inputs | {"cross_attention_kwargs": {"tensor": torch.zeros(4)}})
    counter.remove()
    assert rows[2:] == [4]  # after the plain forward and the misses
    rows.clear()
    counter = unet.mid_block.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    check(unet, inputs)
    counter.remove()
    assert rows[2:] == [2]


@pytest.mark.parametrize("rows", ["group-major", "item-major", "perp-neg", "callable", "matrix", "array"])
@pytest.mark.parametrize("position", [2, 5])
def test_row_orders(unets: Any, rows: str, position: int) -> None:
    """The rows of a batch are put in each order; each item's answer must come with its rows."""
    unet = unets["zero123"]
    orders = {
        "group-major": [[0, 2, 4, 6], [1, 3, 5, 7]],
        "item-major": [[0, 1, 2, 3], [4, 5, 6, 7]],
        "perp-neg": [[0, 2, 4, 5], [1, 3, 6, 7]],
        "callable": [[7, 1, 3, 5], [0, 2, 4, 6]],
        "matrix": [[7, 1, 3, 5], [0, 2, 4, 6]],
        "array": [[7, 1, 3, 5], [0, 2, 4, 6]],
    }
    option = {
        "callable": lambda batch, groups: orders["callable"],
        "matrix": torch.tensor(orders["matrix"]),
        "array": numpy.array(orders["array"]),
    }
    inputs = build_inputs(unet, rows=8)
    cache = apply_hash3d(
        unet, Hash3DConfig(eta=1.0, groups=4, rows=option.get(rows, rows), capacity=8, position=position)
    )
    stored = []
    with cache.views(10.0, [0.0, 120.0], 2.0):
        full = unet(**inputs).sample
        table = cache.table
        append = table.append
        table.append = lambda keys, latents, features: stored.append((keys, latents)) or append(keys, latents, features)
        assert torch.equal(unet(**inputs).sample, full) and cache.last.kind == "hit"
    with cache.views(10.0, [0.0, 240.0], 2.0):
        partial = unet(**inputs).sample
    del table.append
    cache.remove()
    assert cache.last.kinds == ("hit", "miss")
    torch.testing.assert_close(partial, full, rtol=0, atol=2e-6)
    assert torch.equal(partial[orders[rows][0]], full[orders[rows][0]])
    ((keys, latents),) = stored
    first = orders[rows][1][0]
    assert keys[:, :3].tolist() == [[10.0, 240.0, 2.0]]
    assert keys[0, 3] == inputs["timestep"][first]
    assert torch.equal(latents[0], inputs["sample"][first, :4])  # the image's latent behind it is no noise


@pytest.mark.parametrize("rows", [5, None, torch.tensor(3), numpy.zeros(())])
def test_rows_of_another_type(rows: Any) -> None:
    with pytest.raises(TypeError, match=r"rows: expected the name of an order, a callable .* matrix"):
        Hash3DConfig(rows=rows)


@pytest.mark.parametrize("rows", [[], [[0, 1], [2]], [[0, 0]], [[0.0, 1.0]], [[False, True]], [[0, 1, 2]], [["a"]]])
def test_rows_that_are_no_matrix(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"rows: expected \[\d, 2\] row numbers"):
        Hash3DConfig(rows=rows)


def test_tuple_output_and_positional_arguments(unets: Any) -> None:
    unet = unets["sd15"]
    inputs = build_inputs(unet, rows=2)
    cache = apply_hash3d(unet, Hash3DConfig(eta=1.0, capacity=4))
    arguments = (inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])
    full = unet(*arguments, return_dict=False)
    with cache.views(0.0, 0.0, 2.0):
        for _ in range(2):
            output = unet(*arguments, return_dict=False)
            assert isinstance(output, tuple) and torch.equal(output[0], full[0])
    assert cache.last.kind == "hit"
    cache.remove()
