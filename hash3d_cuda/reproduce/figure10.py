"""Figure 10 (and 13): caching features against caching the predicted noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hash3d_cuda.reproduce import studies
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.studies import PAPER as LETTER
from hash3d_cuda.reproduce.studies import STRONG, run_of
from hash3d_cuda.reproduce.summary import change, pictures, plot_bars, row, signed
from hash3d_cuda.reproduce.sweep import BASELINE

ID = "figure-10"
TITLE = "Figure 10: hashing features or hashing noise"
PAPER = {"claim": "hashing noise is a little faster and lowers the CLIP score significantly (Zero123)"}


def units(context: Context) -> list[Unit]:
    """One sweep per object, shared with table 3 and figure 12."""
    return studies.retrieval(context)


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows: no cache, and both modes at the paper's settings and at stronger ones."""
    found = studies.of(results, "retrieval")
    rows = [row(found, BASELINE, cached="nothing", eta="-", grids="-")]
    for how in (LETTER, STRONG):
        for name, title in (("default", "features"), ("noise", "noise")):
            rows.append(row(found, run_of(name, how), cached=title, **how))
    features, noise = run_of("default", STRONG), run_of("noise", STRONG)
    one, two = rows[-2], rows[-1]
    return {
        "rows": rows,
        "findings": [
            f"At eta {STRONG['eta']:g}, x is {one['x']:.3f} with features and {two['x']:.3f} with noise; PSNR changes "
            f"by {signed(change(found, features))} dB with features and {signed(change(found, noise))} dB with noise, "
            f"the loop is {one['speed-up']:.3f} and {two['speed-up']:.3f} times as fast.",
            studies.NOTE,
        ],
        "bars": {
            f"{r['cached']}, eta {r['eta']}": {
                "seconds": r["seconds"], "PSNR change, dB": r["PSNR change, dB"], "SSIM": float(r["SSIM"].split()[0]),
            }
            for r in rows
            if "SSIM" in r
        },
        "pictures": pictures(found, {BASELINE: "no cache", features: "features", noise: "noise"}),
    }  # fmt: skip


def plot(summary: dict[str, Any], path: Path) -> None:
    """Bars of time and quality."""
    plot_bars(summary["bars"], ("seconds", "PSNR change, dB", "SSIM"), path)
