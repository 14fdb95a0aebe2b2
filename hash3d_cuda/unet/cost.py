"""What a full pass and a hit cost on the public U-Nets, in multiply-accumulates: counted on the meta device, so no
weights, no memory and no GPU are needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..checks import check_choice, check_int
from .configs import UNETS, find_unet
from .layout import count_positions
from .split import SplitUNet

CFG_ROWS = 2  # rows of classifier-free guidance
PAPER_ETA, PAPER_POSITION = 0.1, 2  # section 5.1; the input of the last up-sampling layer, section 3.2
ENCODERS = ("KL-VAE", "TAESD")
_ATTENTION_OPS = ("bmm", "baddbmm", "_scaled_dot_product")  # the products of queries, keys and values
KL_CONFIG: dict[str, Any] = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip


@dataclass(frozen=True)
class UNetCost:
    """What one sample (one row of the batch) costs.

    Attributes:
        name: of the U-Net, one of ``UNETS``.
        latent_size: side of the latents.
        full_gmacs: giga-multiply-accumulates of a full pass.
        hit_gmacs: those of a hit (head and tail) by position k.
        r: share of a full pass that a hit costs, by k.
        feature_shape: ``(C, H, W)`` of the cached feature of one row, by k.
    """

    name: str
    latent_size: int
    full_gmacs: float
    hit_gmacs: dict[int, float]
    r: dict[int, float]
    feature_shape: dict[int, tuple[int, int, int]]


def unet_cost(
    name: str, latent_size: int | None = None, attention: bool = True, positions: tuple[int, ...] | None = None
) -> UNetCost:
    """Counts a U-Net's full pass and its hits.

    Args:
        name: ``"sd15"``, ``"sd21"``, ``"sd21-768"``, ``"zero123"``, ``"sdxl"``, or ``"shipped"`` for the shipped prior.
        latent_size: side of the latents; by default what the model was trained on.
        attention: whether the products of queries with keys and of weights with values count.
        positions: only these k; by default all, which takes some seconds the first time.

    Raises:
        ValueError: no such U-Net or position.
    """
    name = find_unet(name)
    size = UNETS[name].latent_size if latent_size is None else check_int("latent_size", latent_size, 8, 1024)
    model = _model(name, size)
    last = count_positions(model.unet)
    chosen = range(1, last + 1) if positions is None else [check_int("positions", k, 1, last) for k in positions]
    full = _count(name, size, None, attention)
    hits = {k: _count(name, size, k, attention) for k in chosen}
    shapes = {k: model.feature_shapes[k] for k in chosen}
    return UNetCost(name, size, full, hits, {k: hit / full for k, hit in hits.items()}, shapes)


def paper_macs(name: str) -> tuple[float, float]:
    """Giga-MACs per view without and with the cache, in the paper's convention (tables 1 and 2).

    It is two rows of classifier-free guidance, eta = 0.1, k = 2 and every retrieval a hit. Only modules are counted, as
    DeepCache's counter does: attention's products are not, a convolution's bias and two operations per normalised
    number are.

    Args:
        name: ``"sd21"`` for the paper's Stable Diffusion, ``"zero123"``.
    """
    name = find_unet(name)
    full, hit = (
        CFG_ROWS * _count_modules(name, UNETS[name].latent_size, position) for position in (None, PAPER_POSITION)
    )
    return full, (1 - PAPER_ETA) * full + PAPER_ETA * hit


@functools.lru_cache(maxsize=16)
def encoder_cost(kind: str, side: int) -> float:
    """Giga-MACs of a VAE encoder, forward and backward to one image of ``side`` pixels, as score distillation needs.

    Args:
        kind: ``"KL-VAE"``, Stable Diffusion's own, or ``"TAESD"``, the tiny one.
    """
    check_choice("kind", kind, ENCODERS)
    with torch.device("meta"):
        vae = AutoencoderKL(**KL_CONFIG) if kind == "KL-VAE" else AutoencoderTiny()
        encoder = vae.encoder.eval().requires_grad_(False)
        image = torch.empty(1, 3, check_int("side", side, 8), side, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            encoder(image).sum().backward()
    return counter.get_total_flops() / 2e9


class _Model:
    """A U-Net on the meta device and the inputs of one row."""

    def __init__(self, name: str, size: int):
        config = UNETS[name]
        with torch.device("meta"):
            self.unet = UNet2DConditionModel(**config.values).eval().requires_grad_(False)
            self.sample = torch.empty(1, self.unet.config.in_channels, size, size)
            self.context = torch.empty(1, config.tokens, self.unet.config.cross_attention_dim)
            self.timestep = torch.empty(1)
            text_time = self.unet.config.addition_embed_type == "text_time"
            added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
            if self.unet.config.class_embed_type is not None:
                self.extra = {"class_labels": torch.empty(1, self.unet.config.projection_class_embeddings_input_dim)}
            else:
                self.extra = {"added_cond_kwargs": added if text_time else None}

    def head(self, split: SplitUNet) -> tuple[Tensor, tuple[Tensor, ...], Any]:
        return split.head(self.sample, self.timestep, self.context, **self.extra)

    @functools.cached_property
    def feature_shapes(self) -> dict[int, tuple[int, int, int]]:
        """By position, what is left of a resnet's input when the skip, which is concatenated to the feature, is taken
        away."""
        resnets = [resnet for block in self.unet.up_blocks for resnet in block.resnets]
        _, skips, _ = self.head(SplitUNet(self.unet, len(resnets)))
        return {
            k: (resnets[-k].in_channels - skip.shape[1], skip.shape[2], skip.shape[3])
            for k, skip in enumerate(skips, start=1)
        }

    def run(self, position: int | None) -> Callable[[], object]:
        """A full pass, or a hit at ``position``, to be called."""
        if position is None:
            return lambda: self.unet(self.sample, self.timestep, self.context, **self.extra)
        split = SplitUNet(self.unet, position)
        feature = torch.empty(1, *self.feature_shapes[position], device="meta")

        def hit() -> None:
            _, skips, conditioning = self.head(split)
            split.tail(feature, skips, conditioning)

        return hit


@functools.lru_cache(maxsize=8)
def _model(name: str, size: int) -> _Model:
    return _Model(name, size)


@functools.lru_cache(maxsize=256)
def _count(name: str, size: int, position: int | None, attention: bool) -> float:
    """Giga-MACs of one pass by the operations that really run."""
    run = _model(name, size).run(position)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    by_operation = counter.get_flop_counts()["Global"]
    left_out = () if attention else _ATTENTION_OPS
    kept = (flops for op, flops in by_operation.items() if not any(part in str(op) for part in left_out))
    return sum(kept) / 2e9


@functools.lru_cache(maxsize=64)
def _count_modules(name: str, size: int, position: int | None) -> float:
    """Giga-MACs of one pass by modules, in DeepCache's convention."""
    model = _model(name, size)
    run = model.run(position)
    with torch.no_grad(), _module_counter(model.unet) as counts:
        run()
    return sum(counts) / 1e9


@contextmanager
def _module_counter(unet: nn.Module) -> Iterator[list[int]]:
    """While entered, every module that runs adds its operations to the list."""
    counts: list[int] = []

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            counts.append(output.numel() * (module.weight[0].numel() + (module.bias is not None)))
        elif isinstance(module, nn.Linear):  # its bias once, not once per token
            counts.append(output.numel() * module.in_features + (module.bias is not None) * module.out_features)
        elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            counts.append(2 * output.numel())

    handles = [module.register_forward_hook(add) for module in unet.modules()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
