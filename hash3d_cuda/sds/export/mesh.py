"""Scenes as triangle meshes in binary glTF, with one colour per vertex."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.nn import functional as F

from hash3d_cuda.sds.export.points import require_colours
from hash3d_cuda.sds.scenes.base import BOUND, Scene
from hash3d_cuda.sds.scenes.isosurface import large_pieces
from hash3d_cuda.sds.scenes.mesh import MeshScene

RESOLUTION = 96
LEVEL = 0.5


def write_glb(scene: Scene, path: Path, resolution: int = RESOLUTION) -> None:
    """Writes a mesh scene's own mesh, or the surface where occupancy is one half, found by marching cubes.

    glTF has y up and its front towards +z; the world has z up and its front towards +x.

    Args:
        scene: has an occupancy grid; a latent one goes through
            :class:`hash3d_cuda.sds.scenes.decoded.DecodedScene`.
        path: ends in ``.glb``.
        resolution: grid points per side; a mesh scene keeps its own.

    Raises:
        ValueError: nothing is dense enough for a surface, or the scene is latent.
        OSError: the file cannot be written.
    """
    import trimesh

    require_colours(scene)
    vertices, faces, normals, colours = surface(scene, resolution)
    linear = np.concatenate([to_linear(colours), np.ones((len(colours), 1))], 1)
    mesh = trimesh.Trimesh(
        vertices=vertices[:, [1, 2, 0]], faces=faces, vertex_normals=normals[:, [1, 2, 0]],
        vertex_colors=(linear * 255).round().astype(np.uint8), process=False,
    )  # fmt: skip
    path.write_bytes(mesh.export(file_type="glb", include_normals=True))


def surface(scene: Scene, resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices float [V,3] in world axes, faces int [F,3] (counter-clockwise from outside), normals float [V,3]
    and colours float [V,3] in 0..1; raises ValueError when there are none."""
    from skimage.measure import marching_cubes

    if isinstance(scene, MeshScene):
        return scene.mesh()
    occupancy, colour = scene.occupancy_grid(resolution)
    field = large_pieces(F.pad(occupancy, (1,) * 6).cpu().numpy(), LEVEL)
    if not (field > LEVEL).any():
        raise ValueError(
            f"nothing is dense enough for a surface (highest occupancy {field.max():.2f}, needed {LEVEL}); "
            "run more steps"
        )
    places, faces, normals, _ = marching_cubes(field, LEVEL, gradient_direction="ascent")
    places = places - 1  # the rim of zeros, which closes an object that is cut off by the cube
    vertices = places * (2 * BOUND / (resolution - 1)) - BOUND
    return vertices, faces, normals, sample(colour.cpu().numpy(), places)


def sample(grid: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Trilinear look-up in float [R,R,R,C] at float [V,3] grid coordinates: float [V,C]."""
    from scipy.ndimage import map_coordinates

    return np.stack(
        [map_coordinates(channel, places.T, order=1, mode="nearest") for channel in np.moveaxis(grid, -1, 0)], -1
    )


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Display values in 0..1 to linear light, which glTF asks of vertex colours."""
    srgb = np.clip(srgb, 0, 1)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
