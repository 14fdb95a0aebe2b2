"""Whether a folder already holds what a run would make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hash3d_cuda.sds.checkpoint import find_checkpoint
from hash3d_cuda.sds.replace import METRICS, is_metrics, read_json
from hash3d_cuda.sds.settings import GenerateSettings


def find_unfinished(out: Path) -> Path | None:
    """The checkpoint of an unfinished run in ``out``, that of a recipe's first stage included; None without one."""
    return find_checkpoint(out) or find_checkpoint(out / "stage-1")


def finished_metrics(
    out: Path, settings: GenerateSettings, recipe: str | None = None, job: str | None = None
) -> Mapping[str, Any] | None:
    """The metrics of a complete run in ``out`` with these settings (a recipe's: of its last stage), or None.

    What it was asked for is compared for a ``job``, whose digest says it; else the folder must be one that only one
    subject is written to.
    """
    metrics = read_json(out / METRICS)
    if not is_metrics(metrics) or metrics.get("interrupted", True):
        return None
    if (metrics.get("recipe") or {}).get("name") != recipe or metrics["steps"] != settings.steps:
        return None
    if metrics.get("job") != job:
        return None
    saved = {**metrics["settings"], "device": settings.device}
    return metrics if saved == json.loads(json.dumps(settings.as_dict())) else None
