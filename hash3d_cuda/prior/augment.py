"""What happens to a picture between the renderer and a user: batched, in torch, cheap enough for one thread.

Everything takes and returns float [B,3,S,S] in 0..1. No mirroring: a mirrored view is a view from another azimuth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SCALES = (0.55, 1.10)
SHIFT = 0.12
"""Largest displacement of an object, as a share of the picture; smaller objects move farther."""


def uniform(generator: torch.Generator, batch: int, low: float, high: float) -> Tensor:
    """float [B,1,1,1], even between ``low`` and ``high``."""
    return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)


def chosen(generator: torch.Generator, batch: int, share: float) -> Tensor:
    """bool [B,1,1,1], true with probability ``share``."""
    return torch.rand(batch, 1, 1, 1, generator=generator) < share


def move(images: Tensor, generator: torch.Generator, tilt: float = 4.0, stretch: float = 0.0) -> Tensor:
    """Scale to 55-110 %, shift off centre, tilt by a few degrees, stretch one axis.

    What comes in at the borders is 0, so give it darkness (1 - picture) for white.
    """
    batch = len(images)
    scale = uniform(generator, batch, *SCALES).flatten()
    angle = uniform(generator, batch, -math.radians(tilt), math.radians(tilt)).flatten()
    wide = uniform(generator, batch, -stretch, stretch).flatten().exp()
    reach = 2 * SHIFT + (1 - scale).clamp(min=0) * 0.5
    shift = (2 * torch.rand(batch, 2, generator=generator) - 1) * reach[:, None]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = torch.stack([cos * wide, -sin, sin, cos / wide], -1).view(batch, 2, 2)
    grid = F.affine_grid(torch.cat([rows, -rows @ shift[:, :, None]], -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def hue_matrix(degrees: Tensor) -> Tensor:
    """float [B,3,3] that turn colours about the grey axis by ``degrees`` float [B]."""
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    third, root = (1 - cos) / 3, sin / math.sqrt(3)
    rows = [cos + third, third - root, third + root, third + root, cos + third, third - root]
    rows += [third - root, third + root, cos + third]
    return torch.stack(rows, -1).view(-1, 3, 3)


def mix_colours(matrix: Tensor, images: Tensor) -> Tensor:
    """[B,3,3] applied to the colours of [B,3,S,S]."""
    return torch.bmm(matrix, images.flatten(2)).view_as(images)


def recolour(darkness: Tensor, generator: torch.Generator, hue: float = 8.0) -> Tensor:
    """Darkness to pictures with small changes of brightness, contrast, saturation and hue; white stays nearly white."""
    batch = len(darkness)
    saturation, strength = uniform(generator, batch, 0.8, 1.2), uniform(generator, batch, 0.75, 1.18)
    grey = torch.full((1, 3, 3), 1 / 3)
    matrix = hue_matrix(uniform(generator, batch, -hue, hue).flatten())
    matrix = (grey + saturation[:, 0] * (matrix - grey)) * strength[:, 0]
    return (uniform(generator, batch, 0.97, 1.02) - mix_colours(matrix, darkness)).clamp_(0, 1)


def object_mask(images: Tensor) -> Tensor:
    """float [B,1,S,S]: where something stands before the white background, small gaps closed."""
    mask = ((1 - images.amin(1, keepdim=True)) * 10).clamp(0, 1)
    for sign in (1, -1):  # dilate, then erode, by 5x5 in two strokes
        mask = sign * F.max_pool2d(F.max_pool2d(sign * mask, (5, 1), 1, (2, 0)), (1, 5), 1, (0, 2))
    return mask


def grey_background(images: Tensor, generator: torch.Generator) -> Tensor:
    """A light, greyish background, a little brighter above than below or the other way round."""
    batch, size = len(images), images.shape[-1]
    level = uniform(generator, batch, 0.72, 1.0) + 0.04 * torch.randn(batch, 3, 1, 1, generator=generator)
    slope = torch.linspace(-0.5, 0.5, size).view(1, 1, size, 1) * uniform(generator, batch, -0.15, 0.15)
    background = (level + slope).clamp(0, 1)
    return background + (images - background) * object_mask(images)


def soften(images: Tensor, generator: torch.Generator) -> Tensor:
    """Loss of detail: a 3x3 blur, or half the resolution and back."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    halved = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear", align_corners=False)
    return torch.lerp(images, torch.where(chosen(generator, len(images), 0.5), blurred, halved), 0.8)


def compress(images: Tensor, generator: torch.Generator) -> Tensor:
    """JPEG's block noise: 8x8 cosine coefficients rounded, high frequencies more coarsely."""
    batch, channels, size, _ = images.shape
    n = torch.arange(8.0)
    basis = torch.cos(math.pi / 8 * (n[None] + 0.5) * n[:, None]) * math.sqrt(2 / 8)
    basis[0] /= math.sqrt(2)
    blocks = images.view(batch, channels, size // 8, 8, size // 8, 8).transpose(3, 4)
    step = uniform(generator, batch, 0.01, 0.05)[..., None, None] * (1 + n[:, None] + n)
    coefficients = torch.round(basis @ blocks @ basis.T / step) * step
    return (basis.T @ coefficients @ basis).transpose(3, 4).reshape(images.shape).clamp(0, 1)


def grain(images: Tensor, generator: torch.Generator) -> Tensor:
    """A little sensor noise."""
    noise = torch.randn(images.shape, generator=generator)
    return (images + noise * uniform(generator, len(images), 0, 0.03)).clamp(0, 1)


def augment(images: Tensor, generator: torch.Generator, stretch: float = 0.0) -> Tensor:
    """All of it, as a user's picture might have been through; each later accident befalls some pictures only."""
    images = recolour(move(1 - images, generator, stretch=stretch), generator)
    for change, share in ((grey_background, 0.2), (soften, 0.35), (compress, 0.25), (grain, 0.25)):
        hit = chosen(generator, len(images), share).flatten().nonzero().flatten()
        if len(hit):
            images[hit] = change(images[hit], generator)
    return images


def clouds(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Coloured noise at many scales, like an out-of-focus photograph: float [B,3,S,S]."""
    total = torch.zeros(batch, 3, size, size)
    for cells in (2, 4, 8, 16, 32):
        noise = torch.randn(batch, 3, cells, cells, generator=generator)
        weight = uniform(generator, batch, 0, 1) * cells**-0.3
        total += weight * F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    total = total / total.std((1, 2, 3), keepdim=True)
    return (uniform(generator, batch, 0.2, 0.8) + 0.22 * total).clamp(0, 1)


def plain(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Flat colours and straight gradients, a third of them with noise, a third with rectangles: float [B,3,S,S]."""
    ends = torch.rand(2, batch, 3, 1, 1, generator=generator)
    angle = uniform(generator, batch, 0, 2 * math.pi)
    line = torch.linspace(-0.5, 0.5, size)
    ramp = (0.5 + angle.cos() * line.view(1, 1, 1, -1) + angle.sin() * line.view(1, 1, -1, 1)).clamp(0, 1)
    images = torch.lerp(ends[0], torch.where(chosen(generator, batch, 0.5), ends[1], ends[0]), ramp)
    corner = torch.rand(4, batch, generator=generator).view(2, 2, batch).sort(0).values
    inside = [(line + 0.5 >= corner[0, k, :, None]) & (line + 0.5 <= corner[1, k, :, None]) for k in range(2)]
    box = inside[0][:, None, :, None] & inside[1][:, None, None, :] & chosen(generator, batch, 0.33)
    images = torch.where(box, torch.rand(batch, 3, 1, 1, generator=generator), images)
    noise = torch.randn(images.shape, generator=generator) * uniform(generator, batch, 0.02, 0.5)
    return (images + torch.where(chosen(generator, batch, 0.33), noise, 0.0)).clamp(0, 1)


def spoil(images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Objects no longer themselves: wrong colours, wrong surface, on their head, or cut and mixed with another.

    Where the change hardly shows (a turned ball, a white object in another hue), the two pictures are mixed instead.
    """
    batch, size = len(images), images.shape[-1]
    mask = object_mask(images)
    hue = mix_colours(hue_matrix(uniform(generator, batch, 80, 280).flatten()), images).clamp(0, 1)
    inverted = images * (1 - mask) + (1 - images) * mask
    surface = images * (1 - mask) + clouds(batch, size, generator) * mask
    rows = torch.arange(size).view(1, 1, -1, 1) < uniform(generator, batch, 0.35, 0.65) * size
    rows = torch.where(chosen(generator, batch, 0.5), rows, rows.transpose(2, 3))
    halves = torch.where(rows, images, others)
    kinds = torch.stack([hue, inverted, surface, images.flip(2), halves, torch.minimum(images, others)])
    kind = torch.randint(len(kinds), (batch,), generator=generator)
    result = kinds[kind, torch.arange(batch)]
    change = (result - images).abs().mean((1, 2, 3)) / (mask.mean((1, 2, 3)) + 1e-3)
    faint = (change < 0.15).view(-1, 1, 1, 1)
    return torch.where(faint, torch.minimum(images, others.flip(2)), result)
