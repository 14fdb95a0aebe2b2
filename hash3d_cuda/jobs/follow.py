"""What becomes of jobs that others work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .claims import DONE, FAILED, Attempt, Ledger
from .files import Job


class Follower:
    """Tells, in a worker's words, what has happened since it looked last.

    Args:
        jobs: which.
        ledger: who works on what.
        say: told one line at a time.
    """

    def __init__(self, jobs: Sequence[Job], ledger: Ledger, say: Callable[[str], None]) -> None:
        self._ledger, self._say = ledger, say
        self._left = [job for job in jobs if not ledger.status(job).over]
        self._told = {job.name: len(story(ledger.attempts(job))) for job in self._left}

    def look(self) -> None:
        """Looks at all jobs that were not over last time."""
        for job in self._left:
            lines = story(self._ledger.attempts(job))
            for line in lines[self._told[job.name] :]:
                self._say(f"{job.name}: {line}")
            self._told[job.name] = len(lines)
        self._left = [job for job in self._left if not self._ledger.status(job).over]


def story(attempts: Sequence[Attempt]) -> list[str]:
    """A job's attempts as lines; later ones are added at the end."""
    lines = []
    for attempt in attempts:
        lines.append("started" if attempt.number == 1 else f"attempt {attempt.number}")
        if attempt.end is not None:
            how = attempt.end["how"]
            lines.append(f"failed: {attempt.end.get('error')}" if how == FAILED else "done" if how == DONE else how)
        elif attempt.number < len(attempts):
            lines.append("its worker ended without a word")
    return lines
