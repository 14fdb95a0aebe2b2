"""Figure 14: where the U-Net is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hash3d_cuda.reproduce import studies
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.studies import STRONG, run_of
from hash3d_cuda.reproduce.summary import change, curve, plot_time_and_quality, row, signed
from hash3d_cuda.reproduce.sweep import BASELINE

ID = "figure-14"
TITLE = "Figure 14: position of the cached feature"
PAPER = {
    "claim": "the nearer to the output, the less time and the slightly worse the views; the layer before the last "
    "up-sampling is chosen. The paper counts layers from the input; position k here counts up-resnets from the "
    "output, so its choice is k = 2."
}


def units(context: Context) -> list[Unit]:
    """One sweep per object."""
    return studies.positions(context)


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row per position, from the input to the output as in the paper."""
    found = studies.of(results, "positions")
    places = list(reversed(studies.cuts(context)))
    runs = [run_of(f"position-{k}", STRONG) for k in places]
    rows = [row(found, BASELINE, position="no cache")]
    rows += [row(found, run, position=k) for run, k in zip(runs, places, strict=True)]
    near, far = rows[-1], rows[1]
    return {
        "rows": rows,
        "findings": [
            f"From position {places[0]} (near the input) to {places[-1]} (near the output), the loop takes "
            f"{far['seconds']:.2f} and {near['seconds']:.2f} s (speed-ups {far['speed-up']:.3f} and "
            f"{near['speed-up']:.3f}, bounds {far['bound']:.3f} and {near['bound']:.3f}), and PSNR changes by "
            f"{signed(change(found, runs[0]))} and {signed(change(found, runs[-1]))} dB; at position 2 by "
            f"{signed(change(found, run_of('position-2', STRONG)))} dB.",
            f"The prior's U-Net has {len(places)} positions, and all of them were run, at eta {STRONG['eta']:g}.",
            studies.NOTE,
        ],
        "curve": curve(found, [BASELINE, *runs], ["none", *places]),
    }


def plot(summary: dict[str, Any], path: Path) -> None:
    """Bars of seconds, a line of PSNR."""
    plot_time_and_quality(summary["curve"], "position k (to the right: nearer to the output)", path)
