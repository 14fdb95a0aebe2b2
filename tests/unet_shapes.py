"""Narrow U-Nets in the topologies of the public models, and inputs for them. Widths are tiny, the rest is theirs."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"

# Public configurations (stabilityai, CompVis, cvlab-columbia on the hub) with block_out_channels, head sizes and
# cross_attention_dim shrunk.
_COMMON = {"sample_size": 8, "norm_num_groups": 4, "cross_attention_dim": 12}
_SD = {
    **_COMMON,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN),
    "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP),
    "layers_per_block": 2,
}
# Two levels, over any of them: for tests of what goes on around the U-Net.
SMALL: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": (CROSS_DOWN, PLAIN_DOWN),
    "up_block_types": (PLAIN_UP, CROSS_UP),
    "layers_per_block": 1,
}
# Every kind of block of theirs, with and without its sampler, and few of each: for what takes its time per block.
SHORT: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": (CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN),
    "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP),
    "layers_per_block": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {**_SD, "attention_head_dim": 2},
    "sd21": {
        **_SD,
        "attention_head_dim": (1, 2, 2, 2),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "zero123": {**_SD, "in_channels": 8, "attention_head_dim": 2},
    "sdxl": {
        **_COMMON,
        "block_out_channels": (8, 16, 16),
        "down_block_types": (PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
        "layers_per_block": 2,
        "attention_head_dim": (1, 2, 2),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 10,
    },
    "uneven": {
        **_COMMON,
        "block_out_channels": (8, 8, 16),
        "down_block_types": (PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
        "layers_per_block": (1, 3, 2),
        "attention_head_dim": 2,
        "center_input_sample": True,
        "num_class_embeds": 7,
        "time_cond_proj_dim": 5,
        "mid_block_type": None,
    },
}
POSITIONS = {"sd15": 12, "sd21": 12, "zero123": 12, "sdxl": 9, "uneven": 9}


def build_unet(name: str, seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """A U-Net of a topology, with random weights, in eval mode without gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**{**CONFIGS[name], **changes})
    return unet.eval().requires_grad_(False)


def build_inputs(
    unet: UNet2DConditionModel, rows: int, seed: int = 0, size: tuple[int, int] = (8, 8)
) -> dict[str, Any]:
    """Keyword arguments of ``unet`` for ``rows`` rows, a different timestep for each."""
    config = unet.config
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    inputs: dict[str, Any] = {
        "sample": normal(rows, config.in_channels, *size),
        "timestep": torch.randint(0, 1000, (rows,), generator=random),
        "encoder_hidden_states": normal(rows, 7, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        inputs["added_cond_kwargs"] = {"text_embeds": normal(rows, 10), "time_ids": normal(rows, 6)}
    if config.num_class_embeds is not None:
        inputs["class_labels"] = torch.randint(0, config.num_class_embeds, (rows,), generator=random)
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = normal(rows, config.time_cond_proj_dim)
    return inputs


def build_residuals(unet: UNet2DConditionModel, inputs: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    """A ControlNet's residuals for ``inputs``: one per skip, and one for the mid block."""
    skips, mid = record_skips(unet, inputs)
    random = torch.Generator().manual_seed(seed)
    return {
        "down_block_additional_residuals": [torch.randn(skip.shape, generator=random) for skip in skips],
        "mid_block_additional_residual": torch.randn(mid.shape, generator=random),
    }


def build_adapter(unet: UNet2DConditionModel, inputs: dict[str, Any], seed: int = 1) -> list[torch.Tensor]:
    """A T2I-Adapter's residuals for ``inputs``, made anew by each call (the model pops them from the list): one per
    down block, shaped as its last attention's or, without attention, as the block's output; one for the mid block."""
    shapes = []
    hooks = []
    for block in unet.down_blocks:
        cross = getattr(block, "has_cross_attention", False)
        module = block.attentions[-1] if cross else block
        hooks.append(module.register_forward_hook(lambda _, args, out: shapes.append(out[0].shape)))
    unet(**inputs)
    for hook in hooks:
        hook.remove()
    _, mid = record_skips(unet, inputs)
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random) for shape in (*shapes, mid.shape)]


def record_skips(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The skips and the mid block's output of a forward, by way of hooks on the modules."""
    skips: list[torch.Tensor] = []
    last: list[torch.Tensor] = []
    hooks = [unet.conv_in.register_forward_hook(lambda _, args, out: skips.append(out))]
    for block in unet.down_blocks:
        hooks.append(block.register_forward_hook(lambda _, args, out: skips.extend(out[1])))
        hooks.append(block.register_forward_hook(lambda _, args, out: last.append(out[0])))
    if unet.mid_block is not None:
        hooks.append(unet.mid_block.register_forward_hook(lambda _, args, out: last.append(out)))
    unet(**inputs)
    for hook in hooks:
        hook.remove()
    return skips, last[-1]
