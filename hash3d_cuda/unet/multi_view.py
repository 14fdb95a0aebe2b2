"""Multi-view models (MVDream, ImageDream): several frames are one item, and poses come as camera matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice, check_int, fail


@dataclass(frozen=True)
class FrameRows:
    """A row order for ``Hash3DConfig.rows``: group by group, item by item, frame by frame, as ``cat([x] * groups)`` of
    rows ``[item, frame]`` gives."""

    frames: int

    def __call__(self, batch: int, rows_per_item: int) -> list[list[int]]:
        groups = range(rows_per_item // self.frames)
        return [
            [(group * batch + item) * self.frames + frame for group in groups for frame in range(self.frames)]
            for item in range(batch)
        ]


def multi_view(frames: int, guidance: int = 2) -> dict[str, Any]:
    """The options of :class:`hash3d_cuda.Hash3DConfig` for a model whose frames attend to each other:
    ``Hash3DConfig(**multi_view(4), eta=...)``.

    One item is a set of views seen together, with one pose, that of its first frame; so its latent is that frame's too.

    Args:
        frames: the model's ``num_frames``: 4 for MVDream; 5 for ImageDream, whose last one is the picture.
        guidance: rows per frame: 2 for ``[negative, positive]`` (classifier-free guidance).
    """
    frames, guidance = check_int("frames", frames, 1), check_int("guidance", guidance, 1)
    return {"groups": guidance * frames, "rows": FrameRows(frames)}


def pose_from_camera(matrix: Any, up: str = "z") -> tuple[Tensor, Tensor, Tensor]:
    """The pose of a camera that looks at the origin, from its camera-to-world matrix.

    Only the camera's position counts, so OpenGL's and OpenCV's axes are alike. A matrix whose translation was
    normalised (MVDream's ``normalize_camera``) gives radius 1 for every distance.

    Args:
        matrix: float ``[..., 16]``, ``[..., 4, 4]`` or ``[..., 3, 4]``: a tensor, an array or nested lists. Of
            multi-view frames, pass the first one's. One on a GPU gives poses there, which the cache copies once.
        up: the world's upward axis: ``"z"`` (threestudio, MVDream, :mod:`hash3d_cuda.cameras`) or ``"y"``
            (DreamGaussian, OpenGL).

    Returns:
        elevation and azimuth in degrees (azimuth in [0, 360), from +x towards +y; with ``up="y"`` from +z towards +x),
        and radius, each float32 ``[...]``.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check_choice("up", up, ("z", "y"))
    expected, remedy = "[..., 16], [..., 4, 4] or [..., 3, 4]", "pass camera-to-world matrices"
    try:
        value = torch.as_tensor(matrix, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):  # torch's own words do not name the argument
        fail(TypeError, "matrix", f"numbers {expected}", matrix, remedy)
    if value.dim() > 0 and value.shape[-1] == 16:
        value = value.unflatten(-1, (4, 4))
    if value.dim() < 2 or value.shape[-2:] not in ((4, 4), (3, 4)):
        fail(ValueError, "matrix", expected, value, remedy)
    x, y, z = value[..., :3, 3].unbind(-1)
    if up == "y":
        x, y, z = z, x, y
    radius = torch.stack([x, y, z], -1).norm(dim=-1)
    elevation = torch.rad2deg(torch.atan2(z, torch.hypot(x, y)))
    azimuth = torch.rad2deg(torch.atan2(y, x)) % 360
    return elevation, torch.where(azimuth >= 360, 0.0, azimuth), radius
