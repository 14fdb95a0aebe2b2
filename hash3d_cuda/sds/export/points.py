"""Scenes as PLY: coloured points, or Gaussians in the layout that splat viewers read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hash3d_cuda.checks import fail
from hash3d_cuda.sds.scenes.base import BOUND, Scene
from hash3d_cuda.sds.scenes.gaussians import GaussianScene
from hash3d_cuda.sds.scenes.mesh import MeshScene

RESOLUTION = 64
OCCUPIED = 0.5
SH0 = 0.28209479177387814
"""The constant spherical harmonic: colour = 0.5 + SH0 * f_dc."""


def write_ply(scene: Scene, path: Path) -> None:
    """Writes Gaussians with all their fields, meshes with their triangles, other scenes as the coloured points where
    they are solid.

    World axes (z up); raises OSError, and ValueError for a latent scene.
    """
    require_colours(scene)
    if isinstance(scene, GaussianScene):
        path.write_bytes(gaussian_ply(scene))
    elif isinstance(scene, MeshScene) and len(scene.surface()[0]):
        path.write_bytes(mesh_ply(scene))
    else:
        path.write_bytes(point_ply(*occupied_points(scene)))


def require_colours(scene: Scene) -> None:
    """Raises ValueError for a latent scene."""
    if getattr(scene, "latent", False):
        remedy = "wrap it: DecodedScene(scene, prior.decode, scale)"
        fail(ValueError, "scene", "a scene in colours", f"a latent {type(scene).__name__}", remedy)


def occupied_points(scene: Scene, resolution: int = RESOLUTION) -> tuple[np.ndarray, np.ndarray]:
    """Grid points inside the object that have a neighbour outside: places float32 [N,3], colours uint8 [N,3]."""
    occupancy, colour = scene.occupancy_grid(resolution)
    solid = torch.nn.functional.pad(occupancy > OCCUPIED, (1,) * 6)
    inner = solid.clone()
    for axis in range(3):
        inner &= solid.roll(1, axis) & solid.roll(-1, axis)
    shell = (solid & ~inner)[1:-1, 1:-1, 1:-1].nonzero()
    places = shell.float() * (2 * BOUND / (resolution - 1)) - BOUND
    colours = (colour[tuple(shell.T)].clamp(0, 1) * 255).round().byte()
    return places.cpu().numpy(), colours.cpu().numpy()


def point_ply(places: np.ndarray, colours: np.ndarray) -> bytes:
    """A point cloud; without any point, a valid file with none."""
    import trimesh

    if len(places) == 0:
        names = [*"xyz", "red", "green", "blue"]
        return header(0, [("float" if len(name) == 1 else "uchar", name) for name in names])
    return trimesh.PointCloud(places, colors=colours).export(file_type="ply")


def mesh_ply(scene: MeshScene) -> bytes:
    """Triangles with normals and one colour per vertex."""
    import trimesh

    vertices, faces, normals, colours = scene.mesh()
    mesh = trimesh.Trimesh(
        vertices=vertices, faces=faces, vertex_normals=normals,
        vertex_colors=(colours.clip(0, 1) * 255).round().astype(np.uint8), process=False,
    )  # fmt: skip
    return mesh.export(file_type="ply", vertex_normal=True)


@torch.no_grad()
def gaussian_ply(scene: GaussianScene) -> bytes:
    """The layout of Kerbl et al.'s code: f_dc, logit opacity, log scale, quaternion w first; all float32."""
    g = scene.gaussians()
    count = len(g.mean)
    columns: dict[str, Tensor] = {
        "x y z": g.mean, "nx ny nz": torch.zeros_like(g.mean), "f_dc_0 f_dc_1 f_dc_2": (g.colour - 0.5) / SH0,
        "opacity": scene.opacity[:, None], "scale_0 scale_1 scale_2": g.scale.log(),
        "rot_0 rot_1 rot_2 rot_3": g.quaternion,
    }  # fmt: skip
    names = [("float", name) for group in columns for name in group.split()]
    table = torch.cat(list(columns.values()), 1).cpu().numpy().astype("<f4")
    return header(count, names) + table.tobytes()


def header(count: int, properties: list[tuple[str, str]]) -> bytes:
    """Of a binary PLY with ``count`` vertices."""
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    lines += [f"property {kind} {name}" for kind, name in properties]
    return ("\n".join([*lines, "end_header"]) + "\n").encode()
