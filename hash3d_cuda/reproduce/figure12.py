"""Figure 12: without key hashing, without aggregation, and both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hash3d_cuda.reproduce import studies
from hash3d_cuda.reproduce.ablations import ABLATIONS
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.studies import STRONG, run_of
from hash3d_cuda.reproduce.summary import change, pictures, plot_pictures, row, signed
from hash3d_cuda.reproduce.sweep import BASELINE

ID = "figure-12"
TITLE = "Figure 12: key hashing and aggregation"
PAPER = {
    "claim": "without key hashing views are over-smooth and lack detail; without aggregation there are moiré "
    "patterns; the complete method has the highest fidelity (Zero123, NeRF; judged by eye)"
}
NAMES = ("no-keys", "no-aggregation", "default")


def units(context: Context) -> list[Unit]:
    """One sweep per object, shared with table 3 and figure 10."""
    return studies.retrieval(context)


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row each, and views."""
    found = studies.of(results, "retrieval")
    titles = {"none": "no cache", "default": "ours"} | {name: ABLATIONS[name].label for name in NAMES[:2]}
    runs = {BASELINE: titles["none"]} | {run_of(name, STRONG): titles[name] for name in NAMES}
    rows = [
        row(found, run, retrieval=title, eta="-" if run == BASELINE else STRONG["eta"]) for run, title in runs.items()
    ]
    served = ", ".join(f"{r['x']:.3f} ({r['retrieval']})" for r in rows[1:])
    changes = ", ".join(f"{signed(change(found, run))} dB ({title})" for run, title in list(runs.items())[1:])
    return {
        "rows": rows,
        "findings": [
            f"Change of PSNR against no cache: {changes}.",
            f"Share x of the views that were served: {served}. Where x differs, so does the time, and quality is not "
            "compared at equal cost.",
            studies.NOTE,
        ],
        "pictures": pictures(found, runs),
    }


def plot(summary: dict[str, Any], path: Path) -> None:
    """Rows of views."""
    plot_pictures(summary["pictures"], path, most=2)
