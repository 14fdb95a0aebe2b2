"""Which process this is, in a way that others on the same machine can tell whether it still runs."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any


def place() -> str:
    """Where process numbers mean the same: the machine, since it was started, and the container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def own_process() -> list[Any]:
    """This process: its number, and when it was started, for numbers come again."""
    return [os.getpid(), started(os.getpid())]


def is_alive(process: Any) -> bool:
    """Whether a process that :func:`own_process` named still runs."""
    try:
        number, since = process
        os.kill(number, 0)
    except (TypeError, ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return started(number) == since


def started(number: int) -> str | None:
    """A process's start, in the system's units; None where that cannot be known, or it is dead and not yet buried."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
