"""Reads the experiments' files for the claims: what is missing or has another shape is said, never guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOLDS, FAILS, PART = "holds", "does not hold", "holds in part"
NOT_HERE, NOT_RUN, NOT_JUDGED = "not measurable here", "not run", "run, but not judged"


@dataclass(frozen=True)
class Judgement:
    """What was measured, in words, and the verdict: one of the above, with a remark where it needs one."""

    measured: str
    verdict: str
    remark: str = ""


class Missing(Exception):
    """The results lack what a claim is judged by; the message says what."""


@dataclass
class Results:
    """The JSON of the experiments that were run, by their id; ``used`` collects those that a claim has read."""

    found: Mapping[str, Mapping[str, Any]]
    used: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Every experiment's JSON in ``folder``.

        Raises:
            ValueError: there is no such folder, or a file is damaged.
        """
        if not folder.is_dir():
            raise ValueError(f"results: {str(folder)!r} is no folder; name one that hash3d reproduce wrote")
        found = {}
        for path in sorted(folder.glob("*.json")):
            try:
                content = json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise ValueError(f"results: {str(path)!r} is damaged ({error}); run its experiment again") from None
            if isinstance(content, dict) and isinstance(content.get("summary"), dict) and "id" in content:
                found[content["id"]] = content
        return cls(found)

    def summary(self, name: str) -> Mapping[str, Any]:
        """One experiment's summary."""
        if name not in self.found:
            raise Missing(f"{name} was not run")
        if name not in self.used:
            self.used.append(name)
        return self.found[name]["summary"]

    def rows(self, name: str, **match: Any) -> list[Mapping[str, Any]]:
        """The experiment's rows with these values in these columns (``_`` stands for a space); at least one."""
        wanted = {column.replace("_", " "): value for column, value in match.items()}
        rows = [r for r in self.summary(name).get("rows", []) if all(r.get(c) == v for c, v in wanted.items())]
        if not rows:
            raise Missing(f"{name} has no row with {', '.join(f'{c} = {v}' for c, v in wanted.items()) or 'anything'}")
        return rows

    def row(self, name: str, **match: Any) -> Mapping[str, Any]:
        """The first of them."""
        return self.rows(name, **match)[0]

    def source(self, name: str) -> str:
        """Where an experiment's figures come from."""
        told = self.found[name]
        objects = told.get("objects") or []
        parts = [str(told.get("date", "no date")), str(told.get("machine", "unknown machine"))]
        parts += [f"{len(objects)} objects"] if objects else []
        parts += [f"{told['steps']} steps"] if told.get("steps") else []
        parts += [str(told["prior"])] if told.get("prior") else []
        parts += ["quick"] if told.get("quick") else []
        return f"{name} ({', '.join(parts)}): `{told.get('command', 'no command')}`"


def number(values: Mapping[str, Any], column: str) -> float:
    """A figure of a row; of ``"26.05 ± 3.1"`` the mean.

    Raises:
        Missing: the column is absent or no number.
    """
    value = values.get(column)
    if isinstance(value, str):
        match = re.match(r"[-+]?\d+(\.\d+)?", value)
        value = float(match[0]) if match else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Missing(f"the column {column!r} holds no number")
    return float(value)
