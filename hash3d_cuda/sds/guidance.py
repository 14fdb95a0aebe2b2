"""Score distillation: the gradient that pulls rendered views towards what the prior expects (section 2 of the
paper).

With x_t = sqrt(abar) z + sqrt(1 - abar) eps, the classic gradient w(t) (eps_hat - eps) equals
w(t) sqrt(abar / (1 - abar)) (z - z_hat), where z_hat is the predicted clean latent. So every kind of
prediction is first turned into z_hat, and w(t) says how much each noise level counts.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.sds.sampler import StepViews
from hash3d_cuda.sds.timing import TimeSplit


def step_weight(weighting: str, abar: float) -> float:
    """Weight of (z - z_hat) at one noise level.

    ``"x0"``: 1, every level counts alike in the picture; ``"dreamfusion"``: w(t) = 1 - abar on the noise
        residual;
    ``"uniform"``: w(t) = 1 on the noise residual.
    """
    if weighting == "x0":
        return 1.0
    ratio = math.sqrt(abar / max(1 - abar, 1e-8))
    return ratio * (1 - abar) if weighting == "dreamfusion" else ratio


def predicted_clean(prediction_type: str, output: Tensor, noisy: Tensor, abar: Tensor) -> Tensor:
    """z_hat from the U-Net's output.

    Args:
        prediction_type: ``"sample"``, ``"epsilon"`` or ``"v_prediction"``.
        output, noisy: float [B,C,h,w].
        abar: float [B,1,1,1], the cumulative alphas.
    """
    if prediction_type == "sample":
        return output
    if prediction_type == "epsilon":
        return (noisy - (1 - abar).sqrt() * output) / abar.sqrt()
    if prediction_type == "v_prediction":
        return abar.sqrt() * noisy - (1 - abar).sqrt() * output
    raise ValueError(f"prediction_type: expected 'sample', 'epsilon' or 'v_prediction', got {prediction_type!r}")


class Guidance:
    """Asks the prior, through the cache when there is one, what the rendered views should look like.

    Args:
        prior: the prior.
        subject: what it is asked for.
        cache: what ``apply_hash3d`` returned, or None.
        guidance_scale, weighting: as in the settings.
    """

    forwards = 1  # of each view through the U-Net in the last step
    time: TimeSplit | None = None  # where encoding and decoding are counted

    def __init__(self, prior: Prior, subject: Subject, cache: Any, guidance_scale: float, weighting: str):
        self.prior, self.subject, self.cache = prior, subject, cache
        self.encode, self.unet = prior.encode, prior.unet  # what is called; a run may put compiled ones here
        self.guidance_scale, self.weighting = guidance_scale, weighting
        self.abar = prior.alphas_cumprod.detach().double().cpu().tolist()
        # Beside another prior's on the same U-Net, a name and a picture of the same thing are two conditions.
        self.condition = (subject.label, "name" if subject.image is None else "picture")

    def see(self, images: Tensor) -> Tensor:
        """Rendered images float [B,3,R,R] to latents [B,*latent_shape]; differentiable."""
        return self._encode(resized(images, self.prior.image_size))

    def _encode(self, images: Tensor) -> Tensor:
        if self.time is None:
            return self.encode(images)
        with self.time.measure("encode"):
            images = images.view_as(images)  # a tensor of its own, whose gradient comes from the encoder alone
            latents = self.encode(images)
        self.time.watch_gradient(images, latents, "encode")
        return latents

    def _decode(self, latents: Tensor) -> Tensor:
        with contextlib.nullcontext() if self.time is None else self.time.measure("decode"):
            return self.prior.decode(latents)

    @torch.no_grad()
    def target(self, latents: Tensor, views: StepViews, generator: torch.Generator) -> Tensor:
        """The guided z_hat for latents float [B,*latent_shape] of ``views``; noise comes from
        ``generator``."""
        noise = step_noise(latents, views, generator)
        abar = self._per_view([self.abar[t] for t in views.timestep], latents)
        return self._guided(abar.sqrt() * latents + (1 - abar).sqrt() * noise, abar, views)

    def _guided(self, noisy: Tensor, abar: Tensor, views: StepViews) -> Tensor:
        """The guided z_hat from noisy latents [B,...]."""
        timestep = torch.tensor(views.timestep).to(noisy.device, non_blocking=True)  # made there, it would wait
        output = self._forward(noisy, timestep, views).to(noisy.dtype)
        conditioned, plain = output.chunk(self.prior.groups)[:2]
        guided = plain + self.guidance_scale * (conditioned - plain)
        return predicted_clean(self.prior.prediction_type, guided, noisy, abar)

    def prefetch(self, views: StepViews) -> None:
        """Names the views of the next step to the cache, see :meth:`hash3d_cuda.hook.Hash3DCache.prefetch`."""
        if self.cache is not None:
            self.cache.prefetch(views.elevation, views.azimuth, views.radius, views.timestep, self.condition)

    def loss(self, latents: Tensor, target: Tensor, views: StepViews) -> Tensor:
        """A scalar whose gradient with respect to the latents is w(t) (z - z_hat), times 2/numel."""
        weight = self._per_view([step_weight(self.weighting, self.abar[t]) for t in views.timestep], latents)
        return (weight * (latents - target.detach()).square()).mean()

    def _forward(self, noisy: Tensor, timestep: Tensor, views: StepViews) -> Tensor:
        """The U-Net's output for all rows, group-major."""
        prior = self.prior
        poses = dict(elevation=views.elevation, azimuth=views.azimuth, radius=views.radius)
        condition = prior.conditioning(self.subject, **poses)
        sample = prior.model_input(noisy, self.subject)
        dtype = next(prior.unet.parameters()).dtype
        watched = contextlib.nullcontext()
        if self.cache is not None:
            watched = self.cache.views(**poses, timestep=views.timestep, condition=self.condition)
        with watched:
            return self.unet(sample.to(dtype), timestep.repeat(prior.groups), **condition).sample

    @staticmethod
    def _per_view(values: list[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)[:, None, None, None]


class Refinement(Guidance):
    """Pictures made of the rendered ones by a few deterministic denoising steps (DDIM), as targets in pixels.

    The pose stays while the timestep falls, so the feature of one denoising step serves the next few: temporal reuse.
    Where the cache is told grids of ``reuse_interval * stride`` timesteps, one step in each cell runs in full. Nothing
    is kept from one picture to the next.

    Args:
        prior, subject, cache, guidance_scale: as for :class:`Guidance`.
        stride: timesteps from one denoising step to the next.
    """

    def __init__(self, prior: Prior, subject: Subject, cache: Any, guidance_scale: float, stride: int):
        super().__init__(prior, subject, cache, guidance_scale, "x0")
        self.stride = stride

    def see(self, images: Tensor) -> Tensor:
        """The images at the prior's size."""
        return resized(images, self.prior.image_size)

    @torch.no_grad()
    def target(self, latents: Tensor, views: StepViews, generator: torch.Generator) -> Tensor:
        """Refined images float [B,3,S,S] of rendered ones; denoising starts at the views' (one) timestep."""
        if self.cache is not None:
            self.cache.clear()
        clean = self._encode(latents)
        times = list(range(max((views.whole or views).timestep), 0, -self.stride))
        levels = [self._per_view([self.abar[t]], clean) for t in times]
        noise = step_noise(clean, views, generator)
        for time, abar in zip(times, levels, strict=True):
            noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
            clean = self._guided(noisy, abar, replace(views, timestep=[time] * len(views.timestep)))
            noise = (noisy - abar.sqrt() * clean) / (1 - abar).sqrt()
        self.forwards = len(times)
        return self._decode(clean).clamp(0, 1).to(latents.dtype)

    def prefetch(self, views: StepViews) -> None:
        """Nothing: no entry outlives its picture."""

    def loss(self, latents: Tensor, target: Tensor, views: StepViews) -> Tensor:
        """Mean squared distance of images."""
        return (latents - target).square().mean()


def step_noise(like: Tensor, views: StepViews, generator: torch.Generator) -> Tensor:
    """Gaussian noise for latents [B,...] of ``views``. It is drawn for the whole step, so that a view has the same on
    however many ranks."""
    shape = (len((views.whole or views).azimuth), *like.shape[1:])
    noise = torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
    return noise[views.first : views.first + len(like)]


def resized(images: Tensor, size: int) -> Tensor:
    """Images float [B,C,R,R] at ``size`` pixels per side; the same tensor where they are."""
    if images.shape[-1] == size:
        return images
    shrinks = images.shape[-1] > size
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=shrinks)
