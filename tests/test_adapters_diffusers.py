"""The cache under diffusers' UNet2DModel and its transformers, at every position, with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DModel,
    UNetMotionModel,
)
from torch import Tensor, nn

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d
from hash3d_cuda.unet import find_adapter

_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "in_channels": 4,
    "out_channels": 4,
}
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 4, "sample_size": 8, "patch_size": 2}
MAKERS: dict[str, Any] = {
    "unet2d": lambda: UNet2DModel(**_UNET),
    "unet2d-classes": lambda: UNet2DModel(
        **{**_UNET, "time_embedding_type": "fourier", "num_class_embeds": 5, "downsample_type": "resnet"},
        upsample_type="resnet",
        center_input_sample=True,
    ),
    "dit": lambda: DiTTransformer2DModel(**_HEADS, num_layers=7, num_embeds_ada_norm=1000, norm_num_groups=4),
    "pixart": lambda: PixArtTransformer2DModel(
        **_HEADS, num_layers=6, out_channels=4, cross_attention_dim=8, caption_channels=6, norm_num_groups=4
    ),
    "sd3": lambda: SD3Transformer2DModel(
        **{**_HEADS, "num_layers": 6, "joint_attention_dim": 6, "caption_projection_dim": 8},
        in_channels=4,
        out_channels=4,
        pooled_projection_dim=5,
        pos_embed_max_size=8,
    ),
}
POSITIONS = {"unet2d": 9, "unet2d-classes": 9, "dit": 3, "pixart": 2, "sd3": 2}
TRANSFORMERS = ("dit", "pixart", "sd3")
EVERY_POSITION = [(name, k) for name, count in POSITIONS.items() for k in range(1, count + 1)]


def build(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MAKERS[name]()
        for parameter in model.parameters():  # some start at zero
            if parameter.abs().sum() == 0:
                nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def build_call(name: str, rows: int) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    call: dict[str, Any] = {
        "sample" if name.startswith("unet") else "hidden_states": normal(rows, 4, 8, 8),
        "timestep": torch.randint(1, 1000, (rows,), generator=random),
    }
    if name in ("unet2d-classes", "dit"):
        call["class_labels"] = torch.randint(0, 5, (rows,), generator=random)
    if name in ("pixart", "sd3"):
        call["encoder_hidden_states"] = normal(rows, 3, 6)
    if name == "pixart":
        call["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    if name == "sd3":
        call["pooled_projections"] = normal(rows, 5)
    return call


def poses(*azimuths: float) -> dict[str, Any]:
    return {"elevation": 15.0, "azimuth": list(azimuths), "radius": 2.0, "timestep": 500}


def apply(model: nn.Module, **options: Any) -> Hash3DCache:
    return apply_hash3d(model, Hash3DConfig(**{"eta": 1.0, "position": 2, "capacity": 16, **options}))


@pytest.mark.parametrize(("name", "position"), EVERY_POSITION)
def test_parity(name: str, position: int) -> None:
    model, call = build(name), build_call(name, rows=3)
    adapter = find_adapter(model)
    assert adapter.count_positions() == POSITIONS[name] and adapter.latent_channels == 4
    split = adapter.split(position)
    hidden, skips, conditioning = split.head(adapter.bind((), call))
    feature = split.deep(hidden, conditioning)
    full = model(**call).sample
    assert torch.equal(split.tail(feature, skips, conditioning), full)
    if name in TRANSFORMERS:  # the difference itself, as a hit adds it
        close(split.tail(feature.clone(), skips, conditioning), full)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()) + 2e-6)


@pytest.mark.parametrize(("name", "position"), EVERY_POSITION)
def test_hits_and_partial_batches(name: str, position: int) -> None:
    model, call = build(name), build_call(name, rows=6)
    full = model(**call).sample
    cache = apply(model, position=position)
    for azimuths, kinds in (((0, 100, 200), "mmm"), ((0, 300, 200), "hmh"), ((0, 100, 200), "hhh")):
        with cache.views(**poses(*azimuths)):
            found = model(**call).sample
        assert [kind[0] for kind in cache.last.kinds] == list(kinds)
        if kinds == "mmm" or (kinds == "hhh" and name not in TRANSFORMERS):
            assert torch.equal(found, full)
        close(found, full)
    cache.remove()


@pytest.mark.parametrize("name", ["unet2d", "sd3"])
@pytest.mark.parametrize("items", [1, 2, 3, 4])
@pytest.mark.parametrize(("groups", "rows"), [(1, "group-major"), (2, "item-major"), (4, "perp-neg")])
def test_row_layouts(name: str, items: int, groups: int, rows: str) -> None:
    model, call = build(name), build_call(name, rows=items * groups)
    full = model(**call).sample
    cache = apply(model, groups=groups, rows=rows)
    for step in (0, 90):
        with cache.views(**poses(*(item and item * 20 + step for item in range(items)))):
            close(model(**call, return_dict=False)[0], full)
    assert cache.last.kinds == ("hit",) + ("miss",) * (items - 1)
    cache.remove()


@pytest.mark.parametrize("name", MAKERS)
def test_remove_leaves_no_trace(name: str) -> None:
    model, call = build(name), build_call(name, rows=2)
    full, names = model(**call).sample, set(vars(model))
    cache = apply(model)
    with cache.views(**poses(0)):
        model(**call)
    assert cache.last.kind == "miss"
    cache.remove()
    assert set(vars(model)) == names and torch.equal(model(**call).sample, full)


@pytest.mark.parametrize("name", MAKERS)
def test_a_change_is_noticed(name: str) -> None:
    """Weights, attention processors, another form of input, and the user's own condition."""
    model, call = build(name), build_call(name, rows=2)
    cache = apply(model)
    kinds = []
    for condition in ("a", "a", "b", "b"):
        with cache.views(**poses(0), condition=condition):
            model(**call)
        kinds.append(cache.last.kind)
    next(model.parameters()).mul_(1.5)
    for _ in range(2):
        with cache.views(**poses(0), condition="b"):
            with cache.bypass():
                expected = model(**call).sample
            close(model(**call).sample, expected)
        kinds.append(cache.last.kind)
    assert kinds == ["miss", "hit"] * 3
    cache.remove()


@pytest.mark.parametrize("argument", ["block_controlnet_hidden_states", "skip_layers", "joint_attention_kwargs"])
def test_what_acts_between_transformer_blocks_runs_plain(argument: str) -> None:
    model, call = build("sd3"), build_call("sd3", rows=2)
    values = {"block_controlnet_hidden_states": [torch.ones(2, 16, 8)], "skip_layers": [3]}
    call[argument] = values.get(argument, {"scale": 1.0})
    expected = model(**call).sample
    cache = apply(model)
    for _ in range(2):
        with cache.views(**poses(0)):
            assert torch.equal(model(**call).sample, expected) and cache.last.plain == "arguments"
    cache.remove()


def test_what_does_not_fit() -> None:
    """A motion model's rows are videos, of which each is many rows inside: it is refused, and so are unknown blocks."""
    motion = UNetMotionModel.__new__(UNetMotionModel)
    nn.Module.__init__(motion)
    with pytest.raises(TypeError, match=r"unet: expected .*UNet2DConditionModel.*input_blocks.*UNetMotionModel"):
        apply(motion)
    types = {"down_block_types": ("SkipDownBlock2D",), "up_block_types": ("SkipUpBlock2D",)}
    with pytest.raises(TypeError, match="SkipDownBlock2D"):
        apply(UNet2DModel(**{**_UNET, **types, "block_out_channels": (32,)}))
    with pytest.raises(ValueError, match=r"position.*1 to 3"):
        apply(build("dit"), position=4)
