"""What torchrun, or another launcher that sets the same variables, tells a process about itself; no torch is needed."""

from __future__ import annotations

import os

DRIVEN = "HASH3D_DRIVEN"
"""Set for workers that a driver follows, such as those on a Ray cluster."""


def world_size() -> int:
    """How many processes torchrun, or what sets the same variables, started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_rank() -> int:
    """This process's number among them, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def restarted() -> bool:
    """Whether torchrun (``--max-restarts``) started these processes in the place of some that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def restarts_left() -> int:
    """How often torchrun would start these processes anew, were one to end with an error; 0 without it."""
    most, done = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("MAX_RESTARTS", "RESTART_COUNT"))
    return max(most - done, 0)


def driven() -> bool:
    """Whether this is a worker of a process elsewhere, which tells how it all went."""
    return DRIVEN in os.environ


def own_device(device: str) -> str:
    """``"cuda"`` as the one of this process among those on its machine; others as they are."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device
