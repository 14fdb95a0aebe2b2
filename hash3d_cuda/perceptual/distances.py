"""LPIPS (Zhang et al. 2018) and its shift-tolerant variant ST-LPIPS (Ghildyal and Liu 2022), forward only.

Both compare unit-normalised activations of an ImageNet trunk at five depths and weigh the squared differences per
channel. ST-LPIPS has no strided convolution or pooling: it pools densely and then blurs before it drops every other
pixel (Zhang 2019). Only the tensors come from the packages; the forward is written here and needs no torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hash3d_cuda.perceptual.files import read_tensors

SMALLEST_SIDE = 64
"""Pixels: what the metrics were trained on. Smaller pictures are enlarged to it bilinearly, larger ones are taken as
they are: AlexNet's first kernel is 11 pixels wide, and at 32x32 its last activations would be 1x1."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in -1..1; LPIPS version 0.1
PADDING = {11: 2, 5: 2, 3: 1}  # by the kernel's width, in both trunks


@dataclass(frozen=True)
class Trunk:
    """Convolutions per stage, the stages that pool first, and the pooling's width."""

    convolutions: tuple[int, ...]
    pooled: tuple[int, ...]
    pool: int


TRUNKS = {"alex": Trunk((1, 1, 1, 1, 1), (1, 2), 3), "vgg": Trunk((2, 2, 3, 3, 3), (1, 2, 3, 4), 2)}


class Distance:
    """One perceptual distance: pictures in 0..1 to a number per pair, 0 for equal ones.

    Args:
        trunk: ``"alex"`` (AlexNet) or ``"vgg"`` (VGG16).
        weights: (weight, bias) of the trunk's convolutions from the first to the last.
        heads: weight per channel of each of the five stages, float [C].
        tolerant: ST-LPIPS.

    Raises:
        ValueError: the tensors are not those of that trunk.
    """

    def __init__(self, trunk: str, weights: list[tuple[Tensor, Tensor]], heads: list[Tensor], tolerant: bool):
        self.trunk, self.weights, self.heads, self.tolerant = TRUNKS[trunk], weights, heads, tolerant
        counts = self.trunk.convolutions
        ends = [sum(counts[: stage + 1]) - 1 for stage in range(len(counts))]
        fits = len(weights) == sum(counts) and [len(weights[end][1]) for end in ends] == [len(h) for h in heads]
        if not fits:
            raise ValueError(f"weights: expected the convolutions and heads of {trunk!r}, got others; reinstall them")

    @torch.no_grad()
    def __call__(self, images: Tensor, truth: Tensor) -> Tensor:
        """Distances float [N] between ``images`` and ``truth``, both float [N,3,S,S] in 0..1."""
        total = images.new_zeros(len(images))
        both = zip(self.stages(images), self.stages(truth), self.heads, strict=True)
        for seen, wanted, head in both:
            difference = (_unit(seen) - _unit(wanted)).square()
            total += (difference * head[:, None, None]).sum(1).mean((1, 2))
        return total

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        """The five activations, float [N,C,h,w] each."""
        hidden = (enlarged(images, SMALLEST_SIDE) * 2 - 1 - _colour(SHIFT)) / _colour(SCALE)
        layers = iter(self.weights)
        for stage, count in enumerate(self.trunk.convolutions):
            if stage in self.trunk.pooled:
                hidden = self._pool(hidden)
            for _ in range(count):
                hidden = self._convolve(hidden, *next(layers)).relu()
            yield hidden

    def _convolve(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        side = weight.shape[-1]
        if side < 11:
            return F.conv2d(hidden, weight, bias, padding=PADDING[side])
        if self.tolerant:  # AlexNet's first, whose stride of 4 became 1 and a blur
            return _blur_and_halve(F.conv2d(hidden, weight, bias, padding=PADDING[side]))
        return F.conv2d(hidden, weight, bias, stride=4, padding=PADDING[side])

    def _pool(self, hidden: Tensor) -> Tensor:
        if self.tolerant:
            return _blur_and_halve(F.max_pool2d(hidden, self.trunk.pool, stride=1))
        return F.max_pool2d(hidden, self.trunk.pool, stride=2)


def shift_tolerant(trunk: str, path: Path) -> Distance:
    """ST-LPIPS from the file of the package ``stlpips-pytorch``."""
    state = read_tensors(path)
    return Distance(trunk, _layers(state, "net."), _heads(state), tolerant=True)


def original(trunk: str, trunk_path: Path, heads_path: Path) -> Distance:
    """LPIPS 0.1 from torchvision's ImageNet weights and the heads that torchmetrics ships."""
    return Distance(trunk, _layers(read_tensors(trunk_path), "features."), _heads(read_tensors(heads_path)), False)


def enlarged(images: Tensor, side: int) -> Tensor:
    """Bilinear, where the pictures float [N,C,S,S] are smaller than ``side``."""
    if images.shape[-1] >= side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def _layers(state: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of the convolutions under ``prefix``, in the order of their numbers."""
    names = [n.removesuffix(".bias") for n in state if n.startswith(prefix) and n.endswith(".bias")]
    names.sort(key=lambda name: int(name.rsplit(".", 1)[1]))
    return [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names]


def _heads(state: dict[str, Tensor]) -> list[Tensor]:
    return [state[f"lin{stage}.model.1.weight"].flatten() for stage in range(5)]


def _unit(hidden: Tensor) -> Tensor:
    return hidden / (hidden.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _blur_and_halve(hidden: Tensor) -> Tensor:
    """A 3x3 binomial blur over a border of two mirrored pixels, then every other pixel."""
    line = torch.tensor((0.25, 0.5, 0.25), dtype=hidden.dtype, device=hidden.device)
    kernel = (line[:, None] * line).expand(hidden.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(hidden, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=hidden.shape[1])


def _colour(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]
