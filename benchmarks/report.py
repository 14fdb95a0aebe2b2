"""Turns pytest-benchmark's JSON into Markdown, for the page that quotes it.

hash3d bench --json results.json && python benchmarks/report.py results.json > benchmarks/results/cpu.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = ("Benchmark", "Median", "GB/s", "Per second", "Against", "Its median", "Ratio", "Bound")


def row(name: str, median: float, extra: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    rival = extra.get("rival_median")
    ratio, items = extra.get("ratio"), extra.get("items_per_s")
    return (
        name.removeprefix("test_"),
        duration(median),
        f"{extra['gb_per_s']:.1f}" if "gb_per_s" in extra else "",
        quantity(items) if items is not None else "",
        extra.get("against", ""),
        duration(rival) if rival is not None else "",
        f"{ratio:.3f}" if ratio is not None else "",
        extra.get("limit", ""),
    )


def duration(seconds: float) -> str:
    """Three figures and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def quantity(number: float) -> str:
    """A rate in millions or thousands."""
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


def markdown(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table; the names and rivals to the left, figures to the right."""
    sides = ["---" if name in ("Benchmark", "Against", "Bound") else "--:" for name in COLUMNS]
    return ["| " + " | ".join(line) + " |" for line in (COLUMNS, tuple(sides), *rows)]


def plain(rows: list[tuple[str, ...]]) -> list[str]:
    """The same table for a terminal."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in (COLUMNS, *rows)]


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    return ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)


def document(result: dict[str, Any]) -> str:
    """A page: the machine, when, and a table for each file of benchmarks."""
    lines = [f"Machine: {machine_line(result['machine_info'].get('hash3d', {}))}.", "", f"Run: {result['datetime']}."]
    groups: dict[str, list[tuple[str, ...]]] = {}
    for found in result["benchmarks"]:
        groups.setdefault(found["group"], []).append(row(found["name"], found["stats"]["median"], found["extra_info"]))
    for group, rows in groups.items():
        lines += ["", f"## {group.removeprefix('test_')}", "", *markdown(rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/report.py RESULTS.json")
    print(document(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
