"""The figures on the pages, set from committed results: ``python -m docs.figures``; with ``--check`` it only looks.

A passage is a piece of a page with its figures left out; where they come from stands beside it, in the modules here.
So a new result changes the pages by command, and a figure that the results do not give cannot stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
_HOLE = re.compile(r"\{:?([^{}]*)\}")
_FIGURE = r"([-+−]?\d(?:[\d.,]*\d)?%?)"


class FigureError(Exception):
    """A passage that no page has, or a result that no file has."""


@dataclass(frozen=True)
class Passage:
    """``text``: words of the page, with a format in braces for each figure; ``values()`` gives them in order."""

    page: str
    text: str
    values: Callable[[], Sequence[Any]]

    def find(self, page: str) -> re.Match[str]:
        """Where the page has it; line breaks and indents are the page's own."""
        words = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in _HOLE.split(self.text)[::2]]
        found = list(re.finditer(_FIGURE.join(words), page))
        if len(found) != 1:
            raise FigureError(f"{self.page} has {len(found)} passages {self.text!r}, expected one")
        return found[0]

    def written(self) -> list[str]:
        """The figures as the page should have them."""
        try:
            forms, values = _HOLE.findall(self.text), list(self.values())
        except (KeyError, ValueError, StopIteration) as error:
            problem = f"{type(error).__name__}: {error}"
            raise FigureError(f"{self.page}: no figures for {self.text!r} in the results ({problem})") from error
        if len(forms) != len(values):
            raise FigureError(f"{self.page}: {len(values)} values for {len(forms)} figures in {self.text!r}")
        return [
            value if isinstance(value, str) else format(value, form) for form, value in zip(forms, values, strict=True)
        ]

    def set(self, page: str) -> str:
        """The page with the figures that the results give."""
        match = self.find(page)
        for number, figure in reversed(list(enumerate(self.written(), start=1))):
            page = page[: match.start(number)] + figure + page[match.end(number) :]
        return page


@cache
def load(name: str) -> Any:
    """A JSON file of ``benchmarks/results``."""
    try:
        return json.loads((RESULTS / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FigureError(f"benchmarks/results/{name} cannot be read: {error}") from error


def rows(name: str) -> Iterator[dict[str, str]]:
    """The rows of all tables in a Markdown file of ``benchmarks/results``, by the heads of their columns."""
    head: list[str] = []
    try:
        lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FigureError(f"benchmarks/results/{name} cannot be read: {error}") from error
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells or re.fullmatch("[-:]+", cells[0]):
            head = head if cells else []
        elif not head:
            head = cells
        else:
            yield dict(zip(head, cells, strict=True))


def pick(found: Sequence[dict[str, Any]] | Iterator[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The only row with these cells; a keyword's underscores stand for spaces."""
    asked = {name.replace("_", " "): value for name, value in wanted.items()}
    right = [row for row in found if all(row.get(name) == value for name, value in asked.items())]
    if len(right) != 1:
        raise FigureError(f"{len(right)} rows have {asked}, expected one")
    return right[0]


def update(passages: Sequence[Passage], root: Path, check: bool = False) -> list[str]:
    """Sets the figures on the pages and returns the passages that had other ones."""
    stale, pages = [], {}
    for name in sorted({passage.page for passage in passages}):
        page = (root / name).read_text(encoding="utf-8")
        for passage in (one for one in passages if one.page == name):
            found = list(passage.find(page).groups())
            if found != (written := passage.written()):
                stale.append(f"{name}: {passage.text!r} has {', '.join(found)}; the results give {', '.join(written)}")
            page = passage.set(page)
        pages[name] = page
    if stale and not check:  # nothing is written where a passage is missing
        for name, page in pages.items():
            (root / name).write_text(page, encoding="utf-8")
    return stale
