"""Figure 3: novel views without computation, by averaging the predictions of two views around them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.features import unet_input
from hash3d_cuda.reproduce.summary import pyplot, save
from hash3d_cuda.reproduce.sweep import open_picture_row, picture
from hash3d_cuda.sds.guidance import predicted_clean
from hash3d_cuda.sds.metrics import image_quality
from hash3d_cuda.sds.settings import GenerateSettings

ID = "figure-3"
TITLE = "Figure 3: novel views for free"
PAPER = {
    "claim": "averaging the saved predictions at +-delta matches the generated view closely up to delta = 5 degrees "
    "and is blurrier beyond; the best window differs between objects (Zero123)",
    "deltas": [1, 5, 10, 20],
}
DELTAS = (1, 2, 5, 10, 15, 20, 30)
AZIMUTHS = (10.0, 190.0)
ELEVATION, RADIUS = 20.0, 2.0
GUIDANCE = GenerateSettings.guidance_scale
Pose = tuple[float, float, float]


def units(context: Context) -> list[Unit]:
    """One per object."""
    size = {"azimuths": list(AZIMUTHS[: 1 if context.quick else 2]), "sampling_steps": steps(context)}
    weight = 0.4 * len(size["azimuths"]) * size["sampling_steps"]
    return [Unit(name, measure, {"subject": name, **size}, weight) for name in context.objects]


def steps(context: Context) -> int:
    """Of the sampler."""
    return 10 if context.quick else 20


def measure(context: Context, subject: str, azimuths: Sequence[float], sampling_steps: int) -> dict[str, Any]:
    """One object: ``scores`` per delta, means over azimuths, and ``picture``, the generated view and the blends of the
    first azimuth in a row."""
    prior = context.prior
    asked = prior.resolve(subject)
    seed = zlib.crc32(f"{context.seed} {subject}".encode())
    scores: list[dict[str, float]] = []
    shown = None
    for azimuth in azimuths:
        offsets = [0.0, *(sign * delta for delta in DELTAS for sign in (-1.0, 1.0))]
        poses = [(ELEVATION, azimuth + offset, RADIUS) for offset in offsets]
        start = torch.randn((1, *prior.latent_shape), generator=torch.Generator().manual_seed(seed))
        latents, predictions = generate(prior, asked, poses, start, sampling_steps)
        full = decoded(prior, latents[:1])
        left, right = latents[1::2], latents[2::2]  # one of each per delta
        free = [replay(prior, start, [(p[i] + p[i + 1]) / 2 for p in predictions]) for i in range(1, len(poses), 2)]
        off = (torch.cat(free) - (left + right) / 2).abs().amax((1, 2, 3)).tolist()
        blends, sides = decoded(prior, torch.cat(free)), decoded(prior, torch.cat([left, right])).chunk(2)
        for delta, blend, difference, *pair in zip(DELTAS, blends, off, *sides, strict=True):
            scores.append(compared(full, blend, pair) | {"delta": delta, "overlay_difference": difference})
        shown = torch.cat([full, blends]) if shown is None else shown
    assert shown is not None
    return {"scores": averaged(scores), "picture": picture(shown, len(shown))}


@torch.no_grad()
def generate(
    prior: Prior, subject: Subject, poses: Sequence[Pose], start: Tensor, steps: int
) -> tuple[Tensor, list[Tensor]]:
    """DDIM (Song et al. 2021) from one noise ``start`` float [1,*latent_shape] for all poses.

    Returns:
        latents float [N,*latent_shape], and the predicted noise of each step, float [N,...].
    """
    elevation, azimuth, radius = zip(*poses, strict=True)
    condition = prior.conditioning(subject, elevation, azimuth, radius)
    latents, saved = start.expand(len(poses), -1, -1, -1), []
    for signal, after, timestep in schedule(prior, steps):
        sample = unet_input(prior, latents, subject)
        times = torch.full((len(sample),), timestep, device=sample.device)
        output = prior.unet(sample, times, **condition).sample.float().cpu()
        conditioned, plain = output.chunk(prior.groups)[:2]
        guided = plain + GUIDANCE * (conditioned - plain)
        clean = predicted_clean(prior.prediction_type, guided, latents, signal)
        noise = (latents - signal.sqrt() * clean) / (1 - signal).sqrt()
        saved.append(noise)
        latents = moved(latents, noise, signal, after)
    return latents, saved


def replay(prior: Prior, start: Tensor, predictions: Sequence[Tensor]) -> Tensor:
    """The latent float [1,*latent_shape] that the saved predictions lead to: no U-Net is asked."""
    latents = start
    for (signal, after, _), noise in zip(schedule(prior, len(predictions)), predictions, strict=True):
        latents = moved(latents, noise, signal, after)
    return latents


def schedule(prior: Prior, steps: int) -> list[tuple[Tensor, Tensor, int]]:
    """(cumulative alpha now, after the step, timestep) of each step, from the last timestep down."""
    abar = prior.alphas_cumprod.detach().float().cpu()
    times = torch.linspace(len(abar) - 1, 0, steps + 1).round().long()[:-1].tolist()
    levels = [abar[time] for time in times] + [torch.ones(())]
    return list(zip(levels[:-1], levels[1:], times, strict=True))


def moved(latents: Tensor, noise: Tensor, signal: Tensor, after: Tensor) -> Tensor:
    """One DDIM step: linear in the latent and in the predicted noise."""
    clean = (latents - (1 - signal).sqrt() * noise) / signal.sqrt()
    return after.sqrt() * clean + (1 - after).sqrt() * noise


@torch.no_grad()
def decoded(prior: Prior, latents: Tensor) -> Tensor:
    """Pictures float [N,3,S,S] in 0..1."""
    return prior.decode(latents.to(next(prior.unet.parameters()).device)).clamp(0, 1).float().cpu()


def compared(full: Tensor, blend: Tensor, sides: Sequence[Tensor]) -> dict[str, float]:
    """The free view, and a neighbour shown in its place, against the generated view."""
    quality = image_quality(blend[None], full)
    return {
        "psnr": quality["psnr"],
        "ssim": quality["ssim"],
        "neighbour_psnr": mean(image_quality(side[None], full)["psnr"] for side in sides),
    }


def averaged(scores: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Means per delta; of the overlay's difference the largest."""
    found = []
    for delta in DELTAS:
        these = [score for score in scores if score["delta"] == delta]
        largest = max(score["overlay_difference"] for score in these)
        found.append(
            {name: mean(score[name] for score in these) for name in these[0]} | {"overlay_difference": largest}
        )
    return found


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row per delta, means over objects; the spread says how much the best window differs between them."""
    rows = []
    for index, delta in enumerate(DELTAS):
        these = [result["scores"][index] for result in results.values()]
        rows.append({
            "delta": delta,
            "PSNR, dB": mean(one["psnr"] for one in these),
            "lowest": min(one["psnr"] for one in these),
            "highest": max(one["psnr"] for one in these),
            "SSIM": mean(one["ssim"] for one in these),
            "a neighbour instead, dB": mean(one["neighbour_psnr"] for one in these),
        })  # fmt: skip
    five, twenty = (next(row for row in rows if row["delta"] == delta) for delta in (5, 20))
    shipped = context.source is None
    blended = ": its latents are its pictures' pixels, so one picture is laid over the other" if shipped else ""
    overlay = max(one["overlay_difference"] for result in results.values() for one in result["scores"])
    return {
        "rows": rows,
        "findings": [
            f"The blend of two views 5 degrees to either side scores {five['PSNR, dB']:.2f} dB (SSIM "
            f"{five['SSIM']:.3f}) against the generated view, from {five['lowest']:.2f} to {five['highest']:.2f} dB "
            f"by object; at 20 degrees {twenty['PSNR, dB']:.2f} dB (SSIM {twenty['SSIM']:.3f}). Showing one neighbour "
            f"unchanged scores {five['a neighbour instead, dB']:.2f} and {twenty['a neighbour instead, dB']:.2f} dB.",
            "A DDIM step is linear in the latent and the prediction, so averaging the predictions of two views that "
            "start from the same noise averages their latents and does nothing else (largest difference "
            f"{overlay:.1g}){blended}.",
            f"{steps(context)} DDIM steps, guidance {GUIDANCE:g}, elevation {ELEVATION:g} degrees; {len(results)} "
            "objects.",
        ],
        "by_object": {name: result["scores"] for name, result in results.items()},
        "pictures": {name: result["picture"] for name, result in results.items()},
    }


def plot(summary: dict[str, Any], path: Path) -> None:
    """A row of pictures per object above the curves."""
    plt = pyplot()
    shown = list(summary["pictures"].items())[:3]
    figure, axes = plt.subplots(
        len(shown) + 1, 1, figsize=(8, 1.3 * len(shown) + 3.2), height_ratios=[1.0] * len(shown) + [2.6], squeeze=False
    )
    for axis, (name, text) in zip(axes[:-1, 0], shown, strict=True):
        axis.imshow(open_picture_row(text))
        axis.set_axis_off()
        axis.set_title(f"{name}: generated, then free with delta {', '.join(map(str, DELTAS))}", fontsize=8, loc="left")
    last = axes[-1, 0]
    for (name, scores), style in zip(summary["by_object"].items(), cycle(("-", "--", ":", "-."))):
        curve = [s["delta"] for s in scores], [s["psnr"] for s in scores]
        last.plot(*curve, color="#9db8d9", linewidth=1, linestyle=style, label=name if len(shown) < 4 else None)
    deltas = [row["delta"] for row in summary["rows"]]
    for column, colour in (("PSNR, dB", "#1f4e79"), ("a neighbour instead, dB", "#b5432f")):
        last.plot(deltas, [row[column] for row in summary["rows"]], marker="o", color=colour, label=column)
    last.set(xlabel="delta, degrees", ylabel="PSNR against the generated view, dB")
    last.legend(fontsize=8)
    save(figure, path)
