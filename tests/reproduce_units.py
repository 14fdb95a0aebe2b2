"""Units for tests of ``hash3d reproduce``, apart from them: a worker process imports what its units are from, and this
needs neither pytest nor diffusers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from hash3d_cuda.reproduce.base import Context

OBJECTS = ("chicken", "cactus")


def tiny_prior():
    from sds_stand_ins import TinyPrior

    return TinyPrior(size=64, vocabulary=OBJECTS)


def context(out: Path, **changes) -> Context:
    return Context(**{"out": out, "quick": True, "objects": OBJECTS, "steps": 4, "source": tiny_prior, **changes})


def double(context, number):
    """A unit's function."""
    with (context.out / "calls").open("a") as file:
        file.write(f"{number}\n")
    return {"double": 2 * number}


def break_at_three(context, number):
    if number == 3:
        raise ValueError("three is\ntoo much")
    return double(context, number)


def interrupt_at_three(context, number):
    if number == 3:
        raise KeyboardInterrupt
    return double(context, number)


def interrupt_the_command(context, number):
    os.kill(os.getppid(), signal.SIGINT)  # as Ctrl-C does; nobody waits for the rest of this unit
    time.sleep(600)


def sleep_for_ever(context, number):
    (context.out / "worker").write_text(str(os.getpid()))
    time.sleep(600)
