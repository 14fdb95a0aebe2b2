"""What the paper leaves unsaid or its released code does otherwise: Q, n, bucket matches, the released indexing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hash3d_cuda.reproduce import studies
from hash3d_cuda.reproduce.ablations import ABLATIONS
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.studies import STRONG, run_of
from hash3d_cuda.reproduce.summary import change, plot_bars, row, signed
from hash3d_cuda.reproduce.sweep import BASELINE

ID = "ablations"
TITLE = "Further ablations: queue, buckets, match, released indexing"
PAPER = {"settings": "Q = 3; the number of buckets n and gamma are not given; a bucket's match is taken for a hit"}
NAMES = ("queue-1", "queue-10", "buckets-200", "buckets-1000", "bucket", "mean", "released")


def units(context: Context) -> list[Unit]:
    """The table's options, and the default of figure 9."""
    return [*studies.table(context), *studies.etas(context)]


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row each."""
    found, defaults = studies.of(results, "table"), studies.of(results, "eta")
    rows = [
        row(found, BASELINE, cache="no cache"),
        row(defaults, run_of("default", STRONG), cache='default: Q = 3, n = 100003, match="cell"'),
        *(row(found, run_of(name, STRONG), cache=ABLATIONS[name].label) for name in NAMES),
    ]
    released, ours = run_of("released", STRONG), run_of("default", STRONG)
    return {
        "rows": rows,
        "findings": [
            f"The released indexing calls {rows[-1]['hit rate']:.1%} of its retrievals hits and changes PSNR by "
            f"{signed(change(found, released))} dB; ours {rows[1]['hit rate']:.1%} and "
            f"{signed(change(defaults, ours))} dB.",
            "Modelled of the released code are its cells (elevation 20, azimuth 0.1, radius 10, timestep 20), n = 200, "
            "Q = 3 and that a bucket's match is a hit; its softmax(-norm) in the place of softmax(-norm^2) is not.",
            studies.NOTE,
        ],
    }


def plot(summary: dict[str, Any], path: Path) -> None:
    """Bars of what is served and what it costs."""
    names = ("hit rate", "x", "PSNR change, dB")
    plot_bars({r["cache"]: {name: r[name] for name in names} for r in summary["rows"]}, names, path)
