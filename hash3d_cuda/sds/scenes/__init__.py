"""3D scenes that score distillation pulls into shape."""

from __future__ import annotations

from pathlib import Path

import torch

from hash3d_cuda.checks import check_choice, check_device, check_int, fail
from hash3d_cuda.sds.scenes.base import BOUND, Rendered, Scene
from hash3d_cuda.sds.scenes.points import Points, load_points, sphere_points
from hash3d_cuda.sds.scenes.shading import SHADINGS

KINDS = ("voxels", "gaussians")
DEFAULT_SIZES = {"voxels": 48, "gaussians": 2500}

__all__ = [
    "BOUND", "DEFAULT_SIZES", "KINDS", "SHADINGS", "Points", "Rendered", "Scene", "load_points", "make_scene",
    "sphere_points",
]  # fmt: skip


def make_scene(
    kind: str,
    *,
    size: int | None = None,
    seed: int,
    device: str | torch.device,
    channels: int = 3,
    latent: bool = False,
    points: Points | str | Path | None = None,
    densify: str = "move",
) -> Scene:
    """A scene at its start: a soft ball in the middle, or the given points.

    A mesh has no start of its own: ``MeshScene.from_scene(scene)`` makes one from a trained scene, and
    ``MeshScene(resolution)`` is there to take a saved one's ``state_dict``; both lie in
    :mod:`hash3d_cuda.sds.scenes.mesh`.

    Args:
        kind: ``"voxels"``, a radiance grid, or ``"gaussians"``.
        size: grid points per side (4 to 512), or number of Gaussians; None takes ``DEFAULT_SIZES``.
        seed: everything random follows from it.
        device: where the parameters live.
        channels: of the colours, ``prior.latent_shape[0]`` for latents; 3 unless ``latent``.
        latent: views are the prior's latents (Latent-NeRF): unbounded, over a background that is learnt.
        points: for Gaussians: where they start and in what colours, or a file of a mesh or points; see
            :mod:`hash3d_cuda.sds.scenes.points`. None: spread in a ball, as DreamGaussian does.
        densify: for Gaussians: ``"move"``, their number is fixed and faint ones are moved; ``"gsplat"``,
            ``gsplat.DefaultStrategy``, on CUDA where gsplat is installed; ``"auto"``, that where it can be had.

    Raises:
        ValueError, TypeError: the message names the argument.
        OSError: the file of ``points`` cannot be read.
    """
    if kind == "mesh":
        remedy = "make a mesh by MeshScene.from_scene(scene), or MeshScene(resolution) and load_state_dict"
        fail(ValueError, "kind", "'voxels' or 'gaussians'", kind, remedy)
    kind = check_choice("kind", kind, KINDS)
    where = check_device("device", device)
    seed = check_int("seed", seed, 0)
    channels = check_int("channels", channels, 1, 64)
    if channels != 3 and not latent:
        fail(ValueError, "channels", "3 for a scene in colours", channels, "pass latent=True for a prior's latents")
    if size is None:
        size = DEFAULT_SIZES[kind]
    if kind == "voxels":
        from hash3d_cuda.sds.scenes.voxels import VoxelScene

        if points is not None:
            fail(ValueError, "points", "None for voxels", points, 'pass kind="gaussians" to start from points')
        return VoxelScene(check_int("size", size, 4, 512), seed, where, channels, latent)
    from hash3d_cuda.sds.scenes.gaussians import GaussianScene

    size = check_int("size", size, 1, 10**7)
    if isinstance(points, (str, Path)):
        points = load_points(points, size, seed)
    return GaussianScene(size, seed, where, channels, latent, points, densify)
