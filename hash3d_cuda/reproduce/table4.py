"""Table 4: one constant grid against the choice among three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hash3d_cuda.reproduce import studies
from hash3d_cuda.reproduce.ablations import ABLATIONS
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.studies import PAPER as LETTER
from hash3d_cuda.reproduce.studies import STRONG, run_of
from hash3d_cuda.reproduce.summary import change, plot_bars, row, signed
from hash3d_cuda.reproduce.sweep import BASELINE

ID = "table-4"
TITLE = "Table 4: adaptive and constant grids"
PAPER = {
    "CLIP-G/14, DreamFusion": {
        "(10, 10, 0.1, 10)": 0.408, "(20, 20, 0.15, 20)": 0.345, "(30, 30, 0.2, 30)": 0.287, "adaptive": 0.411,
    },
    "claim": "larger grids reduce quality, smaller ones match less often and save less time",
}  # fmt: skip
CONSTANT = ("constant-fine", "constant-middle", "constant-coarse")


def units(context: Context) -> list[Unit]:
    """The constant grids, and the default of figure 9."""
    return [*studies.grids(context), *studies.etas(context)]


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows at the paper's settings and at stronger ones."""
    constant, adaptive = studies.of(results, "grids"), studies.of(results, "eta")
    rows = [row(constant, BASELINE, cells="no cache", eta="-", grids="-")]
    findings = []
    for how in (LETTER, STRONG):
        these = [row(constant, run_of(name, how), cells=ABLATIONS[name].label, **how) for name in CONSTANT]
        these.append(row(adaptive, run_of("default", how), cells="adaptive", **how))
        rows += these
        told = ", ".join(f"x {r['x']:.3f} and {signed(r['PSNR change, dB'])} dB ({r['cells']})" for r in these)
        findings.append(f"At eta {how['eta']:g}, {how['grids']} grids: {told}.")
    fine, coarse = (change(constant, run_of(name, STRONG)) for name in (CONSTANT[0], CONSTANT[-1]))
    if fine is not None and coarse is not None:
        findings.append(f"The coarsest cells cost {fine - coarse:.2f} dB more than the finest ones.")
    return {"rows": rows, "findings": [*findings, studies.NOTE]}


def plot(summary: dict[str, Any], path: Path) -> None:
    """Bars of x and of the change of PSNR."""
    bars = {f"{r['cells']}, eta {r['eta']}": {n: r[n] for n in ("x", "PSNR change, dB")} for r in summary["rows"]}
    plot_bars(bars, ("x", "PSNR change, dB"), path)
