"""A diffusers U-Net in three parts: head, deep, tail, cut at any position."""

from __future__ import annotations

from .call import UNetCall
from .layout import count_positions
from .split import Conditioning, SplitUNet

__all__ = ["Conditioning", "SplitUNet", "UNetCall", "count_positions"]
