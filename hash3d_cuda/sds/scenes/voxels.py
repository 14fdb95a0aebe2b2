"""A radiance grid: density and colour at the corners of cells, rendered by quadrature along each ray.

The corners' values are the sum of grids of several resolutions. One step of Adam then moves coarse and fine detail
alike, which reaches an object in far fewer steps than one fine grid does and leaves it smooth where the
views say nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hash3d_cuda.cameras import camera_rays, camera_to_world
from hash3d_cuda.sds.scenes.base import BOUND, Rendered, Scene
from hash3d_cuda.sds.scenes.shading import check_shading, gradient3d, light_or_camera, shade, unit

LEVELS, SMALLEST_SIDE = 3, 4
SAMPLES = 36
"""Points per ray, evenly spread over its way through the sphere."""
DENSITY_SCALE = 25.0
EMPTY = -4.0
"""Raw density far from the first ball."""
DENSITY_RATE = COLOUR_RATE = 0.05
"""Learning rates of Adam."""
SPARSITY, THIN = 1e-3, 5.0
SURFACE_DEPTH = 0.04
"""Scene units: where half the light is lost in this depth, the object counts as solid."""
CHUNK = 1 << 16  # rays that are sampled at a time


class VoxelScene(Scene):
    """Density and colour on a grid over the cube of half-width ``BOUND``, seen inside the sphere of that radius.

    Args:
        size: corners of the finest grid per side.
        seed: of the first colours.
        device: where the grid lives.
        channels: colours per point, 3 unless ``latent``.
        latent: the colours are a prior's latents (Latent-NeRF, Metzer et al. 2022): unbounded, over a background of
            C values that starts at zero and is learnt.
    """

    def __init__(self, size: int, seed: int, device: torch.device, channels: int = 3, latent: bool = False):
        super().__init__()
        self.channels, self.latent = channels, latent
        sizes = [size // 2**level for level in reversed(range(LEVELS)) if size // 2**level >= SMALLEST_SIDE]
        generator = torch.Generator().manual_seed(seed)
        grids = [torch.zeros(1, 1 + channels, side, side, side) for side in sizes]
        grids[0][:, :1] = first_blob(sizes[0])
        grids[0][:, 1:] = 0.1 * torch.randn(grids[0][:, 1:].shape, generator=generator)
        self.density = nn.ParameterList(nn.Parameter(grid[:, :1].clone().to(device)) for grid in grids)
        self.colour = nn.ParameterList(nn.Parameter(grid[:, 1:].clone().to(device)) for grid in grids)
        for level, (coarse, fine) in enumerate(itertools.pairwise(sizes)):
            self.register_buffer(f"finer{level}", stretch_matrix(coarse, fine).to(device), persistent=False)
        self.background = nn.Parameter(torch.zeros(channels, device=device)) if latent else None

    def grid(self) -> Tensor:
        """Raw density and colour, float [1,1+C,R,R,R], indexed z, y, x."""
        return self._sum([torch.cat(pair, 1) for pair in zip(self.density, self.colour, strict=True)])

    def _sum(self, levels: Sequence[Tensor]) -> Tensor:
        """Adds grids of all levels, float [1,C,r,r,r] each, at the finest resolution."""
        total = levels[0]
        for index, level in enumerate(levels[1:]):
            total = level + stretch(total, getattr(self, f"finer{index}"))
        return total

    def render(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        radius: Tensor,
        size: int,
        shading: str | None = None,
        light: Tensor | None = None,
    ) -> Rendered:
        """See :meth:`Scene.render`; the normal is the way in which density falls. On CUDA nothing here waits for the
        device."""
        shading = check_shading(shading, self.latent)
        grid = self.grid()
        if shading is not None:
            grid = torch.cat([grid, -gradient3d(grid[:, :1])], 1)
        origins, directions = camera_rays(camera_to_world(elevation, azimuth, radius), size)
        origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
        middle = -(origins * directions).sum(-1, keepdim=True)
        nearest = origins + middle * directions
        half = (BOUND**2 - nearest.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
        parts = [
            march(grid, *rays, self.channels, self.latent)
            for rays in zip(*(v.split(CHUNK) for v in (nearest, directions, half)), strict=True)
        ]
        views = torch.cat(parts, -1).view(-1, len(elevation), size, size).transpose(0, 1)
        colour, alpha = views[:, : self.channels], views[:, self.channels : self.channels + 1]
        if shading is not None:
            normal = views[:, self.channels + 1 :]
            return shade(colour, alpha, normal, shading, light_or_camera(light, elevation, azimuth, radius))
        if self.background is not None:
            return Rendered(colour + (1 - alpha) * self.background[:, None, None], alpha)
        return Rendered(colour + (1 - alpha), alpha)

    def regularisation(self) -> Tensor:
        """A small price on density: it takes away fog, and white matter that no view could tell from the background.

        Its logarithm hardly grows inside solid matter, so that the object itself does not pay (Hedman et al. 2021).
        """
        density = density_of(self._sum(list(self.density)))
        return SPARSITY * torch.log1p(density / THIN).mean()

    def parameter_groups(self, lr_scale: float) -> list[dict[str, Any]]:
        """See :meth:`Scene.parameter_groups`."""
        colours = [*self.colour] if self.background is None else [*self.colour, self.background]
        return [
            {"params": list(self.density), "lr": DENSITY_RATE * lr_scale},
            {"params": colours, "lr": COLOUR_RATE * lr_scale},
        ]

    @torch.no_grad()
    def occupancy_grid(self, resolution: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Scene.occupancy_grid`."""
        grid = self.grid()
        matrix = stretch_matrix(grid.shape[-1], resolution).to(grid.device)
        grid = stretch(grid, matrix)[0].permute(3, 2, 1, 0)
        colour = grid[..., 1:] if self.latent else grid[..., 1:].sigmoid()
        return 1 - torch.exp(-density_of(grid[..., 0]) * SURFACE_DEPTH), colour


def first_blob(side: int) -> Tensor:
    """Raw density of a soft ball, float [side,side,side]."""
    axis = torch.linspace(-BOUND, BOUND, side)
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    return (1 - 12 * distance).clamp_min(EMPTY)


def stretch_matrix(coarse: int, fine: int) -> Tensor:
    """Linear interpolation from ``coarse`` to ``fine`` points between the same two ends, float [fine,coarse]."""
    place = torch.linspace(0, coarse - 1, fine)[:, None]
    return (1 - (place - torch.arange(coarse)).abs()).clamp_min(0)


def stretch(grid: Tensor, matrix: Tensor) -> Tensor:
    """Trilinear interpolation as three matrix products, several times faster on a CPU than ``F.interpolate``.

    Args:
        grid: float [1,C,r,r,r].
        matrix: float [R,r] from :func:`stretch_matrix`.
    """
    grid = matrix @ (grid @ matrix.T)
    return (matrix @ grid.flatten(3)).unflatten(3, grid.shape[3:])


def density_of(raw: Tensor) -> Tensor:
    """Raw values to density, 1 per scene unit."""
    return F.softplus(raw) * DENSITY_SCALE


def march(
    grid: Tensor, nearest: Tensor, directions: Tensor, half: Tensor, channels: int = 3, latent: bool = False
) -> Tensor:
    """Colour times alpha, alpha and, where the grid has them, normals, of rays through the sphere: float [C+1(+3),M].

    Args:
        grid: float [1,1+C(+3),R,R,R]: raw density, colours and outward vectors of any length.
        nearest: float [M,3], each ray's point closest to the origin.
        directions: float [M,3], unit.
        half: float [M,1], half the ray's length inside the sphere, 0 for a miss.
        channels: C.
        latent: colours are taken as they are.
    """
    keep = None
    if grid.device.type == "cpu":  # misses cost nothing; elsewhere, finding them would make the host wait
        keep = (half[:, 0] > 0).nonzero()[:, 0]
        count = len(half)
        nearest, directions, half = nearest[keep], directions[keep], half[keep]
    offsets = (torch.arange(SAMPLES, device=grid.device) + 0.5) * (2 / SAMPLES) - 1
    along = half * offsets
    points = (nearest[:, None] + along[..., None] * directions[:, None]) / BOUND
    raw = F.grid_sample(grid, points[None, None], mode="bilinear", padding_mode="border", align_corners=True)[0, :, 0]
    through = torch.exp(-(density_of(raw[0]) * (half * (2 / SAMPLES))).cumsum(-1))
    weights = torch.cat([1 - through[:, :1], through[:, :-1] - through[:, 1:]], -1)
    colour = raw[1 : channels + 1] if latent else raw[1 : channels + 1].sigmoid()
    result = torch.cat([(colour * weights).sum(-1), 1 - through[None, :, -1]])
    if len(raw) > channels + 1:
        result = torch.cat([result, (unit(raw[channels + 1 :], dim=0) * weights).sum(-1)])
    if keep is None:
        return result
    return result.new_zeros(len(result), count).index_copy(1, keep, result)
