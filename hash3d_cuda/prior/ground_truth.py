"""True views of the vocabulary's objects, bundled with the package, to score generated objects against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hash3d_cuda.prior.vocabulary import OBJECTS

ASSETS = Path(__file__).resolve().parent.parent / "assets"
VIEW_SIZE = 64
EVALUATION_POSES = np.array([(30.0, 22.5 * k, 2.0) for k in range(16)])
"""Elevation and azimuth in degrees, radius: [16,3]. No training view lies within 2 degrees of one."""
INPUT_POSE = (20.0, 30.0, 2.0)
"""Elevation, azimuth, radius of the example input pictures."""


def ground_truth_names() -> list[str]:
    """Names with bundled evaluation views, in the vocabulary's order."""
    return [thing.name for thing in OBJECTS if (ASSETS / "views" / f"{thing.slug}.png").is_file()]


def ground_truth_views(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 16 evaluation views of an object, on white.

    Returns:
        images float32 [16,3,64,64] in 0..1, elevations [16] and azimuths [16] in degrees, radii [16].

    Raises:
        ValueError: no views of ``name`` are bundled.
    """
    from PIL import Image

    path = ASSETS / "views" / f"{name.strip().lower().replace(' ', '-')}.png"
    if not path.is_file():
        raise ValueError(f"name: no bundled views of {name!r}; expected one of: {', '.join(ground_truth_names())}")
    strip = np.asarray(Image.open(path).convert("RGB"))
    views = strip.reshape(VIEW_SIZE, len(EVALUATION_POSES), VIEW_SIZE, 3).transpose(1, 3, 0, 2)
    poses = torch.from_numpy(EVALUATION_POSES).float()
    return torch.from_numpy(views.copy()).float() / 255, poses[:, 0], poses[:, 1], poses[:, 2]


def example_inputs() -> dict[str, Path]:
    """Bundled input pictures (RGBA PNG, taken at ``INPUT_POSE``) by object name."""
    paths = {thing.name: ASSETS / "inputs" / f"{thing.slug}.png" for thing in OBJECTS}
    return {name: path for name, path in paths.items() if path.is_file()}
