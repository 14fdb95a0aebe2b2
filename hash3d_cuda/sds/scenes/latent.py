"""A radiance grid whose colours are a prior's latents (Latent-NeRF, Metzer et al. 2023): no step of it encodes.

Only what is shown is decoded. A latent pixel of the shipped prior is a patch of 4x4 pixels, which turns with the camera
and not with the object, so there one point of the grid cannot say what every view of it looks like; a KL-VAE's latents
come closer to colours.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hash3d_cuda.cameras import camera_rays, camera_to_world
from hash3d_cuda.sds.scenes.base import BOUND, Rendered, Scene
from hash3d_cuda.sds.scenes.voxels import (
    COLOUR_RATE,
    DENSITY_RATE,
    SAMPLES,
    SPARSITY,
    SURFACE_DEPTH,
    THIN,
    density_of,
    first_blob,
)

DEFAULT_SIZE = 32
PROBE = 8
"""Latent pixels per side of the pictures of one colour that tell how colours and latents relate."""


class LatentScene(Scene):
    """Density and latents on a grid over the cube of half-width ``BOUND``.

    Args:
        prior: its ``latent_shape``, ``encode`` and ``decode`` are used; it is no part of the scene's state.
        size: corners per side; None takes ``DEFAULT_SIZE``.
        seed: of the first latents.
        device: where the grid lives.
    """

    def __init__(self, prior: Any, size: int | None, seed: int, device: torch.device):
        super().__init__()
        side = DEFAULT_SIZE if size is None else size
        channels, self.side, _ = prior.latent_shape
        self.decode, self.image_size = prior.decode, prior.image_size
        generator = torch.Generator().manual_seed(seed)
        noise = 0.1 * torch.randn(1, channels, side, side, side, generator=generator)
        to_colour, white = colour_map(prior, device)
        self.density = nn.Parameter(first_blob(side)[None, None].to(device))
        self.features = nn.Parameter(noise.to(device) + white[:, None, None, None] / 2)
        self.register_buffer("white", white, persistent=False)
        self.register_buffer("to_colour", to_colour, persistent=False)

    def latents(self, elevation: Tensor, azimuth: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Latents float [B,C,h,w] over those of white, and alpha float [B,1,h,w], of poses float [B] each."""
        origins, directions = camera_rays(camera_to_world(elevation, azimuth, radius), self.side)
        origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
        middle = -(origins * directions).sum(-1, keepdim=True)
        nearest = origins + middle * directions
        half = (BOUND**2 - nearest.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
        offsets = (torch.arange(SAMPLES, device=half.device) + 0.5) * (2 / SAMPLES) - 1
        points = (nearest[:, None] + (half * offsets)[..., None] * directions[:, None]) / BOUND
        sampled = dict(mode="bilinear", padding_mode="border", align_corners=True)
        density = density_of(F.grid_sample(self.density, points[None, None], **sampled)[0, 0, 0])
        features = F.grid_sample(self.features, points[None, None], **sampled)[0, :, 0]
        through = torch.exp(-(density * (half * (2 / SAMPLES))).cumsum(-1))
        weights = torch.cat([1 - through[:, :1], through[:, :-1] - through[:, 1:]], -1)
        behind = through[:, -1]
        views = torch.cat([(features * weights).sum(-1) + self.white[:, None] * behind, 1 - behind[None]])
        views = views.view(-1, len(elevation), self.side, self.side).transpose(0, 1)
        return views[:, :-1], views[:, -1:]

    def render(self, elevation: Tensor, azimuth: Tensor, radius: Tensor, size: int) -> Rendered:
        """See :meth:`Scene.render`; decoded at the prior's size, then resized."""
        latents, alpha = self.latents(elevation, azimuth, radius)
        image = self.decode(latents).to(latents.dtype)
        if size != self.image_size:
            image = F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        return Rendered(image.clamp(0, 1), F.interpolate(alpha, size=(size, size), mode="bilinear"))

    def regularisation(self) -> Tensor:
        """The price on density of :class:`VoxelScene`."""
        return SPARSITY * torch.log1p(density_of(self.density) / THIN).mean()

    def parameter_groups(self, lr_scale: float) -> list[dict[str, Any]]:
        """See :meth:`Scene.parameter_groups`."""
        return [
            {"params": [self.density], "lr": DENSITY_RATE * lr_scale},
            {"params": [self.features], "lr": COLOUR_RATE * lr_scale},
        ]

    @torch.no_grad()
    def occupancy_grid(self, resolution: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Scene.occupancy_grid`; colours by the linear map from latents that fits the prior best."""
        shape = (resolution,) * 3
        density, features = (
            F.interpolate(grid, size=shape, mode="trilinear", align_corners=True)[0].permute(3, 2, 1, 0)
            for grid in (self.density, self.features)
        )
        colour = features @ self.to_colour[:-1] + self.to_colour[-1]
        return 1 - torch.exp(-density_of(density[..., 0]) * SURFACE_DEPTH), colour.clamp(0, 1)


@torch.no_grad()
def colour_map(prior: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """How a prior's latents relate to colours, from pictures of one colour each.

    Returns:
        the affine map from a latent pixel to its colour, float [C+1,3] (the offset last), and the latents of white,
        float [C].
    """
    levels = (0.0, 0.5, 1.0)
    colours = torch.tensor(list(itertools.product(levels, repeat=3)), device=device)
    size = PROBE * prior.image_size // prior.latent_shape[1]
    pictures = colours[:, :, None, None].expand(-1, -1, size, size)
    codes = torch.cat([prior.encode(part) for part in pictures.split(4)]).float()
    codes = codes[..., 2:-2, 2:-2].mean((-2, -1))
    known = torch.cat([codes, torch.ones_like(codes[:, :1])], 1).double().cpu()
    fitted = torch.linalg.pinv(known) @ colours.double().cpu()
    return fitted.float().to(device), codes[-1]
