"""Limits on what an entry may serve: age, change of the shallow features, similarity; and an eta that is moved."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from hash3d_cuda.reproduce import studies
from hash3d_cuda.reproduce.ablations import ABLATIONS
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.studies import run_of
from hash3d_cuda.reproduce.summary import change, over_objects, plot_bars, row, signed
from hash3d_cuda.reproduce.sweep import BASELINE

ID = "gates"
TITLE = "Limits on what an entry may serve"
PAPER = {"claim": "only similar features are reused (Eq. 8); entries do not age"}
QUALITY = "quality-0.95"
NAMES = ("age-10", "age-40", "change-0.05", "change-0.1", "change-0.2", "similarity-0.99", "target-0.2", QUALITY)
TRIED = {"eta": 0.9, "grids": "stretched"}


def units(context: Context) -> list[Unit]:
    """One sweep per object, at an eta at which reuse costs something."""
    return studies.units(context, ID, [{"ablation": name, **TRIED} for name in ("default", *NAMES)])


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row each; what a limit is worth is its change of PSNR beside its x."""
    found = studies.of(results, ID)
    rows = [row(found, BASELINE, cache="no cache"), row(found, run_of("default", TRIED), cache="no limit")]
    rows += [row(found, run_of(name, TRIED), cache=ABLATIONS[name].label) for name in NAMES]
    plain = rows[1]
    listed = "; ".join(
        f"{one['cache']}: x {one['x']:.3f}, {signed(change(found, run_of(name, TRIED)))} dB"
        for name, one in zip(NAMES, rows[2:], strict=True)
    )
    return {
        "rows": rows,
        "findings": [
            f"At eta {TRIED['eta']:g} without a limit x is {plain['x']:.3f} and PSNR changes by "
            f"{signed(plain['PSNR change, dB'])} dB. With one: {listed}.",
            held(found),
            studies.NOTE,
        ],
    }


def held(found: dict[str, Any]) -> str:
    """Whether the error that a target of quality allows is what the run had, by its own audits."""
    runs = over_objects(found, run_of(QUALITY, TRIED))
    told = [(run["x"], one) for run in runs for one in run.get("control") or () if one["mean_error"] is not None]
    if not told:
        return f"{ABLATIONS[QUALITY].label}: no audit found anything that could have been served."
    error, eta = (mean(one[name] for _, one in told) for name in ("mean_error", "eta"))
    had, allowed = mean(x * one["mean_error"] for x, one in told), 1 - told[0][1]["target_quality"]
    return (
        f"{ABLATIONS[QUALITY].label}: by its audits a view that could be served had a relative error of {error:.3f}, "
        f"which with x makes {had:.3f} over all views ({allowed:.3f} allowed); eta ended at {eta:.2f}."
    )


def plot(summary: dict[str, Any], path: Path) -> None:
    """Bars of what is served and what it costs."""
    names = ("x", "PSNR change, dB")
    plot_bars({r["cache"]: {name: r[name] for name in names} for r in summary["rows"]}, names, path)
