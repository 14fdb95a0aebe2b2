"""Which triangle each pixel sees: a z-buffer in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from hash3d_cuda.sds.scenes.splat import NEAR

PAIRS_AT_A_TIME = 1 << 22  # of triangles and pixels


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
