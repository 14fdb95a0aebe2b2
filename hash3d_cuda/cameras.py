"""Cameras on a sphere around the object: one convention for rendering data, scenes and the cache's keys.

World: z up, right-handed, the object inside a sphere of radius 0.5 about the origin, its front facing +x.
A pose is (elevation, azimuth) in degrees and a radius in scene units; the camera looks at the origin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FOV_DEGREES = 35.0
"""Vertical field of view: a sphere of radius 0.5 stays inside the frame down to radius 1.67."""


def camera_to_world(elevation: Tensor, azimuth: Tensor, radius: Tensor) -> Tensor:
    """Camera poses as matrices.

    Args:
        elevation, azimuth: float [B], degrees. ``|elevation|`` below 90, where "up" is undefined.
        radius: float [B], scene units.

    Returns:
        float [B,3,4]: columns are the camera's right, up and backward axes (OpenGL), then its position.
    """
    e, a = torch.deg2rad(elevation), torch.deg2rad(azimuth)
    backward = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)
    right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)], -1)
    up = torch.cross(backward, right, dim=-1)
    return torch.stack([right, up, backward, backward * radius[:, None]], -1)


def focal_length(size: int, fov_degrees: float = FOV_DEGREES) -> float:
    """Focal length in pixels of a square image ``size`` pixels wide."""
    return 0.5 * size / math.tan(math.radians(fov_degrees) / 2)


def camera_rays(cam_to_world: Tensor, size: int, fov_degrees: float = FOV_DEGREES) -> tuple[Tensor, Tensor]:
    """One ray per pixel centre, row 0 at the top.

    Args:
        cam_to_world: float [B,3,4] from :func:`camera_to_world`.
        size: pixels per side.

    Returns:
        origins and unit directions, each float [B,size,size,3].
    """
    device = cam_to_world.device
    offset = (torch.arange(size, device=device, dtype=torch.float32) + 0.5 - size / 2) / focal_length(size, fov_degrees)
    y, x = torch.meshgrid(-offset, offset, indexing="ij")
    local = torch.stack([x, y, -torch.ones_like(x)], -1)
    local = local / local.norm(dim=-1, keepdim=True)
    directions = torch.einsum("bij,hwj->bhwi", cam_to_world[:, :, :3], local)
    origins = cam_to_world[:, None, None, :, 3].expand_as(directions)
    return origins, directions
