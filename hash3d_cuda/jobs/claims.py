"""Who works on what: files in a folder that all workers see, and nothing else.

    STATE/NAME/N.claim    attempt N at the job: who, where; made once, atomically, by one worker only
    STATE/NAME/N.beat     a number that grows while that worker lives
    STATE/NAME/N.end      how the attempt ended: done, failed or interrupted

An attempt without an end is somebody's work in progress, or that of a dead worker. A worker on the same machine is seen
to be dead by its process; on another one by a beat that stands still for ``lease`` seconds of the watcher's own clock,
so that clocks need not agree. Then attempt N + 1 is anybody's. No lock is ever held, nothing needs a server, and a
worker that only seemed dead finds attempt N + 1 claimed and lets go.

A claim also says what the job was then. Attempts at what is now another job of that name do not count.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .files import Job
from .processes import is_alive, own_process, place

DONE, FAILED, INTERRUPTED = "done", "failed", "interrupted"


class ClaimLost(RuntimeError):
    """This worker was taken for dead, and another one has the job."""


class Status(enum.Enum):
    """What is to be said of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether nobody will work on it again."""
        return self in (Status.DONE, Status.FAILED)


class Attempt(NamedTuple):
    """One attempt as its files say: ``claim`` and, when it has ended, ``end``."""

    number: int
    claim: dict[str, Any]
    end: dict[str, Any] | None


class Claim(NamedTuple):
    """An attempt that is this worker's."""

    job: Job
    number: int


class Ledger:
    """The state of all jobs.

    Args:
        folder: made if missing; every worker must see it. Atomic there must be: making a hard link, or opening a new
            file exclusively.
        retries: attempts, beyond the first, that may fail or end with their worker; interrupted ones do not count.
        lease: seconds.
        keep: a job of that name that is done stays done, whatever it was.
    """

    def __init__(self, folder: Path, retries: int = 2, lease: float = 60.0, keep: bool = False):
        self.folder, self.retries, self.lease, self.keep = folder, retries, lease, keep
        self.worker = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._beats: dict[tuple[str, int], tuple[Any, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, job: Job) -> Claim | None:
        """Claims a job that nobody works on and that is not over; None when it is not to be had."""
        attempts = self.attempts(job)
        if self._status(job, attempts) is not Status.WAITING:
            return None
        number = len(attempts) + 1
        about = {"worker": self.worker, "place": place(), "process": own_process()}
        about |= {"digest": job.digest, "asked": job.asked}
        path = self._path(job, number, "claim")
        path.parent.mkdir(exist_ok=True)
        return Claim(job, number) if create(path, about) else None

    def end(self, claim: Claim, how: str, error: str = "", final: bool = False) -> None:
        """Says how an attempt ended; ``final``: it would fail again."""
        about = {"how": how, "error": error, "final": final, "worker": self.worker}
        create(self._path(claim.job, claim.number, "end"), about)

    def status(self, job: Job) -> Status:
        """Where a job stands."""
        return self._status(job, self.attempts(job))

    def attempts(self, job: Job) -> list[Attempt]:
        """All attempts so far, in order."""
        found: list[Attempt] = []
        while (claim := read(self._path(job, len(found) + 1, "claim"))) is not None:
            found.append(Attempt(len(found) + 1, claim, read(self._path(job, len(found) + 1, "end"))))
        return found

    def error(self, job: Job) -> str:
        """The last failure's, in one line; empty without one."""
        for attempt in reversed(self.attempts(job)):
            if attempt.end is not None and attempt.end.get("error"):
                return attempt.end["error"]
            if attempt.end is None and self._is_dead(job, attempt):
                return f"its worker {attempt.claim.get('worker')} ended without a word"
        return ""

    def changed(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that were begun as others than they are now."""
        started = ((job, self.attempts(job)) for job in jobs)
        return [job for job, attempts in started if attempts and not is_of(attempts[-1], job)]

    def differences(self, job: Job) -> list[str]:
        """In what a job differs from the one that was begun, by name; empty where that is not known."""
        attempts, now = self.attempts(job), job.asked or {}
        then = (attempts[-1].claim.get("asked") if attempts else None) or {}
        return sorted(name for name in {*then, *now} if then.get(name) != now.get(name)) if then else []

    @contextlib.contextmanager
    def heart(self, claim: Claim) -> Iterator[Heart]:
        """While entered, the claim's beat goes on."""
        following = self._path(claim.job, claim.number + 1, "claim")
        heart = Heart(self._path(claim.job, claim.number, "beat"), following, self.lease / 6)
        try:
            yield heart
        finally:
            heart.stop()

    def _status(self, job: Job, attempts: Sequence[Attempt]) -> Status:
        if not attempts:
            return Status.WAITING
        last = attempts[-1]
        if last.end is None and not self._is_dead(job, last):
            return Status.RUNNING
        if last.end and last.end["how"] == DONE and (self.keep or is_of(last, job)):
            return Status.DONE
        own = list(itertools.takewhile(lambda attempt: is_of(attempt, job), reversed(attempts)))[::-1]
        if not own:
            return Status.WAITING
        ends = [attempt.end or {"how": FAILED} for attempt in own]  # no end: its worker's was
        failures = sum(end["how"] == FAILED for end in ends)
        if ends[-1]["how"] == FAILED and (ends[-1].get("final") or failures > self.retries):
            return Status.FAILED
        return Status.WAITING

    def _is_dead(self, job: Job, attempt: Attempt) -> bool:
        """Whether an attempt without an end is nobody's."""
        if attempt.claim.get("place") == place():
            return not is_alive(attempt.claim.get("process"))
        beat = read(self._path(job, attempt.number, "beat"))
        seen, since = self._beats.get((job.name, attempt.number), (None, 0.0))
        if since == 0.0 or beat != seen:
            self._beats[job.name, attempt.number] = beat, time.monotonic()
            return False
        return time.monotonic() - since > self.lease

    def _path(self, job: Job, number: int, kind: str) -> Path:
        return self.folder / job.name / f"{number}.{kind}"


def is_of(attempt: Attempt, job: Job) -> bool:
    """Whether an attempt was at the job as it is now."""
    return attempt.claim.get("digest") == job.digest


class Heart(threading.Thread):
    """Writes the beat, and looks whether somebody took the job over meanwhile."""

    def __init__(self, path: Path, following: Path, interval: float):
        super().__init__(daemon=True)
        self._path, self._following, self._interval = path, following, interval
        self._stopping = threading.Event()
        self.lost, self._looked = False, time.monotonic()
        self.start()

    def run(self) -> None:
        beat = 0
        while not self._stopping.is_set():
            self._look()
            with contextlib.suppress(OSError):  # a full disk is the run's to report
                self._path.write_text(json.dumps({"beat": beat}))
            beat += 1
            self._stopping.wait(self._interval)

    def check(self) -> None:
        """Raises ClaimLost when the job is another worker's by now."""
        if time.monotonic() - self._looked > 2 * self._interval:  # this process stood still, and the thread with it
            self._look()
        if self.lost:
            raise ClaimLost(f"{self._path.parent.name}: another worker took this one for dead and goes on with the job")

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def _look(self) -> None:
        self.lost = self.lost or self._following.exists()
        self._looked = time.monotonic()


def create(path: Path, values: dict[str, Any]) -> bool:
    """Makes a file with JSON in it that nobody sees in part; False when it is there already."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_text(json.dumps(values))
    try:
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(values, file)
            return True
        except FileExistsError:
            return False
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; an empty one where it is still being written, None without the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
