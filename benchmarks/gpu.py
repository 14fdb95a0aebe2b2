"""What the table costs on a GPU, against device-to-device copies of the same bytes in the same run.

python benchmarks/gpu.py --json results.json      prints a page of Markdown

Calls are captured in CUDA graphs and timed with events, so no host time is in the figures. One graph works on so many
different entries that none is in the L2 cache when its turn comes, and so do the copies. ``--device cpu`` times plain
calls with a clock: that rehearses the script, its figures mean nothing. Where diffusers is installed, SD 1.5's U-Net
(random weights, float16, two rows of guidance) follows: full, hit, bare head and tail, as calls and as graphs, and then
whole steps of score distillation around it.

F = bytes of a feature, L = bytes of a latent in float32, Q = 3 candidates of one cell, M = 3 grids:

    query, one candidate            2 F + 2 L               a copy of F moves 2 F
    append, new cell                2 F + 2 L
    append, cell of Q               (Q + 2) F + 2 L
    look-up                         16 + M (8 + 16 Q) a key, and 16 for each entry found
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from axes import SD, TINY, ZERO123, Size, machine
from gpu_clock import Clock
from gpu_rows import Row, document
from gpu_steps import step_rows
from gpu_table import Case, lookup_rows, rival_rows, table_rows

import hash3d_cuda as h3d

SDXL = Size("SDXL", (2, 320, 128, 128), (4, 128, 128))
COLD = 256 << 20  # bytes of entries that one graph goes through: five times the L2 cache of an H100


def parts(device: str) -> list[tuple[str, Callable[[], list[Row]]]]:
    """What is measured, by name, what matters most first. Each part lets go of its memory when it is over."""
    if device == "cpu":  # a rehearsal
        clock, cold = Clock(device, rounds=2), 1 << 10
        cases = [(TINY, torch.float16, 1), (TINY, torch.float32, 2)]
        side, counts, small = 8, [100, 1000], {"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 8}
    else:
        clock, cold = Clock(device, rounds=30), COLD
        cases = [(SD, torch.float16, 1), (SD, torch.float32, 1), (SD, torch.bfloat16, 1)]
        cases += [(SD, torch.float16, batch) for batch in (2, 4, 8)]
        cases += [(size, torch.float16, batch) for size in (ZERO123, SDXL) for batch in (1, 2, 4, 8)]
        side, counts, small = 64, [10_000, 1_000_000, 10_000_000], {}

    def table(case: tuple[Size, torch.dtype, int]) -> tuple[str, Callable[[], list[Row]]]:
        return f"table, {case}", lambda: table_rows(Case(*case, device, cold), clock)

    first, *others = cases
    found = [
        table(first),
        ("look-ups", lambda: lookup_rows(clock, device, counts)),
        ("rivals", lambda: rival_rows(Case(*first, device, cold), clock)),
    ]
    if importlib.util.find_spec("diffusers") is not None:
        found.append(("U-Net", lambda: step_rows(clock, device, side, **small)))
    return found + [table(case) for case in others]


def measure(device: str, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All rows; a part that fails is named, and the others go on. ``save`` is called with the result after each."""
    result: dict[str, Any] = {"machine": machine() | {"device": device}, "rows": [], "failed": []}
    for name, part in parts(device):
        try:
            result["rows"] += part()
        except Exception as error:
            traceback.print_exc()
            result["failed"].append(f"{name}: {type(error).__name__}: {error}")
        save(result)
    return result


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="where the figures go, after each part of them")
    parser.add_argument("--markdown", type=Path, help="where the page goes that is printed in the end, likewise")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not (torch.cuda.is_available() and h3d.HashTable.supports("cuda")):
        sys.exit("no CUDA device, or a build without its kernels; --device cpu rehearses the script")

    def save(result: dict[str, Any]) -> None:
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
        if options.markdown is not None:
            options.markdown.write_text(document(result) + "\n", encoding="utf-8")

    result = measure(options.device, save)
    print(document(result))
    sys.exit(f"{len(result['failed'])} part(s) failed" if result["failed"] else 0)


if __name__ == "__main__":
    main()
