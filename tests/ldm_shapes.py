"""Narrow models with the structure and call signatures of latent-diffusion code bases, with random weights.

They stand in for ldm's ``UNetModel`` and for MVDream's and ImageDream's multi-view one, which are not installed: lists
of blocks, of which each makes or takes one skip; the way into and out of them is the forward's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class BlockSequence(nn.Sequential):
    """Hands each layer what it takes."""

    def forward(self, x: Tensor, emb: Tensor, context: Any = None, num_frames: int = 1) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, Residual):
                x = layer(x, emb)
            elif isinstance(layer, Attention):
                x = layer(x, context, num_frames)
            else:
                x = layer(x)
        return x


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, emb: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.GroupNorm(4, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1))
        self.shift = nn.Linear(emb, outside)
        self.after = nn.Sequential(nn.GroupNorm(4, outside), nn.SiLU(), nn.Conv2d(outside, outside, 3, padding=1))
        self.skip = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.skip(x) + self.after(self.before(x) + self.shift(emb)[..., None, None])


class Attention(nn.Module):
    """Over all pixels of ``num_frames`` rows together, then over the context."""

    def __init__(self, channels: int, context: int, ip_weight: float = 1.0) -> None:
        super().__init__()
        self.norm, self.ip_weight = nn.GroupNorm(4, channels), ip_weight
        self.within = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.across = nn.MultiheadAttention(channels, 2, kdim=context, vdim=context, batch_first=True)

    def forward(self, x: Tensor, context: Tensor, num_frames: int) -> Tensor:
        rows, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [R, HW, C]
        views = tokens.reshape(rows // num_frames, -1, channels)
        tokens = tokens + self.within(views, views, views, need_weights=False)[0].reshape(rows, -1, channels)
        tokens = tokens + self.ip_weight * self.across(tokens, context, context, need_weights=False)[0]
        return x + tokens.transpose(1, 2).reshape(rows, channels, height, width)


class LdmUNet(nn.Module):
    """``forward(x, timesteps, context, y)``: 3 levels of 2 residuals, so 9 skips and 9 positions."""

    def __init__(self, in_channels: int = 8, classes: int | None = None) -> None:
        super().__init__()
        self.out_channels, self.model_channels, self.num_classes, self.dtype = 4, 8, classes, torch.float32
        width, emb, context, levels = 8, 32, 6, (1, 2, 2)
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if classes is not None:
            self.label_emb = nn.Embedding(classes, emb)
        self.input_blocks = nn.ModuleList([BlockSequence(nn.Conv2d(in_channels, width, 3, padding=1))])
        channels, made = width, [width]
        for level, factor in enumerate(levels):
            for _ in range(2):
                layers = [Residual(channels, factor * width, emb), Attention(factor * width, context)]
                self.input_blocks.append(BlockSequence(*layers[: 2 if level else 1]))
                channels = factor * width
                made.append(channels)
            if level + 1 < len(levels):
                self.input_blocks.append(BlockSequence(nn.Conv2d(channels, channels, 3, stride=2, padding=1)))
                made.append(channels)
        self.middle_block = BlockSequence(Residual(channels, channels, emb), Attention(channels, context))
        self.output_blocks = nn.ModuleList()
        for level, factor in reversed(list(enumerate(levels))):
            for number in range(3):
                block = [Residual(channels + made.pop(), factor * width, emb)]
                channels = factor * width
                block += [Attention(channels, context)] if level else []
                block += [nn.Upsample(scale_factor=2)] if level and number == 2 else []
                self.output_blocks.append(BlockSequence(*block))
        self.out = nn.Sequential(nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, 4, 3, padding=1))

    def embed(self, timesteps: Tensor) -> Tensor:
        half = self.model_channels // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
        angles = timesteps[:, None].float() * frequencies
        return self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))

    def forward(self, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None, **kwargs: Any) -> Tensor:
        assert (y is not None) == (self.num_classes is not None)
        emb = self.embed(timesteps)
        if y is not None:
            emb = emb + self.label_emb(y)
        hs = []
        h = x.type(self.dtype)
        for module in self.input_blocks:
            h = module(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1), emb, context)
        return self.out(h.type(x.dtype))


class MultiViewUNet(LdmUNet):
    """MVDream's signature; with ``ip_dim`` ImageDream's, which also writes its image into every last frame of x."""

    def __init__(self, ip_dim: int = 0) -> None:
        super().__init__(in_channels=4)
        self.ip_dim = ip_dim
        self.camera_embed = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        if ip_dim:
            self.image_embed = nn.Linear(5, 6)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timesteps: Any = None,
        context: Any = None,
        y: Any = None,
        camera: Any = None,
        num_frames: int = 1,
        ip: Any = None,
        ip_img: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        emb = self.embed(timesteps)
        if camera is not None:
            emb = emb + self.camera_embed(camera)
        if self.ip_dim:
            x[num_frames - 1 :: num_frames] = ip_img
            context = torch.cat([context, self.image_embed(ip)], dim=1)
        hs = []
        h = x
        for module in self.input_blocks:
            h = module(h, emb, context, num_frames=num_frames)
            hs.append(h)
        h = self.middle_block(h, emb, context, num_frames=num_frames)
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1), emb, context, num_frames=num_frames)
        return self.out(h.type(x.dtype))


class LatentDiffusion(nn.Module):
    """The wrapper that Zero123's guidance calls: the picture's latent behind the noisy one, the context as a list."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = unet

    def apply_model(self, x: Tensor, t: Tensor, cond: dict[str, list[Tensor]]) -> Tensor:
        x, context = torch.cat([x, *cond["c_concat"]], dim=1), torch.cat(cond["c_crossattn"], dim=1)
        return self.model.diffusion_model(x, t, context=context)


def build(kind: str, seed: int = 0) -> nn.Module:
    """One of ``ldm``, ``ldm-classes``, ``mvdream``, ``imagedream``, with weights of a fixed seed."""
    makers = {
        "ldm": LdmUNet,
        "ldm-classes": lambda: LdmUNet(classes=5),
        "mvdream": MultiViewUNet,
        "imagedream": lambda: MultiViewUNet(ip_dim=1),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = makers[kind]()
    return model.eval().requires_grad_(False)


def build_call(kind: str, rows: int, frames: int = 4, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments for ``rows`` rows (of multi-view kinds, ``frames`` are one item under one prompt)."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    views = kind in ("mvdream", "imagedream")
    call: dict[str, Any] = {
        "x": normal(rows, 4 if views else 8, 8, 8),
        "timesteps": torch.randint(0, 1000, (rows,), generator=random),
        "context": normal(rows, 3, 6),
    }
    if kind == "ldm-classes":
        call["y"] = torch.randint(0, 5, (rows,), generator=random)
    if views:
        call |= {"camera": normal(rows, 16), "num_frames": frames}
    if kind == "imagedream":
        call |= {"ip": normal(rows, 2, 5), "ip_img": normal(rows // frames, 4, 8, 8)}
    return call
