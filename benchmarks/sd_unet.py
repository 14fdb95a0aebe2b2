"""Stable Diffusion 1.5's U-Net with random weights, which cost what trained ones do, and calls of it."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import hash3d_cuda as h3d

if TYPE_CHECKING:  # else where it is needed: benchmarks of the table alone are collected without it
    from diffusers import UNet2DConditionModel

POSITION = 2  # the paper's; DeepCache's branch 1
SD15 = dict(block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768)
SIDE = int(os.environ.get("HASH3D_BENCH_SIDE", "64"))  # of the latents; 64 is SD's own
POSE = dict(elevation=15, azimuth=30, radius=2.0)
TIMESTEP = 500


@dataclass
class Call:
    """One call of the U-Net: two rows of classifier-free guidance."""

    sample: Tensor
    timestep: Tensor
    context: Tensor

    def run(self, unet: Any) -> Tensor:
        """The U-Net's output, no gradients."""
        with torch.no_grad():
            return unet(self.sample, self.timestep, encoder_hidden_states=self.context, return_dict=False)[0]


def make_unet(device: str, **config: Any) -> UNet2DConditionModel:
    """In float32 on a CPU, in float16 on a GPU."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**{**SD15, **config}).eval().requires_grad_(False)
    return unet if device == "cpu" else unet.half()


def twin(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Another model object on the very same weights, so that one can be hooked and the other left bare."""
    return copy.deepcopy(unet, {id(parameter): parameter for parameter in unet.parameters()})


def make_call(unet: UNet2DConditionModel, side: int = SIDE, tokens: int = 77) -> Call:
    """Random inputs, the latent the same in both rows."""
    random = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 4, side, side, generator=random).repeat(2, 1, 1, 1)
    context = torch.randn(2, tokens, unet.config.cross_attention_dim, generator=random)
    return Call(
        sample.to(unet.device, unet.dtype),
        torch.tensor(TIMESTEP, device=unet.device),
        context.to(unet.device, unet.dtype),
    )


class Hooked:
    """A twin of a U-Net with the cache on it; ``eta`` 1 retrieves whenever it can, 0 never does."""

    def __init__(self, unet: UNet2DConditionModel, eta: float) -> None:
        self.unet = twin(unet)
        self.cache = h3d.apply_hash3d(self.unet, h3d.Hash3DConfig(eta=eta, position=POSITION, groups=2, capacity=4))

    def run(self, call: Call, azimuth: float = POSE["azimuth"]) -> Tensor:
        """The call from one view."""
        with self.cache.views(**{**POSE, "azimuth": azimuth}, timestep=TIMESTEP):
            return call.run(self.unet)

    def expect(self, kind: str) -> None:
        """Raises AssertionError unless the last call was a hit, a miss or a bypass, as said."""
        assert self.cache.last.kinds == (kind,), self.cache.last


class Bare:
    """Head, deep and tail without a hook, and a table of one's own to append to."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        from hash3d_cuda.unet import SplitUNet

        self.unet = unet
        self._split = SplitUNet(unet, POSITION)

    @torch.no_grad()
    def feature(self, call: Call) -> Tensor:
        """What is cached, ``[2, C, H, W]``."""
        hidden, _, conditioning = self._split.head(call.sample, call.timestep, call.context)
        return self._split.deep(hidden, conditioning)

    @torch.no_grad()
    def head_and_tail(self, call: Call, feature: Tensor) -> Tensor:
        """What a hit cannot do without."""
        _, skips, conditioning = self._split.head(call.sample, call.timestep, call.context)
        return self._split.tail(feature, skips, conditioning)
