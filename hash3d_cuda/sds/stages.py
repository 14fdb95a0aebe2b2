"""The scene that a stage starts from: a new one, or what the stage before left, as it is or as a mesh."""

from __future__ import annotations

from typing import Any

import torch

from hash3d_cuda.prior.base import Prior
from hash3d_cuda.sds.settings import GenerateSettings


def stage_scene(prior: Prior, settings: GenerateSettings, previous: Any = None) -> Any:
    """The scene of a stage at its start.

    Args:
        prior: its latents are what a latent scene holds.
        settings: of this stage.
        previous: the scene of the stage before, or None in the first.

    Raises:
        ValueError: the stage before left nothing solid enough for a mesh.
    """
    device = torch.device(settings.device)
    if settings.latent:
        from hash3d_cuda.sds.scenes.latent import LatentScene

        return LatentScene(prior, settings.scene_size, settings.seed, device)
    if previous is None:
        from hash3d_cuda.sds.scenes import make_scene

        kind = "voxels" if settings.scene == "mesh" else settings.scene
        densify = {"densify": "auto"} if kind == "gaussians" else {}
        size = None if settings.scene == "mesh" else settings.scene_size
        scene = make_scene(kind, size=size, seed=settings.seed, device=device, **densify)
        return to_mesh(scene, settings, device) if settings.scene == "mesh" else scene
    if settings.scene != "mesh" or is_mesh(previous):
        return previous
    return to_mesh(previous, settings, device)


def to_mesh(scene: Any, settings: GenerateSettings, device: torch.device) -> Any:
    """The surface of a scene; raises ValueError when it has none."""
    from hash3d_cuda.sds.scenes.mesh import MeshScene

    size = {} if settings.scene_size is None else {"resolution": settings.scene_size}
    return MeshScene.from_scene(scene, **size, device=device)


def is_mesh(scene: Any) -> bool:
    """Whether a scene is a mesh already."""
    return type(scene).__name__ == "MeshScene"
