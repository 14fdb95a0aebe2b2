"""Stands for the two functions of kornia that ldm's encoder of pictures calls."""

from types import SimpleNamespace

import torch

__path__ = []  # its submodules are replaced

geometry = SimpleNamespace(
    resize=lambda x, size, **kwargs: torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=True)
)
enhance = SimpleNamespace(normalize=lambda x, mean, std: (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))
