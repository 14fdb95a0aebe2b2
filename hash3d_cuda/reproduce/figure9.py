"""Figure 9: time and quality over the probability of a retrieval (and the views of figure 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hash3d_cuda.reproduce import studies
from hash3d_cuda.reproduce.ablations import PAPER_ETAS
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.studies import PAPER as LETTER
from hash3d_cuda.reproduce.studies import STRONG, run_of
from hash3d_cuda.reproduce.summary import change, curve, pictures, plot_time_and_quality, row, signed
from hash3d_cuda.reproduce.sweep import BASELINE

ID = "figure-9"
TITLE = "Figure 9: probability of a retrieval, eta"
PAPER = {
    "claim": "run time falls as eta rises; below 0.3 the views get better, above it little time is gained; "
    "eta = 0.1 is chosen (DreamFusion)",
    "etas": list(PAPER_ETAS),
}


def units(context: Context) -> list[Unit]:
    """One sweep per object."""
    return studies.etas(context)


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row per eta, and the paper's grids to the letter for two of them."""
    found = studies.of(results, "eta")
    names = [run_of("default", {"eta": eta, "grids": "stretched"}) for eta in PAPER_ETAS]
    letter, strong = run_of("default", LETTER), run_of("default", {**STRONG, "grids": "paper"})
    rows = [row(found, BASELINE, eta="no cache", grids="-")]
    rows += [row(found, name, eta=eta, grids="stretched") for name, eta in zip(names, PAPER_ETAS, strict=True)]
    rows += [row(found, letter, eta=LETTER["eta"], grids="paper"), row(found, strong, eta=STRONG["eta"], grids="paper")]
    first, last = rows[1], rows[len(PAPER_ETAS)]
    return {
        "rows": rows,
        "findings": [
            f"From eta {PAPER_ETAS[0]:g} to {PAPER_ETAS[-1]:g}, x rises from {first['x']:.3f} to {last['x']:.3f}, the "
            f"speed-up of the loop from {first['speed-up']:.3f} to {last['speed-up']:.3f} (bound {last['bound']:.3f}), "
            f"and PSNR changes by {signed(change(found, names[0]))} and {signed(change(found, names[-1]))} dB against "
            "no cache.",
            f"The paper's grids to the letter at its eta of 0.1 serve x = {rows[-2]['x']:.3f} of the views of so short "
            f"a run: bound {rows[-2]['bound']:.3f}, PSNR {signed(change(found, letter))} dB.",
            studies.NOTE,
        ],
        "curve": curve(found, [BASELINE, *names], ["none", *PAPER_ETAS]),
        "pictures": pictures(found, {BASELINE: "no cache", names[2]: "eta 0.1", names[4]: "eta 0.5", names[5]: "0.7"}),
    }


def plot(summary: dict[str, Any], path: Path) -> None:
    """Bars of seconds, a line of PSNR."""
    plot_time_and_quality(summary["curve"], "eta (stretched grids)", path)
