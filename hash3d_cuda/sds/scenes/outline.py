"""Where the outline of a mesh lies between two pixels' centres."""

from __future__ import annotations

import torch
from torch import Tensor


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
