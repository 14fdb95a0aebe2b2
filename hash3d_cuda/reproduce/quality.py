"""How good views are, by every measure whose weights are there."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hash3d_cuda.prior.base import Subject
from hash3d_cuda.sds.metrics import image_quality

DISTANCES = ("LPIPS (VGG)", "LPIPS (Alex)", "ST-LPIPS (Alex)")
"""The first that is installed is measured."""


def scores(views: Tensor, truth: Tensor | None, subject: Subject, every: int = 1) -> dict[str, float]:
    """PSNR (dB) and SSIM against the truth, and the perceptual measures that are installed, by name.

    Args:
        views: float [16,3,S,S] in 0..1.
        truth: the same views of the true object, or None when none are bundled.
        subject: what the views should show.
        every: the perceptual measures are of every so manieth view, PSNR and SSIM of all.
    """
    found: dict[str, float] = {}
    if truth is not None:
        quality = image_quality(views, truth)
        found |= {"psnr": quality["psnr"], "ssim": quality["ssim"]}
    return found | perceptual_scores(views[::every], None if truth is None else truth[::every], subject)


def perceptual_scores(views: Tensor, truth: Tensor | None, subject: Subject) -> dict[str, float]:
    """One distance to the truth, and the similarity of embeddings: to the input picture where there is one, else to the
    truth, and to the prompt where CLIP is there (for text, the paper's 8 views)."""
    from hash3d_cuda.perceptual import available, image_scores, similarity, text_similarity

    missing = available()
    found: dict[str, float] = {}
    distance = next((name for name in DISTANCES if missing.get(name, "") is None), None)
    if truth is not None and distance is not None:
        found[distance] = image_scores(views, truth, [distance])[distance]
    reference = truth if subject.image is None else subject.image
    if reference is not None:
        found |= similarity(views, reference.cpu())
    if subject.image is None:
        found |= {f"{name}, prompt": value for name, value in text_similarity(views[::2], subject.label).items()}
    return found


def columns(qualities: list[dict[str, Any]]) -> list[str]:
    """Names of the measures that all of the runs have."""
    return [name for name in qualities[0] if all(name in quality for quality in qualities)] if qualities else []
