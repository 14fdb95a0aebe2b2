"""Surfaces of fields on grids: marching cubes whose vertices follow the field differentiably."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SMALLEST = 0.01
"""Pieces below this share of the largest piece's volume are left out."""


@dataclass(frozen=True)
class Topology:
    """Which corners of a grid the vertices of its surface lie between, and how they are joined.

    Attributes:
        inner, outer: int64 [V], flat indices of the corners inside and outside that a vertex lies between.
        faces: int64 [F,3], counter-clockwise from outside.
        edges: int64 [E,2], vertices, each edge once.
        sides: int64 [E,2], the two faces at each edge.
    """

    inner: Tensor
    outer: Tensor
    faces: Tensor
    edges: Tensor
    sides: Tensor


def find_topology(inside: Tensor) -> Topology:
    """The surface between the corners that are ``inside``, bool [R,R,R], and the others; False all around.

    It depends on nothing but ``inside``: scikit-image's marching cubes (Lewiner et al. 2003) runs on values of random
    but fixed size, by which neighbouring cells agree about faces that can be cut in two ways.
    """
    from skimage.measure import marching_cubes

    device, shape = inside.device, inside.shape
    sign = inside.cpu().numpy()
    if not sign.any():
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return Topology(nothing, nothing, *(nothing.view(0, n) for n in (3, 2, 2)))
    size = 1 + np.random.default_rng(0).random(shape, dtype=np.float32)
    places, faces, _, _ = marching_cubes(np.where(sign, size, -size), 0.0, gradient_direction="ascent")
    low = np.floor(places).astype(np.int64)
    step = (places - low > 0.25).astype(np.int64)  # sizes are within a factor of two: at least a third from any corner
    first, second = (np.ravel_multi_index(tuple(corner.T), shape) for corner in (low, low + step))
    swap = ~sign.ravel()[first]
    inner, outer = np.where(swap, second, first), np.where(swap, first, second)
    centre = step.sum(1) != 1
    if centre.any():
        inner, outer, faces = without_centres(inner, outer, faces.astype(np.int64), centre)
    edges, sides = edges_of(faces.astype(np.int64))
    return Topology(*(torch.from_numpy(v.astype(np.int64)).to(device) for v in (inner, outer, faces, edges, sides)))


def without_centres(
    inner: np.ndarray, outer: np.ndarray, faces: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts each vertex in the middle of a cell, which a few cases have, on one of its neighbours.

    The faces around it then fan out from there, and those that shrink to a line go.
    """
    target = np.arange(len(inner))
    for vertex in np.flatnonzero(centre):
        around = np.setdiff1d(faces[(faces == vertex).any(1)], np.flatnonzero(centre))
        target[vertex] = around.min()
    faces = target[faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    kept = np.flatnonzero(~centre)
    renumbered = np.cumsum(~centre) - 1
    return inner[kept], outer[kept], renumbered[faces]


def edges_of(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges int64 [E,2] that two faces int64 [F,3] share, and these faces int64 [E,2].

    Where four faces meet at an edge they are paired in the order of their numbers.
    """
    both = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    name = both[:, 0] * (faces.max(initial=0) + 1) + both[:, 1]
    order = np.argsort(name, kind="stable")
    both, face = both[order], np.repeat(np.arange(len(faces)), 3)[order]
    first, count = np.unique(name[order], return_index=True, return_counts=True)[1:]
    pairs = np.concatenate([first[count >= 2], first[count >= 4] + 2])
    return both[pairs], np.stack([face[pairs], face[pairs + 1]], 1)


def place_vertices(topology: Topology, field: Tensor) -> Tensor:
    """Where the field float [R,R,R] crosses zero on each vertex's edge, in grid coordinates: float [V,3].

    Linear interpolation, differentiable with respect to the field at the edge's ends.
    """
    values = field.flatten()
    inside, outside = values[topology.inner], values[topology.outer]
    way = (inside / (inside - outside)).clamp(0, 1)[:, None]  # inside > 0 >= outside
    ends = [
        torch.stack(torch.unravel_index(end, field.shape), 1).to(values) for end in (topology.inner, topology.outer)
    ]
    return ends[0] + way * (ends[1] - ends[0])


def large_pieces(field: np.ndarray, level: float) -> np.ndarray:
    """float [R,R,R] with the small separate pieces above ``level`` taken out."""
    from skimage.measure import label

    pieces = label(field > level, connectivity=1)
    volumes = np.bincount(pieces.ravel())
    volumes[0] = 0
    small = volumes < SMALLEST * volumes.max()
    small[0] = False
    return np.where(small[pieces], np.float32(0), field)


def without_cavities(field: np.ndarray, level: float) -> np.ndarray:
    """float [R,R,R] with what is below ``level`` and walled in, where no view can look, made 1: splats are shells."""
    from scipy.ndimage import binary_fill_holes

    solid = field > level
    return np.where(binary_fill_holes(solid) & ~solid, np.float32(1), field)


def distance_field(occupancy: np.ndarray, level: float) -> np.ndarray:
    """Signed distance in cells, positive inside, from the surface where occupancy float [R,R,R] is ``level``.

    Distances are those to the plane of the nearest point of the surface; the sign is the occupancy's.
    """
    from scipy.spatial import cKDTree
    from skimage.measure import marching_cubes

    surface, _, normals, _ = marching_cubes(occupancy, level)
    corners = np.stack(np.meshgrid(*(np.arange(n) for n in occupancy.shape), indexing="ij"), -1).reshape(-1, 3)
    far, near = cKDTree(surface).query(corners)
    plane = np.abs(((corners - surface[near]) * normals[near]).sum(1))
    distance = np.where(far < 2, plane, far).clip(1e-3).reshape(occupancy.shape)
    return np.where(occupancy > level, distance, -distance).astype(np.float32)
