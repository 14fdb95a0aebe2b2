"""Figure 2: how alike the cached features of neighbouring views and timesteps are."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.features import POSITION, add_noise, cached_features, cosines, encoded, other_objects
from hash3d_cuda.reproduce.summary import pyplot, save
from hash3d_cuda.sds.controls import distil
from hash3d_cuda.sds.outputs import render_views
from hash3d_cuda.sds.settings import GenerateSettings

ID = "figure-2"
TITLE = "Figure 2: similarity of features over pose and timestep"
PAPER = {
    "claim": "cosine similarity above 0.8 within [-10, 10] degrees of elevation and azimuth, averaged over all "
    "timesteps (Zero123); features of adjacent timesteps are alike too (cited)",
    "above": 0.8,
}
CENTRE = (25.0, 2.0)  # elevation and radius of the view that others are compared with
NOISES = ("same", "own")
KINDS = ("raw", "centred")
FULL = {
    "azimuths": [40.0, 200.0], "timesteps": [200, 500, 800], "elevation": [-20, -10, 0, 10, 20],
    "azimuth": [-30, -20, -10, -5, 0, 5, 10, 20, 30], "far": [45, 90, 180], "later": [10, 20, 30, 50, 100, 200],
}  # fmt: skip
QUICK = FULL | {
    "azimuths": [40.0],
    "timesteps": [300, 700],
    "elevation": [-10, 0, 10],
    "azimuth": [-30, -10, 0, 10, 30],
}


def units(context: Context) -> list[Unit]:
    """One per object: a scene is distilled, so that there are views from everywhere."""
    size = QUICK if context.quick else FULL
    weight = 0.13 * context.steps + (6.0 if context.quick else 20.0)
    return [
        Unit(name, measure, {"subject": name, "steps": context.steps, "offsets": size}, weight)
        for name in context.objects
    ]


def measure(context: Context, subject: str, steps: int, offsets: Mapping[str, Any]) -> dict[str, Any]:
    """One object: ``pose``, ``time`` and ``others`` (other objects at the same timestep), each a list of ``{offset,
    noise, raw, centred}``, means over timesteps and sides."""
    prior = context.prior
    asked = prior.resolve(subject)
    settings = GenerateSettings(steps=steps, cache=False, seed=context.seed, device=context.device)
    scene = distil(prior, asked, settings)["run"].scene
    strangers = other_objects(prior, subject)
    found: dict[str, list[dict[str, Any]]] = {"pose": [], "time": [], "others": []}
    for timestep in offsets["timesteps"]:
        seed = zlib.crc32(f"{context.seed} {subject} {timestep}".encode())
        ask = partial(noisy_features, prior, seed=seed)
        strange = torch.cat([ask(*stranger, timestep, "own") for stranger in strangers])
        common = strange.mean(0)
        for azimuth in offsets["azimuths"]:
            shifts = pose_offsets(offsets)
            poses = [(CENTRE[0] + e, azimuth + a, CENTRE[1]) for e, a in shifts]
            latents = encoded(prior, render_views(scene, *torch.tensor(poses).T, prior.image_size))
            centre = shifts.index((0.0, 0.0))
            middle = (asked, [poses[centre]], latents[[centre]])
            reference = ask(*middle, timestep, "same")[0]
            for noise in NOISES:
                views = ask(asked, poses, latents, timestep, noise)
                found["pose"] += spread(cosines(views, reference, common), shifts, noise)
                for dt in offsets["later"]:
                    if timestep + dt < len(prior.alphas_cumprod):
                        view = ask(*middle, timestep + dt, noise)
                        found["time"] += spread(cosines(view, reference, common), [dt], noise)
            found["others"] += spread(cosines(strange, reference, common), ["any"] * len(strange), "own")
    return {name: averaged(entries) for name, entries in found.items()}


def noisy_features(
    prior: Prior, subject: Subject, poses: Any, latents: Tensor, timestep: int, noise: str, seed: int
) -> Tensor:
    """Features of latents under the one noise that the reference has too (``"same"``), or each under its own."""
    noisy = add_noise(prior, latents, timestep, seed if noise == "same" else seed + 1, shared=noise == "same")
    return cached_features(prior, subject, poses, noisy, timestep)


def pose_offsets(offsets: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """(elevation, azimuth) offsets: the grid, then far azimuths."""
    grid = [(float(e), float(a)) for e in offsets["elevation"] for a in offsets["azimuth"]]
    return grid + [(0.0, float(a)) for a in offsets["far"]]


def spread(values: Mapping[str, Sequence[float]], offsets: Sequence[Any], noise: str) -> list[dict[str, Any]]:
    """One entry per view."""
    each = zip(offsets, values["raw"], values["centred"], strict=True)
    return [{"offset": offset, "noise": noise, "raw": raw, "centred": centred} for offset, raw, centred in each]


def averaged(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries of equal offset and noise as one, in the order in which they first come."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(str((entry["offset"], entry["noise"])), []).append(entry)
    return [dict(group[0]) | {kind: mean(e[kind] for e in group) for kind in KINDS} for group in groups.values()]


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows along each axis, means over objects; ``map`` is the grid with the same noise."""
    pose, time, others = (
        averaged([with_tuple(entry) for result in results.values() for entry in result[name]])
        for name in ("pose", "time", "others")
    )
    rows = [line("azimuth", a, lookup(pose, (0.0, a))) for e, a in unique(pose) if e == 0]
    rows += [line("elevation", e, lookup(pose, (e, 0.0))) for e, a in unique(pose) if a == 0 and e != 0]
    rows += [line("timestep", dt, lookup(time, dt)) for dt in unique(time)]
    rows.append(line("another object", None, {"own": others[0]}))
    near = [entry for entry in pose if max(map(abs, entry["offset"])) <= 10 and entry["offset"] != (0.0, 0.0)]
    least = {
        f"{noise} noise, {kind}": min(e[kind] for e in near if e["noise"] == noise)
        for noise in NOISES
        for kind in KINDS
    }
    side = max(abs(a) for e, a in unique(pose) if e == 0)
    far, here = lookup(pose, (0.0, side))["same"], lookup(pose, (0.0, 0.0))["own"]
    return {
        "rows": rows,
        "findings": [
            f"Within 10 degrees of elevation and azimuth the similarity is at least {least['same noise, raw']:.3f} "
            f"(same noise) and {least['own noise, raw']:.3f} (each view its own noise, as in SDS); at {side:.0f} "
            f"degrees it is {far['raw']:.3f} (same noise), and between different objects {others[0]['raw']:.3f}.",
            f"With the features' common mean taken away it is at least {least['same noise, centred']:.3f} (same "
            f"noise) and {least['own noise, centred']:.3f} (own noise) within 10 degrees, {far['centred']:.3f} at "
            f"{side:.0f} degrees, {others[0]['centred']:.3f} between different objects.",
            f"Another noise alone, pose and timestep equal, lowers it to {here['raw']:.3f} ({here['centred']:.3f} "
            "without the mean).",
            f"Position k = {POSITION}; means over {len(results)} objects, timesteps and sides. Views come from scenes "
            "distilled for this; the common mean is that of other objects' true views at the same timestep.",
        ],
        "within_10": least,
        "others": {kind: others[0][kind] for kind in KINDS},
        "far": {"azimuth": side, **{kind: far[kind] for kind in KINDS}},
        "map": [entry for entry in pose if entry["noise"] == "same"],
    }


def with_tuple(entry: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    offset = entry["offset"]
    return dict(entry) | {"offset": tuple(offset) if isinstance(offset, list) else offset}


def unique(entries: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Offsets in rising order, each once."""
    return sorted({entry["offset"] for entry in entries})


def lookup(entries: Sequence[Mapping[str, Any]], offset: Any) -> dict[str, Mapping[str, Any]]:
    """The entries of one offset by their noise."""
    return {entry["noise"]: entry for entry in entries if entry["offset"] == offset}


def line(axis: str, offset: Any, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the table."""
    row: dict[str, Any] = {"along": axis, "offset": offset}
    for kind in KINDS:
        for noise in NOISES:
            row[f"{kind}, {noise} noise"] = entries[noise][kind] if noise in entries else None
    return row


def plot(summary: dict[str, Any], path: Path) -> None:
    """Two maps over elevation and azimuth offsets, and the curve over timesteps."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), layout="constrained")
    cells = {tuple(entry["offset"]): entry for entry in summary["map"]}
    elevations = sorted({e for e, a in cells})
    azimuths = sorted({a for e, a in cells if all((other, a) in cells for other in elevations)})
    for axis, kind in zip(axes, KINDS, strict=False):
        values = [[cells[e, a][kind] for a in azimuths] for e in elevations]
        image = axis.imshow(values, origin="lower", aspect="auto", cmap="viridis")
        axis.set_xticks(range(len(azimuths)), [f"{a:g}" for a in azimuths])
        axis.set_yticks(range(len(elevations)), [f"{e:g}" for e in elevations])
        axis.set(xlabel="azimuth, degrees", ylabel="elevation, degrees", title=f"cosine similarity, {kind}")
        figure.colorbar(image, ax=axis)
    later = [row for row in summary["rows"] if row["along"] == "timestep"]
    for kind in KINDS:
        for noise in NOISES:
            name = f"{kind}, {noise} noise"
            axes[2].plot([row["offset"] for row in later], [row[name] for row in later], marker="o", label=name)
    axes[2].set(xlabel="later timestep by", title="the same view")
    axes[2].legend(fontsize=7)
    save(figure, path)
