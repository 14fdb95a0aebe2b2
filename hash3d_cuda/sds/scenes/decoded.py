"""Pictures of latent scenes: for turntables, exports and the step to a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hash3d_cuda.checks import check_int, fail
from hash3d_cuda.sds.scenes.base import Rendered, Scene

SLICES_AT_A_TIME = 4


class DecodedScene(Scene):
    """A latent scene seen through a decoder; it shares the scene's parameters.

    Exports ask for the colours of points, which latents have only as parts of a picture: so the slices of the colour
    grid at equal z are decoded as pictures, and each brought back to the grid's size. With a KL decoder this costs
    R pictures; a linear decoder (Latent-NeRF's four-by-three matrix) is quicker.

    Args:
        scene: renders latents float [B,C,h,w].
        decode: latents to pictures float [B,3,H,W] in 0..1, as ``prior.decode``; differentiable where gradients are
            to pass.
        scale: pixels per latent and side: ``prior.image_size // prior.latent_shape[1]``.
    """

    def __init__(self, scene: Scene, decode: Callable[[Tensor], Tensor], scale: int):
        super().__init__()
        if not scene.latent:
            fail(ValueError, "scene", "a latent scene", type(scene).__name__, "a scene in colours needs no decoding")
        self.scene, self.decode = scene, decode
        self.scale = check_int("scale", scale, 1, 64)

    def render(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        radius: Tensor,
        size: int,
        shading: str | None = None,
        light: Tensor | None = None,
    ) -> Rendered:
        """See :meth:`Scene.render`; latents of ``size / scale`` pixels a side are drawn, and the picture made to fit
        where ``scale`` does not divide ``size``."""
        view = self.scene.render(elevation, azimuth, radius, -(-size // self.scale), shading, light)
        return Rendered(resize(self.decode(view.image), size).clamp(0, 1), resize(view.alpha, size))

    def regularisation(self) -> Tensor:
        """See :meth:`Scene.regularisation`."""
        return self.scene.regularisation()

    def parameter_groups(self, lr_scale: float) -> list[dict[str, Any]]:
        """See :meth:`Scene.parameter_groups`."""
        return self.scene.parameter_groups(lr_scale)

    def on_step(self, step: int, steps: int) -> bool:
        """See :meth:`Scene.on_step`."""
        return self.scene.on_step(step, steps)

    @torch.no_grad()
    def occupancy_grid(self, resolution: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Scene.occupancy_grid`."""
        occupancy, latents = self.scene.occupancy_grid(resolution)
        slices = latents.permute(2, 3, 0, 1).split(SLICES_AT_A_TIME)  # pictures over x and y, one per z
        colour = torch.cat([resize(self.decode(some), resolution) for some in slices])
        return occupancy, colour.permute(2, 3, 0, 1).clamp(0, 1)


def resize(views: Tensor, size: int) -> Tensor:
    """float [B,C,h,w] to float [B,C,size,size]."""
    if views.shape[-2:] == (size, size):
        return views
    return F.interpolate(views, (size, size), mode="bilinear", align_corners=False, antialias=True)
