"""3D scenes that score distillation pulls into shape."""

from __future__ import annotations

import torch

from hash3d_cuda.checks import check_choice, check_device, check_int
from hash3d_cuda.sds.scenes.base import BOUND, Rendered, Scene

KINDS = ("voxels", "gaussians")
DEFAULT_SIZES = {"voxels": 48, "gaussians": 2500}

__all__ = ["BOUND", "DEFAULT_SIZES", "KINDS", "Rendered", "Scene", "make_scene"]


def make_scene(kind: str, *, size: int | None = None, seed: int, device: str | torch.device) -> Scene:
    """A scene at its start: a soft ball in the middle.

    Args:
        kind: ``"voxels"``, a radiance grid, or ``"gaussians"``.
        size: grid points per side (4 to 512), or number of Gaussians; None takes ``DEFAULT_SIZES``.
        seed: everything random follows from it.
        device: where the parameters live.

    Raises:
        ValueError, TypeError: the message names the argument.
    """
    kind = check_choice("kind", kind, KINDS)
    where = check_device("device", device)
    seed = check_int("seed", seed, 0)
    if size is None:
        size = DEFAULT_SIZES[kind]
    if kind == "voxels":
        from hash3d_cuda.sds.scenes.voxels import VoxelScene

        return VoxelScene(check_int("size", size, 4, 512), seed, where)
    from hash3d_cuda.sds.scenes.gaussians import GaussianScene

    return GaussianScene(check_int("size", size, 1, 10**7), seed, where)
