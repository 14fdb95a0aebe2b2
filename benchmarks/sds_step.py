"""A whole step of score distillation around SD 1.5's U-Net (random weights): rendering, noise, U-Net, loss, backward,
Adam. The scene is a radiance grid seen at the latents' size, and its colours are the latents, so no VAE is in the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sd_unet import POSE, POSITION, TIMESTEP, make_unet
from torch import Tensor

import hash3d_cuda as h3d
from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.sampler import StepViews, ViewSampler
from hash3d_cuda.sds.settings import GenerateSettings

TOKENS = 77


class UnetAlone(Prior):
    """A U-Net with random weights, behind latents that are pictures."""

    name = "SD 1.5's U-Net, random weights, no VAE"
    prediction_type = "epsilon"
    elevation_range = (0.0, 60.0)
    radius_range = (1.9, 2.1)

    def __init__(self, unet: Any, side: int):
        self.unet, self.image_size, self.latent_shape = unet, side, (4, side, side)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=unet.device).square()
        self.alphas_cumprod = (1 - betas).cumprod(0)
        random = torch.Generator().manual_seed(2)
        context = torch.randn(2, TOKENS, unet.config.cross_attention_dim, generator=random)
        self.context = context.to(unet.device, unet.dtype)

    def resolve(self, subject: Any, **pose: float | None) -> Subject:
        """Any word; it means nothing."""
        return Subject(label=str(subject))

    def encode(self, images: Tensor) -> Tensor:
        """Colours and their mean, from -1 to 1."""
        return torch.cat([images, images.mean(1, keepdim=True)], 1) * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """The colours."""
        return latents[:, :3] / 2 + 0.5

    def conditioning(
        self, subject: Subject, elevation: Sequence[float], azimuth: Sequence[float], radius: Sequence[float]
    ) -> dict[str, Any]:
        """The same two rows for every view."""
        return {"encoder_hidden_states": self.context.repeat_interleave(len(azimuth), 0)}


class OneView(ViewSampler):
    """Looks at one view all the time, so that every step after the first can be a hit."""

    def views(self, step: int) -> StepViews:
        """The view of all steps."""
        return StepViews(*([float(POSE[name])] for name in ("elevation", "azimuth", "radius")), [TIMESTEP])


@contextmanager
def sds_step(device: str, side: int, decide: str | None, **config: Any) -> Iterator[Callable[[], Tensor]]:
    """A function that takes one step: every one a hit, or every one a full pass where ``decide`` is None."""
    prior = UnetAlone(make_unet(device, **config), side)
    settings = GenerateSettings(views_per_step=1, cache=False, device=device, steps=10**6)
    with SdsRun(prior, prior.resolve("anything"), settings) as run:
        run.sampler = OneView(settings, prior.elevation_range, prior.radius_range)
        if decide is not None:
            options = h3d.Hash3DConfig(eta=1.0, position=POSITION, groups=2, capacity=4, decide=decide)
            run.cache = run.guidance.cache = h3d.apply_hash3d(prior.unet, options)
            run.train_step()
        yield run.train_step
        if run.cache is not None:
            stats = run.cache.stats()
            assert stats.misses == 1 and stats.bypasses == 0, stats
