"""What reuse costs, from benchmarks/results/quality-seeds.json: the table that docs/quality.md shows.

python benchmarks/reuse_cost.py
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "quality-seeds.json"
VIEWS = 800  # of one run: 400 steps of 2
Pair = tuple[dict[str, Any], dict[str, Any]]  # the run without a cache, and the one with it


def pairs(runs: Sequence[dict[str, Any]], grids: str) -> list[Pair]:
    """Runs of one object from one seed, without a cache and with these grids."""
    by_name = {(run["name"], run["seed"], run["tag"]): run for run in runs}
    return [(by_name[name, seed, "plain"], run) for (name, seed, tag), run in by_name.items() if tag == grids]


def row(grids: str, seeds: str, found: Sequence[Pair]) -> str:
    """One line of the table; the plus-minus is the standard error over the runs."""
    psnr = [cached["psnr"] - plain["psnr"] for plain, cached in found]
    ssim = [cached["ssim"] - plain["ssim"] for plain, cached in found]
    error = statistics.stdev(psnr) / math.sqrt(len(psnr))
    x = statistics.mean(cached["served"]["hits"] / VIEWS for _, cached in found)
    change = f"{statistics.mean(psnr):.3f} ± {error:.3f}"
    return f"| `{grids}` | {seeds} | {len(found)} | {x:.1%} | {change} | {statistics.mean(ssim):.4f} |"


def table() -> list[str]:
    """The lines, a row per seed and one for all."""
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
    lines = ["| grids | seeds | runs | x | change of PSNR, dB | change of SSIM |", "|---|---|---|---|---|---|"]
    for grids in ("paper", "pose"):
        found = pairs(runs, grids)
        for seed in sorted({cached["seed"] for _, cached in found}):
            lines.append(row(grids, str(seed), [pair for pair in found if pair[1]["seed"] == seed]))
        lines.append(row(grids, "all", found))
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
