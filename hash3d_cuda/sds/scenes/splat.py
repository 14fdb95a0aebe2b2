"""Splatting of 3D Gaussians into views (Kerbl et al. 2023): by gsplat on CUDA, by tiles in plain torch elsewhere.

The torch version cuts the views into tiles of ``TILE`` pixels, lists for each tile the Gaussians that touch
it from front to back, and composites all tiles at once. In a tile the exponent of every Gaussian is a
quadratic polynomial of the pixel's place, so that one batched matrix product evaluates them all.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.cameras import camera_to_world, focal_length
from hash3d_cuda.sds.scenes.base import Rendered

TILE = 8
TILES_AT_A_TIME = 256
ELEMENTS_AT_A_TIME = 1 << 22
SIMILAR = 0.7  # lists at least this much shorter than the longest are filled up to it
LOW_PASS = 0.3
"""Pixels squared, added to every projected variance, so that no Gaussian falls between pixels."""
EXTENT = 3.33
"""Standard deviations after which a Gaussian ends: exp(-EXTENT**2 / 2) is about 1/255."""
MIN_ALPHA, MAX_ALPHA = 1 / 255, 0.999
NEAR = 0.01


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians: float mean [N,3], scale [N,3] (standard deviations), quaternion [N,4] (unit, w first),
    opacity [N] in 0..1, and colour [N,C]: in 0..1, or whatever else is to be blended."""

    mean: Tensor
    scale: Tensor
    quaternion: Tensor
    opacity: Tensor
    colour: Tensor


def splat(
    gaussians: Gaussians,
    elevation: Tensor,
    azimuth: Tensor,
    radius: Tensor,
    size: int,
    background: Tensor | None = None,
    info: dict[str, Any] | None = None,
) -> Rendered:
    """Views from poses float [B] each, ``size`` pixels per side.

    Args:
        gaussians: what to draw.
        elevation, azimuth, radius: the poses.
        size: pixels per side.
        background: float [C]; None: white.
        info: filled with what gsplat's densification asks for, where gsplat draws.
    """
    view, position = world_to_camera(camera_to_world(elevation, azimuth, radius))
    if gaussians.mean.is_cuda and has_gsplat():
        return splat_gsplat(gaussians, view, position, size, background, info)
    return splat_torch(gaussians, view, position, size, background)


def over(colour: Tensor, alpha: Tensor, background: Tensor | None) -> Rendered:
    """Colour times alpha float [B,C,S,S] laid over one colour float [C], or over white."""
    rest = 1 - alpha if background is None else (1 - alpha) * background[:, None, None]
    return Rendered(colour + rest, alpha)


@functools.cache
def has_gsplat() -> bool:
    """Whether the gsplat package is installed."""
    return importlib.util.find_spec("gsplat") is not None


def world_to_camera(pose: Tensor) -> tuple[Tensor, Tensor]:
    """From float [B,3,4] (columns right, up, backward, position) to rotations float [B,3,3] whose rows are right, down
    and forward, and the positions float [B,3]."""
    flip = torch.tensor([1.0, -1.0, -1.0]).to(pose, non_blocking=True)
    return (pose[:, :, :3] * flip).transpose(1, 2), pose[:, :, 3]


def splat_gsplat(
    gaussians: Gaussians,
    view: Tensor,
    position: Tensor,
    size: int,
    background: Tensor | None = None,
    info: dict[str, Any] | None = None,
) -> Rendered:
    """By gsplat's CUDA kernels; arguments as for :func:`splat_torch`."""
    from gsplat import rasterization

    matrices = torch.zeros(len(view), 4, 4, device=view.device)
    matrices[:, :3, :3] = view
    matrices[:, :3, 3] = -(view @ position[..., None])[..., 0]
    matrices[:, 3, 3] = 1
    focal, middle = focal_length(size), size / 2
    lens = torch.tensor([[focal, 0, middle], [0, focal, middle], [0, 0, 1]]).to(view, non_blocking=True)
    colour, alpha, meta = rasterization(
        means=gaussians.mean, quats=gaussians.quaternion, scales=gaussians.scale, opacities=gaussians.opacity,
        colors=gaussians.colour, viewmats=matrices, Ks=lens.expand(len(view), 3, 3), width=size, height=size,
        near_plane=NEAR, eps2d=LOW_PASS, packed=False,
    )  # fmt: skip
    if info is not None:
        info.update(meta)
    return over(colour.permute(0, 3, 1, 2), alpha.permute(0, 3, 1, 2), background)


def splat_torch(
    gaussians: Gaussians, view: Tensor, position: Tensor, size: int, background: Tensor | None = None
) -> Rendered:
    """By tiles in plain torch.

    Args:
        gaussians: what to draw.
        view, position: float [B,3,3] and [B,3] from :func:`world_to_camera`.
        size: pixels per side.
        background: float [C]; None: white.
    """
    centre, variance, depth = project(gaussians, view, position, size)
    batch, count = depth.shape
    order = depth.detach().argsort(dim=1, stable=True)
    flat = (order + torch.arange(batch, device=order.device)[:, None] * count).flatten()
    centre, variance = centre.flatten(0, 1).index_select(0, flat), variance.flatten(0, 1).index_select(0, flat)
    depth = depth.flatten().index_select(0, flat)
    which = order.flatten()
    alive = (depth > NEAR) & (gaussians.opacity.detach().index_select(0, which) >= MIN_ALPHA)
    reach = EXTENT * variance.detach()[:, ::2].sqrt()
    low, high = (centre.detach() - reach) / TILE, (centre.detach() + reach) / TILE
    low = torch.where(alive[:, None], low, torch.inf)  # such a Gaussian touches no tile
    per_gaussian = [
        centre, inverse(variance), gaussians.opacity.index_select(0, which).log()[:, None],
        gaussians.colour.index_select(0, which),
    ]  # fmt: skip
    packed = torch.cat(per_gaussian, 1)
    packed = torch.cat([packed, nothing(packed)])
    side = -(-size // TILE)
    which, counts = touching(low.view(batch, count, 2), high.view(batch, count, 2), side)
    views = draw(packed, which, counts, side).unflatten(0, (batch, side, side)).unflatten(3, (TILE, TILE))
    views = views.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, side * TILE, side * TILE)[:, :, :size, :size]
    return over(views[:, :-1], views[:, -1:], background)


def project(gaussians: Gaussians, view: Tensor, position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussians as ellipses in pixels.

    Returns:
        centre float [B,N,2] (x to the right, y down, from the top left corner), variance float [B,N,3]
        (xx, xy, yy) and depth float [B,N] in scene units.
    """
    focal = focal_length(size)
    local = (gaussians.mean - position[:, None]) @ view.transpose(1, 2)
    depth = local[..., 2]
    slope = local[..., :2] / depth.clamp_min(NEAR)[..., None]
    axes = rotation_matrices(gaussians.quaternion) * gaussians.scale[:, None]
    axes = torch.einsum("bij,njk->bnik", view, axes)
    shadow = (axes[:, :, :2] - slope[..., None] * axes[:, :, 2:]) * (focal / depth.clamp_min(NEAR))[..., None, None]
    x, y = shadow.unbind(2)
    variance = torch.stack([(x * x).sum(-1) + LOW_PASS, (x * y).sum(-1), (y * y).sum(-1) + LOW_PASS], -1)
    return slope * focal + size / 2, variance, depth


def rotation_matrices(quaternion: Tensor) -> Tensor:
    """Unit quaternions float [N,4], w first, to rotations float [N,3,3]."""
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def inverse(variance: Tensor) -> Tensor:
    """Inverses of symmetric 2x2 matrices float [N,3] (xx, xy, yy), in the same order."""
    xx, xy, yy = variance.unbind(-1)
    determinant = xx * yy - xy * xy
    return torch.stack([yy, -xy, xx], -1) / determinant[:, None]


def nothing(packed: Tensor) -> Tensor:
    """One row that draws nothing, to fill up lists with: its log-opacity is very low."""
    row = torch.zeros_like(packed[:1])
    row[:, 5] = -100.0
    return row


def touching(low: Tensor, high: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Which Gaussians touch each of the T = B*side*side tiles (view by view, row by row).

    Args:
        low, high: float [B,N,2], corners of the Gaussians' boxes in tiles, front to back.
        side: tiles per side of a view.

    Returns:
        rows of the flattened Gaussians, int64, tile after tile and front to back in each; and how many of them
        each tile has, int64 [T].
    """
    batch, count = low.shape[:2]
    parts, counts = [], []
    for tiles in torch.arange(batch * side**2, device=low.device).split(TILES_AT_A_TIME):
        view, corner = tiles // side**2, corners(tiles, side)[:, None]
        inside = ((low[view] < corner + 1) & (high[view] > corner)).all(-1)
        row, gaussian = inside.nonzero(as_tuple=True)
        parts.append(gaussian + view[row] * count)
        counts.append(inside.sum(1))
    return torch.cat(parts), torch.cat(counts)


def corners(tiles: Tensor, side: int) -> Tensor:
    """Column and row of tiles int64 [T] in their views, int64 [T,2]."""
    place = tiles % side**2
    return torch.stack([place % side, place // side], -1)


def draw(packed: Tensor, which: Tensor, counts: Tensor, side: int) -> Tensor:
    """Composites all tiles, those with similarly long lists together, so that little is filled up.

    Args:
        packed: float [B*N+1,6+C]: centre, inverse variance (xx, xy, yy), log-opacity, colour; the last row draws
            nothing.
        which, counts: from :func:`touching`.
        side: tiles per side of a view.

    Returns:
        colour times alpha, and alpha: float [T,TILE*TILE,C+1].
    """
    first = counts.cumsum(0) - counts
    order = counts.argsort(descending=True, stable=True)
    lengths = counts[order].tolist()
    which = torch.cat([which, which.new_tensor([len(packed) - 1])])
    empty = packed.new_zeros(len(counts), TILE**2, packed.shape[1] - 5)
    parts, drawn, start = [], [], 0
    while start < len(lengths) and lengths[start] > 0:
        longest, end = lengths[start], start + 1
        room = max(ELEMENTS_AT_A_TIME // (longest * TILE**2), 1)
        while end < len(lengths) and end - start < room and lengths[end] > SIMILAR * longest:
            end += 1
        tiles = order[start:end]
        steps = torch.arange(longest, device=order.device)
        places = torch.where(steps < counts[tiles, None], first[tiles, None] + steps, len(which) - 1)
        parts.append(composite(packed, which[places], corners(tiles, side)))
        drawn.append(tiles)
        start = end
    return empty.index_copy(0, torch.cat(drawn), torch.cat(parts)) if parts else empty


def composite(packed: Tensor, lists: Tensor, corner: Tensor) -> Tensor:
    """All pixels of T tiles, front to back: float [T,TILE*TILE,C+1].

    Args:
        packed: as for :func:`draw`.
        lists: int64 [T,K], rows of it.
        corner: int64 [T,2] from :func:`corners`.
    """
    drawn = packed.index_select(0, lists.flatten()).unflatten(0, lists.shape)
    x, y = (drawn[..., :2] - (corner[:, None] + 0.5) * TILE).unbind(-1)
    xx, xy, yy, log_opacity = drawn[..., 2:6].unbind(-1)
    constant = log_opacity - 0.5 * (xx * x * x + yy * y * y) - xy * x * y
    powers = torch.stack([-0.5 * xx, -xy, -0.5 * yy, xx * x + xy * y, yy * y + xy * x, constant], 1)
    alpha = (monomials(packed) @ powers).exp().clamp_max(MAX_ALPHA)
    alpha = alpha * (alpha >= MIN_ALPHA)
    through = torch.log1p(-alpha).cumsum(-1).exp()
    weights = torch.cat([1 - through[..., :1], through[..., :-1] - through[..., 1:]], -1)
    return torch.cat([weights @ drawn[..., 6:], 1 - through[..., -1:]], -1)


def monomials(like: Tensor) -> Tensor:
    """x*x, x*y, y*y, x, y, 1 at a tile's pixel centres, seen from its middle: float [TILE*TILE,6]."""
    axis = torch.arange(TILE, device=like.device, dtype=like.dtype) + 0.5 - TILE / 2
    y, x = (v.flatten() for v in torch.meshgrid(axis, axis, indexing="ij"))
    return torch.stack([x * x, x * y, y * y, x, y, torch.ones_like(x)], -1)
