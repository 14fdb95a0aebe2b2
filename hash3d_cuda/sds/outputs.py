"""Everything a run writes: prepared beside the old files, then swapped in, so a full disk costs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.prior.ground_truth import EVALUATION_POSES
from hash3d_cuda.sds.coverage import coverage
from hash3d_cuda.sds.metrics import (
    FORMAT,
    cache_metrics,
    control_metrics,
    history,
    image_quality,
    known_truth,
    memory_metrics,
    time_metrics,
    versions,
)
from hash3d_cuda.sds.replace import METRICS, RUN_FILES, staged

TURNTABLE_ELEVATION, TURNTABLE_RADIUS = 20.0, 2.0
BATCH = 4


def write_outputs(run: Any, folder: Path, interrupted: bool) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Renders the result and writes all files of one run.

    Returns:
        the evaluation views float [16,3,S,S], the turntable's frames float [F,3,T,T], and the metrics.

    Raises:
        OSError: a file cannot be written; what was in the folder before is still there.
    """
    from hash3d_cuda.sds.export import write_glb, write_ply, write_turntable, write_views
    from hash3d_cuda.sds.report import write_report

    size = run.prior.image_size
    views = render_views(run.scene, *torch.from_numpy(EVALUATION_POSES).float().unbind(-1), size)
    truth = known_truth(run.subject, size)
    turntable = render_turntable(run.scene, run.settings)
    metrics = run_metrics(run, views, truth, interrupted)
    with staged(folder) as stage:
        write_views(views, stage / "views")
        write_contact_sheet(views, stage / "contact-sheet.png")
        write_turntable(turntable, stage / "turntable.webp")
        write_ply(run.scene, stage / "scene.ply")
        notes = []
        try:
            write_glb(run.scene, stage / "mesh.glb")
        except ValueError as error:  # nothing dense enough for a surface, e.g. after a handful of steps
            notes.append(f"no mesh.glb: {error}")
        metrics["notes"] = notes
        metrics["files"] = [name for name in RUN_FILES if name in ("report.html", METRICS) or (stage / name).exists()]
        write_json(metrics, stage / METRICS)
        write_report(metrics, views, truth, stage, run.subject.image)
    return views, turntable, metrics


def run_metrics(run: Any, views: Tensor, truth: Tensor | None, interrupted: bool) -> dict[str, Any]:
    """The content of ``metrics.json``."""
    time, _ = time_metrics(run.log)
    subject = run.subject
    return {
        "format": FORMAT,
        "subject": {
            "label": subject.label, "name": subject.name,
            "kind": "name" if subject.image is None else "picture",
            "elevation": subject.elevation, "azimuth": subject.azimuth, "radius": subject.radius,
        },
        "prior": run.prior.name,
        "recipe": run.note.get("recipe"),
        "job": run.note.get("job"),
        "steps": run.step,
        "interrupted": interrupted,
        "settings": run.settings.as_dict(),
        "time": time,
        "cache": cache_metrics(run.served, *run.caches),
        "control": control_metrics(run.caches),
        "coverage": coverage(run.sampler, run.step),
        "memory": memory_metrics(run.caches, run.device),
        "quality": None if truth is None else image_quality(views, truth),
        "history": history(run.log),
        "versions": versions(),
    }  # fmt: skip


@torch.no_grad()
def render_views(scene: Any, elevation: Tensor, azimuth: Tensor, radius: Tensor, size: int) -> Tensor:
    """Pictures float [N,3,size,size] in 0..1 on the CPU from poses float [N] each."""
    device = next(scene.parameters()).device
    parts = zip(*(pose.split(BATCH) for pose in (elevation, azimuth, radius)), strict=True)
    images = [scene.render(*(p.to(device) for p in poses), size).image for poses in parts]
    return torch.cat(images).clamp(0, 1).float().cpu()


def render_turntable(scene: Any, settings: Any) -> Tensor:
    """Frames float [F,3,S,S] of one turn."""
    count = settings.turntable_frames
    azimuth = torch.arange(count) * (360.0 / count)
    elevation = torch.full_like(azimuth, TURNTABLE_ELEVATION)
    return render_views(scene, elevation, azimuth, torch.full_like(azimuth, TURNTABLE_RADIUS), settings.turntable_size)


def write_contact_sheet(views: Tensor, path: Path, columns: int = 8) -> None:
    """All views float [N,3,S,S] in one picture, row by row."""
    to_picture(tile(views, columns)).save(path)


def tile(views: Tensor, columns: int) -> Tensor:
    """Views float [N,3,S,S] as one picture float [3,rows*S,columns*S]; missing ones are white."""
    count, channels, size, _ = views.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    filler = views.new_ones(rows * columns - count, channels, size, size)
    grid = torch.cat([views, filler]).view(rows, columns, channels, size, size)
    return grid.permute(2, 0, 3, 1, 4).reshape(channels, rows * size, columns * size)


def to_picture(image: Tensor) -> Any:
    """float [3,H,W] in 0..1 to a ``PIL.Image``."""
    from PIL import Image

    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def write_json(values: Any, path: Path) -> None:
    """Indented JSON; NaN and infinity become null, which every reader accepts."""
    path.write_text(json.dumps(_plain(values), indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
