"""What score distillation needs of any 2D diffusion prior, and how a subject is named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

AZIMUTH_PERIOD = 360.0


class UnknownSubject(ValueError):
    """The prior does not know this word or picture; the message says what it does know."""


@dataclass
class Subject:
    """Something a prior can be asked for.

    Attributes:
        label: a short name for files and reports.
        name: the vocabulary word when the prior recognised one (then ground truth may exist), else None.
        image: float [3,S,S] in 0..1 over white when the subject came as a picture, else None.
        alpha: float [1,S,S] of that picture, or None when it had no alpha channel.
        elevation, azimuth, radius: the picture's pose in degrees and scene units, or None.
        data: what the prior keeps for itself (codes, embeddings).
    """

    label: str
    name: str | None = None
    image: Tensor | None = None
    alpha: Tensor | None = None
    elevation: float | None = None
    azimuth: float | None = None
    radius: float | None = None
    data: dict[str, Any] = field(default_factory=dict)


class Prior(ABC):
    """A camera-conditioned (or merely text-conditioned) 2D diffusion prior.

    Attributes:
        name: for reports.
        unet: a ``diffusers.UNet2DConditionModel``.
        alphas_cumprod: float [T], the noise schedule.
        prediction_type: ``"sample"``, ``"epsilon"`` or ``"v_prediction"``.
        latent_shape: (C, h, w) of the noisy latent.
        image_size: pixels per side that :meth:`encode` takes.
        elevation_range, radius_range: where the prior was trained, degrees and scene units.
        vocabulary: the names it knows, or None when it takes any prompt or picture.
        groups: rows per item in the U-Net's batch (classifier-free guidance: 2).
    """

    name: str
    unet: torch.nn.Module
    alphas_cumprod: Tensor
    prediction_type: str
    latent_shape: tuple[int, int, int]
    image_size: int
    elevation_range: tuple[float, float]
    radius_range: tuple[float, float]
    vocabulary: list[str] | None = None
    groups: int = 2

    @abstractmethod
    def resolve(self, subject: Any, **pose: float | None) -> Subject:
        """A name (str) or picture (``PIL.Image``) to a :class:`Subject`.

        Args:
            subject: the word or picture.
            **pose: ``elevation``, ``azimuth``, ``radius`` of the picture when the user knows them.

        Raises:
            UnknownSubject: the prior does not know it.
        """

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """float [B,3,S,S] in 0..1 -> latents float [B,*latent_shape]; differentiable."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents float [B,*latent_shape] -> float [B,3,S,S] in 0..1 (not clamped)."""

    @abstractmethod
    def conditioning(
        self, subject: Subject, elevation: Sequence[float], azimuth: Sequence[float], radius: Sequence[float]
    ) -> dict[str, Any]:
        """Keyword arguments of the U-Net for 2B rows, group-major: B conditioned rows, then B unconditioned ones."""

    def model_input(self, noisy: Tensor, subject: Subject) -> Tensor:
        """The sample for the U-Net's 2B rows from noisy latents [B,...]; priors with extra channels override it."""
        return torch.cat([noisy] * self.groups)
