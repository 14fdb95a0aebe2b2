"""How much can the cache speed up a step of score distillation at most? Counted, not timed.

Multiply-accumulates of the public U-Nets and VAEs, attention included, on the meta device: no weights, no GPU, half a
minute. A step is one item: the U-Net's two rows of classifier-free guidance, and the VAE's encoder forward and
backward. Rendering and the table itself are left out, every retrieval is a hit, so real speed-ups lie below.

    python benchmarks/step_bounds.py            the table of docs/limits.md
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from hash3d_cuda.unet import SplitUNet

POSITION = 2  # the paper's: the input of the last up-sampling layer
SERVED = (0.1, 0.5, 0.9, 1.0)  # x, the share of items served from the cache
CFG_ROWS = 2

_SD = dict(block_out_channels=(320, 640, 1280, 1280), layers_per_block=2)
_SD21 = dict(**_SD, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
_ZERO123 = dict(**_SD, in_channels=8, cross_attention_dim=768, attention_head_dim=8)
_SDXL = dict(
    block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
    addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
# name: configuration, latent's side, tokens of the context
UNETS = {"SD 2.1": (_SD21, 64, 77), "Zero123": (_ZERO123, 32, 1), "SDXL": (_SDXL, 128, 77)}
_KL = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip


def count(function: Callable[[], object]) -> float:
    """Giga-multiply-accumulates of one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2e9


def unet_cost(name: str) -> tuple[float, float]:
    """Of one row: the full pass in GMAC, and r, what a hit costs of it."""
    config, side, tokens = UNETS[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config).eval().requires_grad_(False)
        sample = torch.empty(1, unet.config.in_channels, side, side)
        context = torch.empty(1, tokens, unet.config.cross_attention_dim)
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)} if name == "SDXL" else None
        split = SplitUNet(unet, POSITION)
        timestep = torch.empty(1)

        def hit() -> None:
            _, skips, conditioning = split.head(sample, timestep, context, added_cond_kwargs=added)
            split.tail(feature, skips, conditioning)

        hidden, _, conditioning = split.head(sample, timestep, context, added_cond_kwargs=added)
        feature = split.deep(hidden, conditioning)
        full = count(lambda: unet(sample, timestep, context, added_cond_kwargs=added))
        return full, count(hit) / full


def encoder_cost(kind: str, side: int) -> float:
    """A VAE encoder's forward and backward to the image, in GMAC."""
    with torch.device("meta"):
        vae = AutoencoderKL(**_KL) if kind == "KL-VAE" else AutoencoderTiny()
        encoder = vae.encoder.eval().requires_grad_(False)
        image = torch.empty(1, 3, side, side, requires_grad=True)
        return count(lambda: encoder(image).sum().backward())


def bound(full: float, r: float, encoder: float, x: float) -> float:
    """Largest speed-up of a step: ``1 / (1 - u x (1 - r))``, u being the U-Net's share of it."""
    share = CFG_ROWS * full / (CFG_ROWS * full + encoder)
    return 1 / (1 - share * x * (1 - r))


def columns() -> dict[str, tuple[float, float, float]]:
    """Heading to (GMAC of a row, r, GMAC of the encoder)."""
    costs = {name: unet_cost(name) for name in UNETS}
    found = {f"U-Net {name}": (*cost, 0.0) for name, cost in costs.items()}
    for step, name, side in (("SD step", "SD 2.1", 512), ("Zero123 step", "Zero123", 256)):
        for kind in ("KL-VAE", "TAESD"):
            found[f"{step}, {kind} {side}"] = (*costs[name], encoder_cost(kind, side))
    return found


def table() -> str:
    """The bounds as a Markdown table."""
    costs = columns()
    lines = ["| x | " + " | ".join(costs) + " |", "|---" * (1 + len(costs)) + "|"]
    for x in SERVED:
        lines.append(f"| {x} | " + " | ".join(figure(bound(*cost, x)) for cost in costs.values()) + " |")
    return "\n".join(lines)


def figure(speed_up: float) -> str:
    """Small gains need the third decimal."""
    return f"{speed_up:.3f}" if speed_up < 1.2 else f"{speed_up:.2f}" if speed_up < 10 else f"{speed_up:.1f}"


if __name__ == "__main__":
    print(table())
