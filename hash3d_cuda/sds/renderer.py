"""What a step looks at: its views of the scene, and the given picture's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.sds.guidance import resized
from hash3d_cuda.sds.sampler import StepViews
from hash3d_cuda.sds.settings import GenerateSettings


class Renderer:
    """Draws the views of a step.

    Args:
        render: the scene's ``render``, that of its latents where it holds some; it may be compiled.
        prior, subject, settings: of the run.
        device: where the scene is.
    """

    def __init__(
        self,
        render: Callable[..., Any],
        prior: Prior,
        subject: Subject,
        settings: GenerateSettings,
        device: torch.device,
    ) -> None:
        self._render, self._prior, self._subject, self._device = render, prior, subject, device
        self._latent = settings.latent
        self._size = settings.render_size or prior.image_size
        # Once, for every step would wait for the copy.
        pictures = (subject.image, subject.alpha)
        self._picture = [None if v is None else resized(v.to(device)[None], self._size)[0] for v in pictures]

    def draw(
        self, views: StepViews, shading: str | None = None, light: list[list[float]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images [B,3,S,S] and alphas [B,1,S,S] of the step's views; a picture's own pose comes last.

        Args:
            views: those of this rank.
            shading, light: of the whole step, see :meth:`hash3d_cuda.sds.sampler.ViewSampler.shading`.
        """
        poses = [views.elevation, views.azimuth, views.radius]
        if self._subject.image is not None:
            poses = [[*values, own] for values, own in zip(poses, self._own_pose(), strict=True)]
        elevation, azimuth, radius = (torch.tensor(p).to(self._device, non_blocking=True) for p in poses)
        if self._latent:
            latents = self._render(elevation, azimuth, radius, self._prior.latent_shape[1])
            return latents.image, latents.alpha
        if shading is None or light is None:
            result = self._render(elevation, azimuth, radius, self._size)
            return result.image, result.alpha
        count = len(views.azimuth)
        light = light[views.first : views.first + count]
        ways = torch.tensor(light, dtype=torch.float32).to(self._device, non_blocking=True)
        result = self._render(elevation[:count], azimuth[:count], radius[:count], self._size, shading, ways)
        if count < len(elevation):  # the picture's own view keeps its colours
            own = self._render(elevation[count:], azimuth[count:], radius[count:], self._size)
            return torch.cat([result.image, own.image]), torch.cat([result.alpha, own.alpha])
        return result.image, result.alpha

    def reference_loss(self, image: Tensor, alpha: Tensor) -> Tensor:
        """How far the view from the picture's own pose, [3,S,S] and [1,S,S], is from the picture."""
        picture, outline = self._picture
        loss = (image - picture).square().mean()
        if outline is not None:
            loss = loss + (alpha - outline).square().mean()
        return loss

    def _own_pose(self) -> tuple[float, float, float]:
        middle = sum(self._prior.radius_range) / 2
        pose = (self._subject.elevation, self._subject.azimuth, self._subject.radius)
        return tuple(v if v is not None else d for v, d in zip(pose, (0.0, 0.0, middle), strict=True))  # type: ignore
