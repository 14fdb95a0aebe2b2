"""The tensor that the cache keeps, for views of one object: what figure 2 compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.unet import SplitUNet

POSITION = 2
"""The paper's place: the input of the last up-sampling layer (its section 3.1)."""
BATCH = 16


@torch.no_grad()
def cached_features(
    prior: Prior, subject: Subject, poses: Sequence[tuple[float, float, float]], noisy: Tensor, timestep: int
) -> Tensor:
    """Features float [N,D], flattened over both rows of guidance, as one entry of the table holds them.

    Args:
        prior, subject: what the U-Net is asked.
        poses: N times (elevation, azimuth, radius).
        noisy: float [N,*latent_shape], the views' latents at ``timestep``.
    """
    split = SplitUNet(prior.unet, POSITION)
    found = []
    for start in range(0, len(poses), BATCH):
        elevation, azimuth, radius = zip(*poses[start : start + BATCH], strict=True)
        condition = prior.conditioning(subject, elevation, azimuth, radius)
        sample = unet_input(prior, noisy[start : start + BATCH], subject)
        times = torch.full((len(sample),), timestep, device=sample.device)
        hidden, _, conditioning = split.head(sample, times, **condition)
        feature = split.deep(hidden, conditioning)
        found.append(feature.unflatten(0, (prior.groups, -1)).transpose(0, 1).flatten(1).float().cpu())
    return torch.cat(found)


def unet_input(prior: Prior, noisy: Tensor, subject: Subject) -> Tensor:
    """The U-Net's rows from latents float [N,...] on any device, where and as its weights are."""
    weight = next(prior.unet.parameters())
    return prior.model_input(noisy.to(weight.device), subject).to(weight.dtype)


@torch.no_grad()
def encoded(prior: Prior, images: Tensor) -> Tensor:
    """Latents float [N,*latent_shape] on the CPU of pictures float [N,3,S,S]."""
    return prior.encode(images.to(next(prior.unet.parameters()).device)).float().cpu()


def add_noise(prior: Prior, latents: Tensor, timestep: int, seed: int | None, shared: bool) -> Tensor:
    """Latents float [N,...] at ``timestep``: the same noise for all of them, or each its own as SDS draws it."""
    generator = torch.Generator().manual_seed(seed or 0)
    shape = (1, *latents.shape[1:]) if shared else latents.shape
    noise = torch.randn(shape, generator=generator)
    signal = prior.alphas_cumprod[timestep].float().cpu()
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise


def cosines(features: Tensor, reference: Tensor, mean: Tensor) -> dict[str, list[float]]:
    """Cosine similarity of features float [N,D] to ``reference`` float [D], raw and less ``mean``."""
    raw = torch.nn.functional.cosine_similarity(features, reference[None])
    centred = torch.nn.functional.cosine_similarity(features - mean, (reference - mean)[None])
    return {"raw": raw.tolist(), "centred": centred.tolist()}


def other_objects(prior: Prior, except_for: str, every: int = 4) -> list[tuple[Subject, list[Any], Tensor]]:
    """Some other objects from four sides each: subject, poses, latents. Their mean is what all features have in common.

    Raises:
        ValueError: no true views are bundled for what this prior knows.
    """
    from hash3d_cuda.prior.ground_truth import EVALUATION_POSES, ground_truth_names, ground_truth_views

    names = [name for name in ground_truth_names()[::every] if name != except_for]
    if prior.vocabulary is not None:
        names = [name for name in names if name in prior.vocabulary]
    found = []
    for name in names:
        images = ground_truth_views(name)[0][::4]
        images = torch.nn.functional.interpolate(images, (prior.image_size,) * 2, mode="bilinear", antialias=True)
        poses = [tuple(pose) for pose in EVALUATION_POSES[::4].tolist()]
        found.append((prior.resolve(name), poses, encoded(prior, images)))
    if not found:
        raise ValueError("prior: figure 2 needs objects with bundled true views, and this prior knows none of them")
    return found
