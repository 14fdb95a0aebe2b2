"""What share x of the views the cache serves, by timesteps, eta, steps, grids and slots: the table of docs/decide.md.

The real table goes through the views of threestudio's cameras, one a step, with features of one number: no GPU, no
weights, half a minute.

python benchmarks/served_shares.py
"""

from __future__ import annotations

from hash3d_cuda.plan import ViewRanges
from hash3d_cuda.plan.simulate import simulate
from hash3d_cuda.sds.settings import NAMED_GRIDS

SLOTS = {"402": 402, "1609": 1609, "all views": None}  # SD's and Zero123's entries in 2 GiB, at position 2
T_LOW = {"uniform": 20, "annealed": 300}
CASES = (
    ("uniform", 0.1, 10_000, "paper"), ("uniform", 0.5, 1000, "paper"), ("uniform", 0.5, 10_000, "paper"),
    ("uniform", 0.9, 10_000, "paper"), ("uniform", 0.5, 1000, "pose"), ("uniform", 0.5, 10_000, "pose"),
    ("annealed", 0.5, 1000, "paper"), ("annealed", 0.5, 10_000, "paper"), ("annealed", 0.5, 1000, "pose"),
    ("annealed", 0.5, 10_000, "pose"),
)  # fmt: skip


def row(schedule: str, eta: float, steps: int, grids: str) -> str:
    """One line of the table."""
    keys = ViewRanges(schedule=schedule, t_low=T_LOW[schedule], steps=steps).keys()
    runs = (simulate(keys, eta, grids=NAMED_GRIDS[grids], capacity=slots, coverage=False) for slots in SLOTS.values())
    return f"| {schedule}, {eta:g} | {steps:,} | {grids} | " + " | ".join(f"{run.x:.3f}" for run in runs) + " |"


def table() -> str:
    """The whole table."""
    head = "| timesteps, eta | steps | grids | " + " | ".join(f"x, slots: {name}" for name in SLOTS) + " |"
    return "\n".join([head, "|---" * (3 + len(SLOTS)) + "|", *(row(*case) for case in CASES)])


if __name__ == "__main__":
    print(table())
