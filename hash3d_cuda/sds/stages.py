"""The scene that a stage starts from: a new one, or what the stage before left, as it is or as a mesh."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from hash3d_cuda.prior.base import Prior
from hash3d_cuda.sds.scenes import make_scene
from hash3d_cuda.sds.scenes.decoded import DecodedScene
from hash3d_cuda.sds.scenes.mesh import DEFAULT_RESOLUTION, LEVELS, MeshScene
from hash3d_cuda.sds.settings import GenerateSettings


def stage_scene(prior: Prior, settings: GenerateSettings, previous: Any = None, together: bool = False) -> Any:
    """The scene of a stage at its start.

    Args:
        prior: its latents are what a latent scene holds.
        settings: of this stage.
        previous: the scene of the stage before, or None in the first.
        together: several ranks make it. gsplat's densification looks at gradients of one rank's own views, so ranks
            would end with different scenes; ours looks at the scene alone.

    Raises:
        ValueError: the stage before left nothing at all to make a mesh of.
    """
    device = torch.device(settings.device)
    if settings.scene == "mesh":
        return mesh_scene(settings, previous, device)
    if previous is not None:
        return previous
    if settings.latent:
        return latent_scene(prior, settings, device)
    densify = {"densify": "move" if together else "auto"} if settings.scene == "gaussians" else {}
    return make_scene(settings.scene, size=settings.scene_size, seed=settings.seed, device=device, **densify)


def mesh_scene(settings: GenerateSettings, previous: Any, device: torch.device) -> MeshScene:
    """A ball, the surface of the stage before, or its mesh with its shape free or fixed."""
    options: dict[str, Any] = {"device": device, "geometry": settings.geometry}
    if settings.scene_size is not None:
        options["resolution"] = settings.scene_size
    if previous is None:
        return MeshScene(**options)
    if not isinstance(previous, MeshScene):
        return MeshScene.from_scene(previous, **options, level=surface_level(previous, settings.scene_size))
    mesh = MeshScene(**{**options, "resolution": previous.resolution})
    mesh.load_state_dict(previous.state_dict())
    return mesh


def surface_level(scene: Any, resolution: int | None) -> float | None:
    """The occupancy at which a mesh of a scene starts: None where the mesh finds one itself, else, where the scene is
    nowhere solid enough for that, half of its highest.

    threestudio's two-stage systems choose the level by what is there, too.
    """
    highest = float(scene.occupancy_grid(resolution or DEFAULT_RESOLUTION)[0].max())
    if highest > min(LEVELS) or highest == 0.0:
        return None
    text = f"the stage before left nothing solid (highest occupancy {highest:.2g}); half of that counts as the surface"
    warnings.warn(text, RuntimeWarning, stacklevel=2)
    return highest / 2


def latent_scene(prior: Prior, settings: GenerateSettings, device: torch.device) -> DecodedScene:
    """A radiance grid of the prior's latents over those of white, seen through the prior's decoder."""
    channels, side, _ = prior.latent_shape
    scene = make_scene(
        "voxels", size=settings.scene_size, seed=settings.seed, device=device, channels=channels, latent=True
    )
    with torch.no_grad():
        white = prior.encode(torch.ones(1, 3, prior.image_size, prior.image_size, device=device))
        scene.background.copy_(white[0].mean((-2, -1)))
    return DecodedScene(scene, prior.decode, prior.image_size // side)
