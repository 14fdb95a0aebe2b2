"""A light encoder in the place of a KL-VAE's: TAESD and its like, diffusers' ``AutoencoderTiny``.

What a step of score distillation pays for the VAE is its encoder, forward and backward to the pixels. TAESD's takes a
ninth of the KL encoder's operations for Stable Diffusion's 512 pixels (:func:`hash3d_cuda.unet.cost.encoder_cost`).

Conventions. An ``AutoencoderKL`` takes pixels from -1 to 1 and gives a Gaussian, whose mean times ``scaling_factor``
(0.18215) is what the U-Net knows. An ``AutoencoderTiny`` takes the same pixels and gives one tensor, no Gaussian; TAESD
was trained to give the scaled latents themselves, so its ``scaling_factor`` is 1 and its ``shift_factor`` 0. Both are
applied as diffusers' pipelines do. ``scale_latents`` (to 0..1) is for storing latents as pictures and has no part here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PART = "vae"


def load_light_encoder(folder: str | Path, latent_channels: int, scale: int) -> Any:
    """An ``AutoencoderTiny``, frozen, in float32 on the CPU, of which the encoder alone is kept.

    Args:
        folder: as diffusers saves one, or a pipeline's folder whose part ``vae`` is one.
        latent_channels: what the U-Net denoises.
        scale: pixels per latent and side.

    Raises:
        ValueError: nothing there, another class, damaged, or latents of another shape.
    """
    from diffusers import AutoencoderTiny

    from hash3d_cuda.prior.pipelines import load_part

    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise ValueError(f"encoder: expected a folder with an AutoencoderTiny such as TAESD, got {str(folder)!r}")
    if not (path / "config.json").is_file() and (path / PART / "config.json").is_file():
        path = path / PART
    try:
        vae = load_part(path.parent, path.name, AutoencoderTiny, torch.float32, "AutoencoderTiny")
    except ValueError as error:
        raise ValueError(f"encoder: {str(error).removeprefix('prior: ')}") from None
    config = vae.config
    found = config.latent_channels, 2 ** (len(config.encoder_block_out_channels) - 1)
    if found != (latent_channels, scale):
        raise ValueError(
            f"encoder: expected {latent_channels} latent channels at {scale} pixels per latent, as the prior's own VAE "
            f"has, got {found[0]} at {found[1]} from {str(folder)!r}; take the tiny one of the same family"
        )
    vae.decoder = None
    return vae


def encode_light(vae: Any, images: Tensor) -> Tensor:
    """Images float [B,3,S,S] in 0..1 to scaled latents float32 [B,C,h,w]; differentiable."""
    latents = vae.encode(images.to(vae.dtype) * 2 - 1).latents
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
