"""Rasterisation of triangle meshes that gradients pass through: by nvdiffrast on CUDA, in plain torch elsewhere.

Which triangle a pixel sees is decided without gradients. What the pixel shows is then computed from the triangle's
corners, and the outline is softened by how far it lies between two pixels' centres, as nvdiffrast's antialiasing does
(Laine et al. 2020): so both the inside and the outline pull at the vertices.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Protocol

import torch
from torch import Tensor

from hash3d_cuda.cameras import camera_to_world, focal_length
from hash3d_cuda.checks import check_choice, fail
from hash3d_cuda.sds.scenes.isosurface import Topology
from hash3d_cuda.sds.scenes.outline import crossings
from hash3d_cuda.sds.scenes.splat import NEAR, world_to_camera
from hash3d_cuda.sds.scenes.zbuffer import opposite_areas, visible_faces

RASTERISERS = ("auto", "torch", "nvdiffrast")


class Raster(Protocol):
    """A mesh in B views of S*S pixels.

    Attributes:
        covered: bool [B,S,S], pixels whose centre sees the mesh.
    """

    covered: Tensor

    def interpolate(self, values: Tensor) -> Tensor:
        """Values float [V,C] of the vertices, at each pixel: float [B,S,S,C], zero where nothing is seen."""

    def soften(self, values: Tensor) -> Tensor:
        """Blends float [B,S,S,C], zero outside, across the outline; its gradient reaches the vertices."""


def rasterise(
    vertices: Tensor,
    topology: Topology,
    elevation: Tensor,
    azimuth: Tensor,
    radius: Tensor,
    size: int,
    rasteriser: str = "auto",
) -> Raster:
    """Draws a mesh of vertices float [V,3] in scene units from poses float [B] each.

    Args:
        vertices, topology: the mesh.
        elevation, azimuth, radius: the poses.
        size: S, pixels per side.
        rasteriser: ``"nvdiffrast"``, ``"torch"``, or ``"auto"``: the former on CUDA where it is installed.

    Raises:
        ValueError: nvdiffrast is asked for and cannot be had.
    """
    check_choice("rasteriser", rasteriser, RASTERISERS)
    view, position = world_to_camera(camera_to_world(elevation, azimuth, radius))
    local = (vertices - position[:, None]) @ view.transpose(1, 2)
    possible = vertices.is_cuda and has_nvdiffrast()
    if rasteriser == "nvdiffrast" and not possible:
        remedy = "install nvdiffrast (it is not on PyPI) and put the scene on CUDA, or pass rasteriser='torch'"
        fail(ValueError, "rasteriser", "'torch' where nvdiffrast cannot draw", rasteriser, remedy)
    if possible and rasteriser != "torch" and len(topology.faces):
        from hash3d_cuda.sds.scenes.raster_nvdiffrast import NvdiffrastRaster

        return NvdiffrastRaster(local, topology, size)
    return TorchRaster(local, topology, size)


@functools.cache
def has_nvdiffrast() -> bool:
    """Whether nvdiffrast is installed."""
    return importlib.util.find_spec("nvdiffrast") is not None


class TorchRaster:
    """In plain torch; see :class:`Raster`. Only the outline against the background is softened.

    Args:
        local: float [B,V,3], vertices in camera axes: right, down, forward.
        topology: the mesh.
        size: pixels per side.
    """

    def __init__(self, local: Tensor, topology: Topology, size: int):
        self.topology, self.size = topology, size
        self.depth = local[..., 2].clamp_min(NEAR)
        self.pixel = local[..., :2] / self.depth[..., None] * focal_length(size) + size / 2
        self.face = visible_faces(self.pixel.detach(), self.depth.detach(), topology.faces, size)
        self.covered = self.face >= 0
        self.where = self.covered.flatten().nonzero()[:, 0]
        self.view = self.where // size**2
        self.corners = topology.faces[self.face.flatten()[self.where]]
        self.weights = self._weights()

    def _weights(self) -> Tensor:
        """How much each corner counts at each covered pixel, in perspective: float [K,3]."""
        x, y = self.where % self.size, self.where // self.size % self.size
        centre = torch.stack([x, y], -1).to(self.pixel) + 0.5
        depth = self.depth[self.view[:, None], self.corners]
        areas = opposite_areas(self.pixel[self.view[:, None], self.corners] - centre[:, None]) / depth
        return areas / areas.sum(-1, keepdim=True)

    def interpolate(self, values: Tensor) -> Tensor:
        """See :meth:`Raster.interpolate`."""
        seen = (values[self.corners] * self.weights[..., None]).sum(1)
        flat = seen.new_zeros(self.face.numel(), values.shape[1]).index_copy(0, self.where, seen)
        return flat.view(*self.face.shape, -1)

    def soften(self, values: Tensor) -> Tensor:
        """See :meth:`Raster.soften`.

        Between a covered and an uncovered neighbour the outline lies d pixels from the covered one's centre. Past the
        half, the neighbour takes d - 1/2 of the covered one's value; before it, the covered one loses 1/2 - d of its.
        A slanting outline crosses neighbours in rows and in columns: each counts by the square of how squarely it is
        crossed, and the two squares add up to one, which makes the blend pass through one half where d is zero.
        """
        covered, other, reach, weight = self._outline()
        flat = values.reshape(-1, values.shape[-1])
        share = reach - 0.5
        target = torch.where(share > 0, other, covered)
        change = (weight * share)[:, None] * flat[covered]
        return flat.index_add(0, target, change).clamp(min=0).view_as(values) if len(share) else values

    def _outline(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pairs of neighbouring pixels across the outline; see :func:`crossings`."""
        front = opposite_areas(self.pixel.detach()[:, self.topology.faces]).sum(-1) > 0
        sides = front[:, self.topology.sides]
        view, edge = (sides[..., 0] != sides[..., 1]).nonzero(as_tuple=True)
        ends = self.pixel[view[:, None], self.topology.edges[edge]]
        found = [crossings(view, ends, self.covered, axis) for axis in (0, 1)]
        return tuple(torch.cat(values) for values in zip(*found, strict=True))  # type: ignore[return-value]
