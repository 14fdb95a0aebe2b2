"""The shipped prior's networks: a diffusers U-Net and the conditioner that feeds it.

The U-Net keeps Stable Diffusion's topology (three levels, two resnets a block, cross-attention, skips), narrowed
until its fp16 weights fit in a few megabytes. It works on the exact pixel-unshuffle of the image by ``PATCH``
(a lossless "latent"), and predicts x0 (``prediction_type="sample"``): with 48 channels to carry the noise of a
48-channel patch through, predicting the clean picture is the easier task for a narrow network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hash3d_cuda.prior.base import AZIMUTH_PERIOD

IMAGE_SIZE = 64
PATCH = 4
LATENT_SHAPE = (3 * PATCH * PATCH, IMAGE_SIZE // PATCH, IMAGE_SIZE // PATCH)
ELEVATION_RANGE = (-10.0, 60.0)
RADIUS_RANGE = (1.8, 2.2)

CODE_WIDTH = 64
"""Width of the vector that says *what* is shown: a row of the name table, or a picture's mixture of rows."""
TOKEN_WIDTH = 96
CLASS_WIDTH = 192
WHAT_TOKENS, POSE_TOKENS = 3, 1

AZIMUTH_BANDS, ELEVATION_BANDS, RADIUS_BANDS = 8, 4, 2
CAMERA_FEATURES = 2 * (AZIMUTH_BANDS + ELEVATION_BANDS + RADIUS_BANDS)

UNET_CONFIG = dict(
    sample_size=LATENT_SHAPE[1],
    in_channels=LATENT_SHAPE[0],
    out_channels=LATENT_SHAPE[0],
    block_out_channels=(48, 96, 104),
    layers_per_block=2,
    down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    cross_attention_dim=TOKEN_WIDTH,
    attention_head_dim=4,
    norm_num_groups=8,
    class_embed_type="simple_projection",
    projection_class_embeddings_input_dim=CLASS_WIDTH,
)


def build_unet(**overrides) -> nn.Module:
    """A freshly initialised ``diffusers.UNet2DConditionModel`` with the shipped prior's configuration."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**{**UNET_CONFIG, **overrides})


def images_to_latents(images: Tensor) -> Tensor:
    """Pictures float [B,3,S,S] in 0..1 to latents float [B,48,S/4,S/4] in -1..1. Exact and differentiable."""
    return F.pixel_unshuffle(images * 2 - 1, PATCH)


def latents_to_images(latents: Tensor) -> Tensor:
    """The inverse of :func:`images_to_latents`."""
    return F.pixel_shuffle(latents, PATCH) / 2 + 0.5


def camera_features(elevation: Tensor, azimuth: Tensor, radius: Tensor) -> Tensor:
    """Fourier features of poses, float [B] each (degrees, degrees, scene units) -> float [B, CAMERA_FEATURES].

    Azimuth uses whole harmonics, so 0 and 360 are one view; elevation and radius are scaled to their ranges.
    """

    def waves(phase: Tensor, bands: int) -> Tensor:
        angles = phase[:, None] * torch.arange(1, bands + 1, device=phase.device)
        return torch.cat([angles.sin(), angles.cos()], -1)

    low, high = RADIUS_RANGE
    return torch.cat(
        [
            waves(azimuth * (2 * math.pi / AZIMUTH_PERIOD), AZIMUTH_BANDS),
            waves(torch.deg2rad(elevation), ELEVATION_BANDS),
            waves((radius - low) / (high - low) * (math.pi / 2), RADIUS_BANDS),
        ],
        -1,
    )


class Conditioner(nn.Module):
    """What is shown and from where, as cross-attention tokens and a class embedding.

    Args:
        names: number of names in the vocabulary.
    """

    def __init__(self, names: int):
        super().__init__()
        self.names = nn.Embedding(names, CODE_WIDTH)
        joint = CODE_WIDTH + CAMERA_FEATURES
        self.what = nn.Linear(CODE_WIDTH, WHAT_TOKENS * TOKEN_WIDTH)
        self.trunk = nn.Sequential(nn.Linear(joint, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
        self.pose = nn.Linear(256, POSE_TOKENS * TOKEN_WIDTH)
        self.summary = nn.Linear(256, CLASS_WIDTH)
        self.null_tokens = nn.Parameter(torch.zeros(WHAT_TOKENS + POSE_TOKENS, TOKEN_WIDTH))
        self.null_summary = nn.Parameter(torch.zeros(CLASS_WIDTH))

    def forward(self, code: Tensor, elevation: Tensor, azimuth: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions for B items.

        Args:
            code: float [B, CODE_WIDTH], rows of ``self.names`` or mixtures of them.
            elevation, azimuth, radius: float [B].

        Returns:
            tokens float [B, 4, TOKEN_WIDTH] for ``encoder_hidden_states`` and a vector float [B, CLASS_WIDTH] for
            ``class_labels``.
        """
        hidden = self.trunk(torch.cat([code, camera_features(elevation, azimuth, radius)], -1))
        tokens = torch.cat([self.what(code), self.pose(hidden)], -1).unflatten(-1, (-1, TOKEN_WIDTH))
        return tokens, self.summary(hidden)

    def null(self, batch: int) -> tuple[Tensor, Tensor]:
        """The "nothing in particular" condition for ``batch`` rows (classifier-free guidance)."""
        return self.null_tokens.expand(batch, -1, -1), self.null_summary.expand(batch, -1)

    def drop(self, tokens: Tensor, summary: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the rows where ``dropped`` (bool [B]) by the null condition, as training for guidance wants."""
        null_tokens, null_summary = self.null(len(dropped))
        return (
            torch.where(dropped[:, None, None], null_tokens, tokens),
            torch.where(dropped[:, None], null_summary, summary),
        )
