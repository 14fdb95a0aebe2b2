"""The MACs of tables 1 and 2: those of the real U-Nets, counted without their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hash3d_cuda.bounds import unet_bound
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.summary import plot_bars

ID = "macs"
TITLE = "MACs of the real U-Nets"
PAPER = {"sd21": [678.60, 622.21], "zero123": [168.78, 154.76], "unit": "G per view, before and after"}
MODELS = ("sd21", "zero123")


def count(context: Context, model: str) -> dict[str, Any]:
    """Giga-MACs of one U-Net in the paper's convention, and by the operations that really run."""
    from hash3d_cuda.unet.cost import PAPER_ETA, PAPER_POSITION, paper_macs, unet_cost

    before, after = paper_macs(model)
    honest = unet_cost(model, positions=(PAPER_POSITION,))
    return {
        "before": before, "after": after, "full": honest.full_gmacs, "hit": honest.hit_gmacs[PAPER_POSITION],
        "r": honest.r[PAPER_POSITION], "eta": PAPER_ETA,
    }  # fmt: skip


def units(context: Context) -> list[Unit]:
    """One per model."""
    return [Unit(model, count, {"model": model}, 10.0) for model in MODELS]


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row per model."""
    rows, findings = [], []
    for model, found in results.items():
        before, after = PAPER[model]
        best = unet_bound(found["eta"], found["r"])
        rows.append({
            "model": model, "before_gmacs": round(found["before"], 2), "after_gmacs": round(found["after"], 2),
            "paper before": before, "paper after": after, "honest full": found["full"], "honest hit": found["hit"],
            "r": found["r"], "most that eta 0.1 gives": best,
        })  # fmt: skip
        findings.append(
            f"{model}: {found['before']:.2f} -> {found['after']:.2f} G in the paper's convention (two rows of "
            f"guidance, every retrieval a hit, attention's products uncounted); the paper says {before} -> {after}. "
            f"Counted as it runs, a row costs {found['full']:.1f} G and a hit {found['hit']:.1f} G, so eta 0.1 speeds "
            f"the U-Net up by {best:.3f} at most."
        )
    return {"rows": rows, "findings": findings}


def plot(summary: dict[str, Any], path: Path) -> None:
    """Bars before and after, ours and the paper's."""
    bars = {}
    for row in summary["rows"]:
        bars[f"{row['model']}, before"] = {"ours, G": row["before_gmacs"], "paper, G": row["paper before"]}
        bars[f"{row['model']}, with the cache"] = {"ours, G": row["after_gmacs"], "paper, G": row["paper after"]}
    plot_bars(bars, ("ours, G", "paper, G"), path)
