"""``hash3d compare`` of one object, as docs/quality.md shows it, into benchmarks/results/compare.json: ten minutes.

OMP_NUM_THREADS=1 python benchmarks/compare_runs.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from axes import machine

from hash3d_cuda.cli.main import main

RESULTS = Path(__file__).parent / "results" / "compare.json"
SETTINGS = [(grids, eta) for eta in ("0.5", "0.9") for grids in ("paper", "pose")]
FIGURES = (
    "speed_up",
    "unet_speed_up",
    "drift",
    "hit_rate",
    "x",
    "hit_cost_r",
    "unet_share_of_step",
    "bound_unet",
    "bound_step",
)


def compared(grids: str, eta: str) -> dict[str, Any]:
    """What one command's compare.json says, without its pictures and settings."""
    words = ["compare", "teddy bear", "--grids", grids, "--eta", eta, "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        if main([*words, "--out", folder, "--turntable-frames", "2", "--turntable-size", "32"]) != 0:
            raise SystemExit(f"hash3d {' '.join(words)} failed")
        told = json.loads((Path(folder) / "compare.json").read_text(encoding="utf-8"))
    return {
        "command": "hash3d " + " ".join(words),
        **{name: told[name] for name in FIGURES},
        "quality": told["quality"],
    }


if __name__ == "__main__":
    runs = {f"{grids} {eta}": compared(grids, eta) for grids, eta in SETTINGS}
    RESULTS.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n", encoding="utf-8")
    print(f"{RESULTS}: {len(runs)} comparisons")
