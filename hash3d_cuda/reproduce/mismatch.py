"""What a stale feature does to the prior's answer: noise, pose and timestep apart, on true views."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.prior.ground_truth import ground_truth_views
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.features import POSITION, add_noise, unet_input
from hash3d_cuda.reproduce.summary import plot_bars
from hash3d_cuda.sds.guidance import predicted_clean
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.unet import SplitUNet

ID = "mismatch"
TITLE = "What a stale feature does to the answer"
PAPER = {"claim": "features of near poses and timesteps can stand in for each other; by how much off is not said"}
TIMESTEPS = (400, 600, 800)
EVERY = 3  # of the 16 true views
# What the entry's view had other than the view that it serves: degrees, degrees, scene units, timesteps, other noise.
DIFFERENCES: dict[str, tuple[float, float, float, int, bool]] = {
    "noise": (0, 0, 0, 0, True),
    "azimuth 2": (0, 2, 0, 0, False),
    "azimuth 4": (0, 4, 0, 0, False),
    "elevation 3": (3, 0, 0, 0, False),
    "radius 0.04": (0, 0, 0.04, 0, False),
    "radius 0.15": (0, 0, 0.15, 0, False),
    "timestep 50": (0, 0, 0, 50, False),
    "timestep 150": (0, 0, 0, 150, False),
    "noise, timestep 50": (0, 0, 0, 50, True),
    "noise, timestep 150": (0, 0, 0, 150, True),
}


def units(context: Context) -> list[Unit]:
    """One per object."""
    weight = 0.06 * len(TIMESTEPS) * len(DIFFERENCES) * 16 / EVERY
    return [Unit(f"mismatch, {name}", mismatch, {"subject": name}, weight) for name in context.objects]


@torch.no_grad()
def mismatch(context: Context, subject: str) -> dict[str, Any]:
    """Per timestep and difference: ``apart``, the root mean square between the guided clean latents with the stale
    feature and with the view's own; ``error``, of the former against the truth, and ``own``, of the latter."""
    prior = context.prior
    asked = prior.resolve(subject)
    images, *poses = (values[::EVERY] for values in ground_truth_views(subject))
    images = F.interpolate(images, (prior.image_size,) * 2, mode="bilinear", antialias=True)
    truth = prior.encode(images.to(context.device)).float().cpu()
    at = [values.tolist() for values in poses]
    rows = []
    for timestep in TIMESTEPS:
        own = Answer(prior, asked, truth, at, timestep, 1)
        plain = own.clean(own.feature)
        for name, (*moved, later, other) in DIFFERENCES.items():
            there = [[value + by for value in values] for values, by in zip(at, moved, strict=True)]
            late = min(timestep + later, len(prior.alphas_cumprod) - 1)
            stale = own.clean(Answer(prior, asked, truth, there, late, 2 if other else 1).feature)
            rows.append({
                "timestep": timestep, "differs": name, "apart": rms(stale - plain), "error": rms(stale - truth),
                "own": rms(plain - truth),
            })  # fmt: skip
    return {"rows": rows}


class Answer:
    """The U-Net on noisy true views [N,...] up to its cut; ``feature`` is what the cache would keep."""

    def __init__(self, prior: Prior, subject: Subject, truth: Tensor, at: list[list[float]], timestep: int, noise: int):
        self.prior, self.timestep = prior, timestep
        self.noisy = add_noise(prior, truth, timestep, noise, shared=False)
        self.split = SplitUNet(prior.unet, POSITION)
        sample = unet_input(prior, self.noisy, subject)
        times = torch.full((len(sample),), timestep, device=sample.device)
        hidden, self.skips, self.conditioning = self.split.head(sample, times, **prior.conditioning(subject, *at))
        self.feature = self.split.deep(hidden, self.conditioning)

    def clean(self, feature: Tensor) -> Tensor:
        """The guided clean latents [N,...] with a feature of any origin."""
        output = self.split.tail(feature, self.skips, self.conditioning).float().cpu()
        conditioned, plain = output.chunk(self.prior.groups)[:2]
        guided = plain + GenerateSettings.guidance_scale * (conditioned - plain)
        level = self.prior.alphas_cumprod[self.timestep].float().cpu()
        return predicted_clean(self.prior.prediction_type, guided, self.noisy, level)


def rms(difference: Tensor) -> float:
    """Root mean square."""
    return float(difference.square().mean().sqrt())


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row per difference; changes are relative to the error with the view's own feature, means over objects."""
    found = [one for result in results.values() for one in result["rows"]]
    rows = []
    for name in DIFFERENCES:
        cells: dict[str, Any] = {"differs": name}
        for timestep in TIMESTEPS:
            these = [one for one in found if one["differs"] == name and one["timestep"] == timestep]
            cells[f"apart, t {timestep}"] = mean(one["apart"] / one["own"] for one in these)
            cells[f"error, t {timestep}"] = mean(one["error"] / one["own"] - 1 for one in these)
        cells["error"] = mean(cells[f"error, t {timestep}"] for timestep in TIMESTEPS)
        rows.append(cells)
    said = {one["differs"]: f"{one['error']:+.1%}" for one in rows}
    middle, noise = TIMESTEPS[1], rows[0]
    later = next(one for one in rows if one["differs"] == "timestep 150")
    listed = ", ".join(f"{name} {change}" for name, change in said.items())
    return {
        "rows": rows,
        "findings": [
            f"Error of the answer against the truth, relative to that with the view's own feature, by what differs: "
            f"{listed}.",
            f"Other noise moves the answer by {noise[f'apart, t {middle}']:.0%} of that error at t {middle}, 150 "
            f"timesteps by {later[f'apart, t {middle}']:.0%}; on the error itself they do {noise['error']:+.1%} and "
            f"{later['error']:+.1%}.",
        ],
    }


def plot(summary: dict[str, Any], path: Path) -> None:
    """Bars of the change of the error, and of how far the answers lie apart at one timestep."""
    measures = ("error", f"apart, t {TIMESTEPS[1]}")
    plot_bars({row["differs"]: {name: row[name] for name in measures} for row in summary["rows"]}, measures, path)
