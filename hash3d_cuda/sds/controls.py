"""What score distillation has to beat: pictures and scenes made without any network.

A prior that merely blurs everything, or a loop that merely copies its input, can look fine in a table of
PSNRs. These controls say how far one gets without a prior at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.prior.ground_truth import EVALUATION_POSES, ground_truth_views
from hash3d_cuda.sds.guidance import Guidance
from hash3d_cuda.sds.metrics import image_quality
from hash3d_cuda.sds.outputs import render_views
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.sampler import StepViews
from hash3d_cuda.sds.settings import GenerateSettings


def mean_views(names: Sequence[str]) -> Tensor:
    """The mean over objects of each evaluation view, float [16,3,S,S]."""
    return torch.stack([ground_truth_views(name)[0] for name in names]).mean(0)


def own_mean_score(truth: Tensor) -> float:
    """PSNR in dB of an object's own mean view, shown from everywhere. An oracle: it has seen the truth
    [16,3,S,S]."""
    return image_quality(truth.mean(0, keepdim=True).expand_as(truth), truth)["psnr"]


def copy_score(image: Tensor, truth: Tensor) -> float:
    """PSNR in dB of showing the input picture [3,S,S] from everywhere."""
    return image_quality(image.expand_as(truth), truth)["psnr"]


class MeanViewGuidance(Guidance):
    """In the place of the prior: every view should look like the mean of all objects from the nearest
    azimuth."""

    def __init__(self, prior: Prior, subject: Subject, means: Tensor):
        super().__init__(prior, subject, None, 1.0, "x0")
        self.means = means

    def target(self, latents: Tensor, views: StepViews, generator: torch.Generator) -> Tensor:
        """Latents of the mean views for the step's azimuths."""
        turn = 360 / len(self.means)
        nearest = [round(azimuth / turn) % len(self.means) for azimuth in views.azimuth]
        return self.prior.encode(self.means[nearest].to(latents.device))


class NoGuidance(Guidance):
    """Nothing but the reference view pulls."""

    def __init__(self, prior: Prior, subject: Subject):
        super().__init__(prior, subject, None, 1.0, "x0")

    def target(self, latents: Tensor, views: StepViews, generator: torch.Generator) -> Tensor:
        """What is there already."""
        return latents


def distil(
    prior: Prior, subject: Subject, settings: GenerateSettings, guidance: Guidance | None = None
) -> dict[str, Any]:
    """Runs the loop without writing anything.

    Args:
        guidance: in the place of the prior's own; the cache is off then.

    Returns:
        ``views`` float [16,3,S,S] and ``run``, the closed :class:`SdsRun`.
    """
    if guidance is not None:
        settings = replace(settings, cache=False)
    with SdsRun(prior, subject, settings) as run:
        if guidance is not None:
            run.guidance = guidance
        while run.step < settings.steps:
            run.train_step()
        run.settle()
        poses = torch.from_numpy(EVALUATION_POSES).float().unbind(-1)
        return {"views": render_views(run.scene, *poses, prior.image_size), "run": run}


def mean_view_scene(prior: Prior, settings: GenerateSettings, means: Tensor) -> Tensor:
    """Evaluation views of the scene that the mean of all objects gives, float [16,3,S,S]."""
    subject = Subject(label="mean of all objects")
    return distil(prior, subject, settings, MeanViewGuidance(prior, subject, means))["views"]


def reference_only_scene(prior: Prior, subject: Subject, settings: GenerateSettings) -> Tensor:
    """Evaluation views of the scene that the input picture alone gives, float [16,3,S,S]."""
    return distil(prior, subject, settings, NoGuidance(prior, subject))["views"]
