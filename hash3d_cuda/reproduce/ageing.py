"""How an entry ages: the same view's feature some steps later, and whether the shallow features tell."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hash3d_cuda.freshness import sketch_items
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.features import POSITION, add_noise, unet_input
from hash3d_cuda.reproduce.studies import SECONDS_PER_STEP
from hash3d_cuda.reproduce.summary import pyplot, save
from hash3d_cuda.reproduce.sweep import with_own_hooks
from hash3d_cuda.sds.anchors import anchor_place
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.unet import SplitUNet

ID = "ageing"
TITLE = "How an entry ages"
PAPER = {"claim": "features of one pose at near timesteps are alike (figure 2); how long under SDS is not said"}
PROBES, POSES = 16, 8


def units(context: Context) -> list[Unit]:
    """A run without a cache per object, looked at from fixed poses at regular intervals."""
    weight = SECONDS_PER_STEP * context.steps + PROBES * POSES * 0.06
    arguments = {"steps": context.steps}
    return [Unit(f"ageing, {name}", ageing, {"subject": name, **arguments}, weight) for name in context.objects]


def ageing(context: Context, subject: str, steps: int) -> dict[str, Any]:
    """One object's changes: per pair of probes the age in steps, the later probe's share of the run, and the relative
    changes of the cached feature and of the shallow features' means, averaged over poses. Age 0 is other noise."""
    prior = with_own_hooks(context.prior)
    asked = prior.resolve(subject)
    settings = GenerateSettings(steps=steps, seed=context.seed, device=context.device, cache=False)
    every = max(steps // PROBES, 1)
    seen: list[tuple[int, Tensor, Tensor]] = []
    rows = []
    with SdsRun(prior, asked, settings) as run:
        while run.step < steps:
            if run.step % every == 0:
                seen.append((run.step, *probe(run, run.step)))
                rows.append(pair(0, run.step / steps, seen[-1][1:], probe(run, run.step + steps)))
            run.train_step()
    for place, (step, *now) in enumerate(seen):
        rows += [pair(step - then, step / steps, before, now) for then, *before in seen[:place]]
    return {"pairs": rows, "every": every}


@torch.no_grad()
def probe(run: SdsRun, noise: int) -> tuple[Tensor, Tensor]:
    """Features [POSES,D] and sketches [POSES,E] of the scene now, at the schedule's timestep, under numbered noise."""
    prior = run.prior
    low, high = prior.elevation_range
    places = [anchor_place(number, np.zeros(4)).tolist() for number in range(POSES)]
    poses = [(low + e * (high - low), 360 * a, sum(prior.radius_range) / 2) for a, e, *_ in places]
    elevation, azimuth, radius = (list(values) for values in zip(*poses, strict=True))
    told = [torch.tensor(values, dtype=torch.float32, device=run.device) for values in (elevation, azimuth, radius)]
    latents = prior.encode(run.scene.render(*told, prior.image_size).image).float().cpu()
    timestep = run.sampler.views(run.step).timestep[0]
    sample = unet_input(prior, add_noise(prior, latents, timestep, noise, shared=False), run.subject)
    split = SplitUNet(prior.unet, POSITION)
    condition = prior.conditioning(run.subject, elevation, azimuth, radius)
    times = torch.full((len(sample),), timestep, device=sample.device)
    hidden, _, conditioning = split.head(sample, times, **condition)
    items = [[group * POSES + item for group in range(prior.groups)] for item in range(POSES)]
    feature = split.deep(hidden, conditioning).unflatten(0, (prior.groups, -1)).transpose(0, 1).flatten(1)
    return feature.float().cpu(), sketch_items(hidden, items).cpu()


def pair(age: int, at: float, before: Any, now: Any) -> dict[str, float]:
    """Changes from one probe (features, sketches) to another."""
    (old, then), (new, sketch) = before, now
    return {
        "age": age,
        "at": at,
        "feature": float(((new - old).norm(dim=1) / new.norm(dim=1)).mean()),
        "cosine": float(torch.nn.functional.cosine_similarity(new, old).mean()),
        "shallow": float(((sketch - then).abs().mean(1) / then.abs().mean(1)).mean()),
    }


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row per age, over all objects, for the first and the second half of the run."""
    pairs = [one for result in results.values() for one in result["pairs"]]
    ages = sorted({one["age"] for one in pairs})
    rows = []
    for age in ages:
        cells: dict[str, Any] = {"age, steps": age}
        for name, half in (("first half", (0.0, 0.5)), ("second half", (0.5, 1.01))):
            these = [one for one in pairs if one["age"] == age and half[0] <= one["at"] < half[1]]
            cells[f"feature, {name}"] = mean(one["feature"] for one in these) if these else None
            cells[f"cosine, {name}"] = mean(one["cosine"] for one in these) if these else None
            cells[f"shallow, {name}"] = mean(one["shallow"] for one in these) if these else None
        rows.append(cells)
    late = [one for one in pairs if one["at"] >= 0.5]
    first, last = (
        rows[0],
        max((r for r in rows if r["feature, second half"] is not None), key=lambda r: r["age, steps"]),
    )
    return {
        "rows": rows,
        "findings": [
            f"In the second half of the run other noise alone changes a view's feature by "
            f"{first['feature, second half']:.3f} of its norm; an entry {last['age, steps']} steps old differs by "
            f"{last['feature, second half']:.3f}.",
            f"Change of the shallow features and of the cached one correlate by {correlation(pairs):+.2f} over all "
            f"pairs, by {correlation(late):+.2f} over those of the second half: so much of the error does "
            "max_change see.",
        ],
    }


def correlation(pairs: list[dict[str, float]]) -> float:
    """Pearson's, of the shallow and the cached feature's change."""
    values = np.array([[one["shallow"], one["feature"]] for one in pairs])
    if len(values) < 3 or (values.std(0) == 0).any():
        return float("nan")
    return float(np.corrcoef(values.T)[0, 1])


def plot(summary: dict[str, Any], path: Path) -> None:
    """Change over age, of both halves."""
    plt: Any = pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for half in ("first half", "second half"):
        known = [r for r in summary["rows"] if r[f"feature, {half}"] is not None]
        axis.plot([r["age, steps"] for r in known], [r[f"feature, {half}"] for r in known], marker="o", label=half)
    axis.set_xlabel("age, steps")
    axis.set_ylabel("relative change of the cached feature")
    axis.legend()
    save(figure, path)
