"""How the oracle puts features into 8 bits, channel by channel.

A feature is rounded to float16 first, then in float32, one operation after the other, with ``peak`` the largest
magnitude in a channel and ``top`` the type's largest number (127, or 448 for e4m3):

    scale  = peak / top
    stored = round_to_nearest_even(number * (top / peak))      0 where the peak is 0
    number = stored * scale                                    what the table takes it for from then on

Symmetric: there is no zero point, and -128 is not used. The paper stores features as they are; this is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .options import TableOptions

TOPS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantise(options: TableOptions, features: Tensor) -> tuple[Tensor, Tensor]:
    """Float16 ``[B, feature_size]`` -> stored numbers, of the same shape, and float32 scales ``[B, channels]``.

    Rows that are not finite give numbers without meaning; they are stored nowhere (rule 10).
    """
    top = TOPS[options.feature_dtype]
    numbers = features.float().unflatten(1, (options.channels, options.channel_size))
    peak = numbers.abs().amax(dim=2, keepdim=True)
    tops = torch.full_like(peak, top)  # of a plain number torch divides or takes the inverse, as it sees fit
    inverse = torch.where(peak > 0, tops / peak, 0.0)
    scaled = numbers * inverse
    if options.feature_dtype is torch.int8:
        scaled = scaled.round()  # half to even
    stored = scaled.nan_to_num(0.0).clamp(-top, top).to(options.feature_dtype)
    return stored.flatten(1), (peak / tops).flatten(1)


def dequantise(options: TableOptions, stored: Tensor, scales: Tensor) -> Tensor:
    """Stored numbers ``[..., feature_size]`` and scales ``[..., channels]`` -> float32 numbers; features that are not
    stored in 8 bits are only converted."""
    if not options.quantised:
        return stored.float()
    channels = stored.float().unflatten(-1, (options.channels, options.channel_size))
    return (channels * scales[..., None]).flatten(-2)
