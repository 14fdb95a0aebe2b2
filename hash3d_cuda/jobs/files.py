"""The file of jobs: one JSON object per line. Everything that is wrong with it is said at once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}")
"""Of a folder, on whatever file system."""
TAKEN = ("summary.json", "summary.md", "summary.html")  # beside the folders


class BadJobs(ValueError):
    """What is wrong with lines, or with one; ``problems`` has a message for each fault."""

    def __init__(self, problems: list[str]):
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Job:
    """One line.

    Attributes:
        name: of the folder for its results, and so of the job.
        line: its number in the file, from 1.
        values: its other fields.
        asked: all that the result depends on, options that are for every job included; None: the fields.
    """

    name: str
    line: int
    values: dict[str, Any]
    asked: dict[str, Any] | None = None

    @property
    def digest(self) -> str:
        """Differs where the result may, whatever the order of the fields."""
        told = self.values if self.asked is None else self.asked
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def read_jobs(path: Path, check: Callable[[Job], dict[str, Any] | None] | None = None) -> list[Job]:
    """All jobs of a file, in its order; empty lines and lines that start with ``#`` are left out.

    Args:
        path: the file.
        check: called for each job; returns its ``asked``, and raises ValueError where its fields are wrong, BadJobs for
            several.

    Raises:
        OSError: the file cannot be read.
        BadJobs: with all that is wrong, ``path:line: what`` each.
    """
    jobs: dict[str, Job] = {}
    problems: list[str] = []
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadJobs([f"{path}: expected UTF-8, got byte {error.object[error.start]:#04x} at {error.start}"]) from None
    for number, text in enumerate(content.split("\n"), start=1):  # JSON's strings may hold what splitlines splits at
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        try:
            job = parse_line(text, number)
            if job.name in jobs:
                raise ValueError(f"out: {job.name!r} is also that of line {jobs[job.name].line}; give each its own")
            jobs[job.name] = job
            if check is not None:
                jobs[job.name] = replace(job, asked=check(job))
        except ValueError as error:
            found = error.problems if isinstance(error, BadJobs) else [str(error)]
            problems += [f"{path}:{number}: {' '.join(one.split())}" for one in found]
    if not jobs and not problems:
        problems.append(f"{path}: expected one JSON object per line, got an empty file")
    if problems:
        raise BadJobs(problems)
    return list(jobs.values())


def parse_line(text: str, number: int) -> Job:
    """One line as a job; raises ValueError."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"expected a JSON object, got {text.strip()[:40]!r} ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object in braces, got {text.strip()[:40]!r}")
    name = values.pop("out", None)
    if not isinstance(name, str) or not NAME.fullmatch(name) or name.endswith((".", " ")) or name in TAKEN:
        raise ValueError(
            f"out: expected the name of a folder (letters, digits, '_', '-', '.', spaces), got {name!r}; give each job "
            "one of its own"
        )
    return Job(name, number, values)
