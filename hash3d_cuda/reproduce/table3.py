"""Table 3: hashing against storing all features, in time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hash3d_cuda.keys import PAPER_GRIDS
from hash3d_cuda.options import TableOptions
from hash3d_cuda.reproduce import studies
from hash3d_cuda.reproduce.ablations import ABLATIONS, PAPER_VIEWS
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.studies import STRONG, run_of
from hash3d_cuda.reproduce.summary import average, change, over_objects, plot_bars, row, signed
from hash3d_cuda.reproduce.sweep import BASELINE

ID = "table-3"
TITLE = "Table 3: hashing or storing all features"
PAPER = {
    "Zero-123 (NeRF), storing all": "11 min, 8 GB, CLIP-G/14 0.661",
    "Zero-123 (NeRF), hashing": "7 min, 6 GB, CLIP-G/14 0.665",
    "DreamFusion, storing all": "out of memory",
    "DreamFusion, hashing": "40 min, 8 GB, CLIP-G/14 0.411",
}
NAMES = ("store-all", "default", "bounded")
GIB, MIB = 2**30, 2**20


def units(context: Context) -> list[Unit]:
    """One sweep per object, shared with figures 10 and 12."""
    return studies.retrieval(context)


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row each with the table's bytes and the seconds spent in it. The index has as many buckets however short the
    run, so it is told apart from what grows with the entries."""
    found = studies.of(results, "retrieval")
    titles = {BASELINE: "no cache"} | {run_of(name, STRONG): title(name) for name in NAMES}
    rows = []
    for run, name in titles.items():
        runs = over_objects(found, run)
        memory = {
            "entries, MiB": average(runs, "slots_bytes") / MIB,
            "index, MiB": (average(runs, "table_bytes") - average(runs, "slots_bytes")) / MIB,
        }
        rows.append(row(found, run, retrieval=name) | memory | {"seconds in the table": average(runs, "table_seconds")})
    every, hashed, bounded = (run_of(name, STRONG) for name in NAMES)
    all_row, hash_row, small_row = rows[1:]
    full = at_full_size()
    return {
        "rows": rows,
        "findings": [
            f"Storing all: {all_row['entries, MiB']:.1f} MiB, {all_row['seconds in the table']:.2f} s in the table, "
            f"PSNR {signed(change(found, every))} dB at x = {all_row['x']:.3f}; hashing: "
            f"{hash_row['seconds in the table']:.2f} s, {signed(change(found, hashed))} dB at x = {hash_row['x']:.3f}; "
            f"hashing in {small_row['entries, MiB']:.1f} MiB: {signed(change(found, bounded))} dB at x = "
            f"{small_row['x']:.3f}.",
            f"At full size (SD 2.1, float16, guidance, position 2) one entry is {full['entry_mib']:.2f} MiB, so that "
            f"storing all of DreamFusion's {PAPER_VIEWS:,} views needs {full['all_gib']:.1f} GiB, more than an RTX "
            f"A5000's 24; a table of 2 GiB is constant and holds {full['slots']} entries. Computed, not run.",
            studies.NOTE,
        ],
        "full_size": full,
    }


def title(name: str) -> str:
    """For the table."""
    return {"default": "hashing, room for every view", "bounded": "hashing, a quarter of that"}.get(
        name, ABLATIONS[name].label
    )


def at_full_size() -> dict[str, Any]:
    """Bytes of the paper's DreamFusion: features [2,320,64,64] in float16, latents [4,64,64] (its section 3.2)."""
    options = TableOptions.build(
        (2, 320, 64, 64), (4, 64, 64), grids=PAPER_GRIDS, num_buckets=100_003, queue_length=3, capacity=None,
        memory_budget="2GiB", match="cell", weighting="softmax", similarity_decay=0.9, initial_similarity=1.0,
        min_similarity=None, azimuth_period=360.0, feature_dtype=torch.float16, device="cpu",
    )  # fmt: skip
    size = options.slot_bytes
    return {"entry_mib": size / MIB, "all_gib": PAPER_VIEWS * size / GIB, "slots": options.resolve_capacity()}


def plot(summary: dict[str, Any], path: Path) -> None:
    """Bars of memory, time and quality."""
    names = ("entries, MiB", "seconds", "PSNR change, dB")
    plot_bars({r["retrieval"]: {name: r[name] for name in names} for r in summary["rows"]}, names, path)
