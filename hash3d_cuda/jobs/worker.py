"""A worker: takes one job after the other until all are over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .claims import DONE, FAILED, INTERRUPTED, Claim, ClaimLost, Ledger
from .files import Job

IDLE, LONGEST_IDLE = 0.5, 15.0  # seconds between two looks for work: the first, and when there is none for long


class Asked(Protocol):
    """Whether an end was asked for, such as :class:`hash3d_cuda.sds.interrupt.Interrupt`."""

    requested: bool


def work(
    jobs: Sequence[Job],
    ledger: Ledger,
    make: Callable[[Claim, Callable[..., None]], Any],
    asked: Asked,
    say: Callable[[str], None],
    is_final: Callable[[Exception], bool] = lambda error: False,
    one_line: Callable[[Exception], str] = str,
    first: int = 0,
) -> None:
    """Works until every job is over, other workers' included, or an end is asked for.

    Args:
        jobs: in the order in which they are taken; every worker has the same.
        ledger: who works on what.
        make: makes one object; it is handed the claim and what to call after every step, which raises ClaimLost. What
            it returns has ``interrupted``.
        asked: looked at between jobs; ``make`` looks itself.
        say: told what happens, one line at a time.
        is_final: whether a job that ended with this exception would do so again.
        one_line: an exception as the summary shows it.
        first: where to begin; workers that begin in different places are not in each other's way.
    """
    left, idle = [*jobs[first:], *jobs[:first]], IDLE
    while left and not asked.requested:
        claim = next((found for job in left if (found := ledger.take(job)) is not None), None)
        if claim is not None:
            work_on(claim, ledger, make, say, is_final, one_line)
            idle = IDLE
            continue
        left = [job for job in left if not ledger.status(job).over]
        wait(idle if left else 0.0, asked)
        idle = min(2 * idle, LONGEST_IDLE)


def wait(seconds: float, asked: Asked) -> None:
    """Sleeps, but not on when an end is asked for."""
    end = time.monotonic() + seconds
    while (rest := end - time.monotonic()) > 0 and not asked.requested:
        time.sleep(min(rest, 0.2))


def work_on(
    claim: Claim,
    ledger: Ledger,
    make: Callable[[Claim, Callable[..., None]], Any],
    say: Callable[[str], None],
    is_final: Callable[[Exception], bool],
    one_line: Callable[[Exception], str],
) -> None:
    """One attempt, and a note of how it ended."""
    name, start = claim.job.name, time.monotonic()
    say(f"{name}: started" if claim.number == 1 else f"{name}: attempt {claim.number}")
    with ledger.heart(claim) as heart:
        try:
            result = make(claim, lambda *_: heart.check())
        except ClaimLost as error:
            say(str(error))
        except Exception as error:
            text = one_line(error)
            ledger.end(claim, FAILED, text, is_final(error))
            say(f"{name}: failed: {text}")
        except BaseException:
            ledger.end(claim, INTERRUPTED)
            raise
        else:
            ledger.end(claim, INTERRUPTED if result.interrupted else DONE)
            say(f"{name}: {'interrupted' if result.interrupted else 'done'} after {time.monotonic() - start:.0f} s")
