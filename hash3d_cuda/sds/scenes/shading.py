"""Views made of normals and light: what shows score distillation the shape without its colours.

Shading is deferred: colour, opacity and normal are rendered first, and each pixel is lit once. DreamFusion (Poole et
al. 2022, appendix A.4) lights every sample along the ray before it composites; on a solid surface the two agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hash3d_cuda.cameras import camera_to_world
from hash3d_cuda.checks import check_choice, fail
from hash3d_cuda.sds.scenes.base import Rendered

SHADINGS = ("normal", "lambert", "textureless")
"""``"normal"``: (n + 1) / 2 as a colour (Fantasia3D, stage 1); ``"lambert"``: colour times ambient and diffuse light;
``"textureless"``: the same on white matter (DreamFusion)."""
AMBIENT, DIFFUSE = 0.1, 0.9
"""Strength of the light from everywhere and of that from ``light``, as in DreamFusion."""
FAINT = 1e-6


def check_shading(shading: str | None, latent: bool) -> str | None:
    """Returns ``shading`` when a scene can be drawn so; raises ValueError or TypeError."""
    if shading is None:
        return None
    check_choice("shading", shading, SHADINGS)
    if latent:
        fail(ValueError, "shading", "None for a latent scene, whose values are no colours", shading, "leave it away")
    return shading


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors along ``dim`` made as good as 1 long; zero stays zero, with a finite gradient."""
    return vectors / (vectors.square().sum(dim, keepdim=True) + FAINT**2).sqrt()


def shade(colour: Tensor, alpha: Tensor, normal: Tensor, shading: str, light: Tensor) -> Rendered:
    """Lights views and lays them over white.

    Args:
        colour: float [B,3,S,S], times alpha.
        alpha: float [B,1,S,S].
        normal: float [B,3,S,S], outward, of any length; where it is zero there is ambient light only.
        shading: one of :data:`SHADINGS`.
        light: float [B,3], from the object to the light, of any length.
    """
    way = unit(normal, dim=1)
    if shading == "normal":
        colour = 0.5 * alpha * (way + 1)
    else:
        facing = (way * unit(light)[:, :, None, None]).sum(1, keepdim=True).clamp_min(0)
        lit = AMBIENT + DIFFUSE * facing
        colour = (alpha if shading == "textureless" else colour) * lit
    return Rendered(colour.expand(-1, 3, -1, -1) + (1 - alpha), alpha, way * alpha)


def light_or_camera(light: Tensor | None, elevation: Tensor, azimuth: Tensor, radius: Tensor) -> Tensor:
    """The given directions float [B,3], or those to the cameras; raises ValueError for another shape."""
    if light is None:
        return camera_to_world(elevation, azimuth, radius)[:, :, 2]
    if not isinstance(light, Tensor) or light.shape != (len(elevation), 3):
        expected = f"a float tensor of shape [{len(elevation)}, 3], one direction per view"
        fail(ValueError, "light", expected, light, "pass directions from the object to the light, or None")
    return light.to(elevation)


def gradient3d(grid: Tensor) -> Tensor:
    """Central differences of float [1,1,R,R,R] along its last three axes, last axis first, per cell: [1,3,R,R,R]."""
    return torch.cat(torch.gradient(grid, dim=(4, 3, 2)), 1)
