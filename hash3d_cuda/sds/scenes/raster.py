"""Rasterisation of triangle meshes that gradients pass through: by nvdiffrast on CUDA, in plain torch elsewhere.

Which triangle a pixel sees is decided without gradients. What the pixel shows is then computed from the triangle's
corners, and the outline is softened by how far it lies between two pixels' centres, as nvdiffrast's antialiasing does
(Laine et al. 2020): so both the inside and the outline pull at the vertices.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Protocol

import torch
from torch import Tensor

from hash3d_cuda.cameras import camera_to_world, focal_length
from hash3d_cuda.checks import check_choice, fail
from hash3d_cuda.sds.scenes.isosurface import Topology
from hash3d_cuda.sds.scenes.splat import NEAR, world_to_camera

RASTERISERS = ("auto", "torch", "nvdiffrast")
FAR = 100.0
PAIRS_AT_A_TIME = 1 << 22  # of triangles and pixels


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
        return NvdiffrastRaster(local, topology, size)
    return TorchRaster(local, topology, size)


@functools.cache
def has_nvdiffrast() -> bool:
    """Whether nvdiffrast is installed."""
    return importlib.util.find_spec("nvdiffrast") is not None


@functools.cache
def nvdiffrast_context(device: torch.device) -> Any:
    """One rasteriser per device."""
    import nvdiffrast.torch as dr

    return dr.RasterizeCudaContext(device=device)


class NvdiffrastRaster:
    """By nvdiffrast's CUDA kernels; see :class:`Raster`. Not run where this project is tested, but for its arguments.

    Args:
        local: float [B,V,3], vertices in camera axes: right, down, forward.
        topology: the mesh.
        size: pixels per side.
    """

    def __init__(self, local: Tensor, topology: Topology, size: int):
        import nvdiffrast.torch as dr

        self.dr, self.faces = dr, topology.faces.int()
        x, y, depth = local.unbind(-1)
        focal = 2 * focal_length(size) / size
        # nvdiffrast's row 0 lies at y = -1, so that y may go down as ours does
        clip_depth = ((FAR + NEAR) * depth - 2 * FAR * NEAR) / (FAR - NEAR)
        self.clip = torch.stack([focal * x, focal * y, clip_depth, depth], -1).contiguous()
        self.seen, _ = dr.rasterize(nvdiffrast_context(local.device), self.clip, self.faces, resolution=[size, size])
        self.covered = self.seen[..., 3] > 0

    def interpolate(self, values: Tensor) -> Tensor:
        """See :meth:`Raster.interpolate`."""
        return self.dr.interpolate(values.contiguous(), self.seen, self.faces)[0]

    def soften(self, values: Tensor) -> Tensor:
        """See :meth:`Raster.soften`."""
        return self.dr.antialias(values.contiguous(), self.seen, self.clip, self.faces)


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


def opposite_areas(corners: Tensor) -> Tensor:
    """Twice the signed areas of the triangles that each side spans with the origin, listed by the opposite corner.

    float [...,3,2] to float [...,3]; their sum is twice the triangle's own area, positive where y goes down and the
    corners are seen counter-clockwise.
    """
    first, second = corners.roll(-1, -2), corners.roll(-2, -2)
    return first[..., 1] * second[..., 0] - first[..., 0] * second[..., 1]


def visible_faces(pixel: Tensor, depth: Tensor, faces: Tensor, size: int) -> Tensor:
    """The nearest face at each pixel's centre, int64 [B,S,S], -1 where there is none.

    A z-buffer over all pairs of a face and a pixel of its box. Equally near faces: the lowest number is seen.

    Args:
        pixel, depth: float [B,V,2] and [B,V].
        faces: int64 [F,3].
        size: S.
    """
    batch, count = len(pixel), len(faces)
    nearest = depth.new_full((batch * size**2,), torch.inf)
    seen = torch.full((batch * size**2,), count, dtype=torch.int64, device=pixel.device)
    if count == 0 or batch == 0:
        return seen.view(batch, size, size) - 1
    corners, depths = pixel[:, faces].flatten(0, 1), depth[:, faces].flatten(0, 1)
    first = (corners.amin(1) - 0.5).ceil().clamp(0, size).long()
    last = (corners.amax(1) - 0.5).floor().clamp(-1, size - 1).long()
    span = (last - first + 1).clamp_min(0)
    span = torch.where((depths > NEAR).all(1)[:, None], span, 0)
    parts, start = torch.cumsum(span.prod(1), 0) // PAIRS_AT_A_TIME, 0
    found = []
    for number in parts.unique_consecutive(return_counts=True)[1].tolist():
        some = slice(start, start + number)
        found.append(covering(corners[some], depths[some], first[some], span[some], start, count, size))
        start += number
    place, face, far = (torch.cat(values) for values in zip(*found, strict=True))
    nearest.scatter_reduce_(0, place, far, "amin")
    hit = far == nearest[place]
    seen.scatter_reduce_(0, place[hit], face[hit], "amin")
    return torch.where(seen == count, -1, seen).view(batch, size, size)


def covering(
    corners: Tensor, depths: Tensor, first: Tensor, span: Tensor, start: int, count: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which pixels the faces cover: pixels and faces, int64 [K] each, and depths there, float [K].

    Args:
        corners, depths: float [N,3,2] and [N,3], of the faces ``start`` and on, counted through all views.
        first, span: int64 [N,2], their boxes in pixels: first column and row, columns and rows.
        start: see above.
        count: faces per view.
        size: pixels per side.
    """
    number = span.prod(1)
    row = torch.arange(len(span), device=span.device).repeat_interleave(number)
    within = torch.arange(len(row), device=span.device) - (number.cumsum(0) - number)[row]
    x, y = first[row, 0] + within % span[row, 0], first[row, 1] + within // span[row, 0]
    areas = opposite_areas(corners[row] - (torch.stack([x, y], -1).to(corners) + 0.5)[:, None])
    inside = ((areas >= 0).all(1) | (areas <= 0).all(1)) & (areas.sum(1) != 0)
    row, x, y, areas = row[inside], x[inside], y[inside], areas[inside]
    far = areas.sum(1) / (areas / depths[row]).sum(1)
    face = row + start
    return (face // count * size + y) * size + x, face % count, far


def crossings(view: Tensor, ends: Tensor, covered: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where edges cross the lines between neighbouring pixels' centres, of which one is covered and one is not.

    Args:
        view: int64 [N], of the edges.
        ends: float [N,2,2], in pixels.
        covered: bool [B,S,S].
        axis: 0 for neighbours in a row, 1 for those in a column.

    Returns:
        the flat indices of the covered and of the other pixel, int64 [P] each; how far the outermost edge is from the
        covered one's centre, float [P] in 0..1; and how squarely it crosses, float [P] in 0..1.
    """
    size = covered.shape[-1]
    along, across = ends[..., axis], ends[..., 1 - axis]
    first = (across.detach().amin(1) - 0.5).ceil().clamp(0, size).long()
    last = (across.detach().amax(1) - 0.5).floor().clamp(-1, size - 1).long()
    number = (last - first + 1).clamp_min(0)
    row = torch.arange(len(view), device=view.device).repeat_interleave(number)
    line = first[row] + torch.arange(len(row), device=view.device) - (number.cumsum(0) - number)[row]
    a, b = across[row].unbind(-1)
    level = (b - a).detach() == 0
    share = torch.where(level, 0.5, (line + 0.5 - a) / torch.where(level, 1.0, b - a))
    place = torch.lerp(along[row, 0], along[row, 1], share) - 0.5
    pixel = place.detach().floor().long()
    inside = ((pixel >= 0) & (pixel < size - 1)).nonzero()[:, 0]
    row, line, place, pixel = row[inside], line[inside], place[inside], pixel[inside]
    flat = view[row] * size**2 + (line * size + pixel if axis == 0 else pixel * size + line)
    step = 1 if axis == 0 else size
    left, right = covered.flatten()[flat], covered.flatten()[flat + step]
    differ = (left != right).nonzero()[:, 0]
    flat, left, way = flat[differ], left[differ], (place - pixel)[differ]
    reach = torch.where(left, way, 1 - way)
    furthest = reach.new_full((covered.numel(),), -1.0).scatter_reduce(0, flat, reach.detach(), "amax")
    order = torch.arange(len(flat), device=flat.device)
    winner = reach.detach() == furthest[flat]
    lowest = torch.full((covered.numel(),), len(flat), device=flat.device).scatter_reduce(
        0, flat[winner], order[winner], "amin"
    )
    kept = (winner & (lowest[flat] == order)).nonzero()[:, 0]
    flat, left = flat[kept], left[kept]
    way = (ends[:, 1] - ends[:, 0])[row[differ[kept]]].square()
    weight = way[:, 1 - axis] / way.sum(-1)
    return torch.where(left, flat, flat + step), torch.where(left, flat + step, flat), reach[kept], weight
