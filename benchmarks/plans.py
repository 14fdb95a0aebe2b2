"""What ``hash3d plan`` prints for the settings that pages show, into benchmarks/results/plans.json: a minute or two.

python benchmarks/plans.py
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

from hash3d_cuda.cli.main import main

RESULTS = Path(__file__).parent / "results" / "plans.json"
_DREAMFUSION = (
    "--elevation=-15,45 --radius 3,3.5 --timesteps 20,980 --vae KL-VAE --eta 0.5"  # stable-dreamfusion's ranges
)
COMMANDS = (
    "dreamfusion --eta 0.5",
    "dreamfusion --eta 0.5 --feature-dtype int8",
    "gaussian-dreamer --eta 0.5",
    "gaussian-dreamer --eta 0.5 --feature-dtype int8",
    "gaussian-dreamer --eta 0.5 --vae KL-VAE",
    "gaussian-dreamer --eta 0.5 --vae KL-VAE --memory-budget 16GiB",
    "gaussian-dreamer --eta 0.5 --vae KL-VAE --grids pose",
    "dreamgaussian --eta 0.5 --vae KL-VAE",
    "dreamgaussian --eta 0.5 --vae KL-VAE --grids pose",
    "dreamgaussian --eta 0.5 --vae KL-VAE --grids pose --unet sd21 --radius 2.5,2.5",
    f"{_DREAMFUSION} --steps 10000 --unet sd21",
    f"{_DREAMFUSION} --steps 3750 --unet zero123",
    "dreamfusion --eta 0.5 --memory-budget 8GiB --vae KL-VAE",
    "dreamfusion --eta 0.9 --grids 30,30,.5,100 --memory-budget 8GiB --vae KL-VAE",
    "zero123 --eta 0.5 --vae KL-VAE",
)


def printed(command: str) -> dict[str, str]:
    """The lines of the plan's table, by label."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(["plan", *shlex.split(command)])
    if status != 0:
        raise SystemExit(f"hash3d plan {command} ended with {status}")
    lines = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in said.getvalue().splitlines())
    return {line[0]: line[1] for line in lines if len(line) == 2}


if __name__ == "__main__":
    RESULTS.write_text(
        json.dumps({command: printed(command) for command in COMMANDS}, indent=1) + "\n", encoding="utf-8"
    )
    print(f"{RESULTS}: {len(COMMANDS)} plans")
