"""The lines of :mod:`gpu`'s result, and its page."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def row(name: str, seconds: float, moved: int | None = None, rival: float | None = None, goal: str = "") -> Row:
    """One line of the result; ``moved`` bytes, ``rival`` seconds of what it is held against."""
    speed = None if moved is None else moved / seconds / 1e9
    ratio = None if rival is None else seconds / rival
    return {"name": name, "seconds": seconds, "gb_per_s": speed, "ratio": ratio, "goal": goal, "note": ""}


def document(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [", ".join(f"{name} {value}" for name, value in result["machine"].items()), ""]
    lines += ["| | us | GB/s | ratio | goal | |", "|---|--:|--:|--:|---|---|"]
    for found in result["rows"]:
        time_, speed, ratio = found["seconds"], found["gb_per_s"], found["ratio"]
        cells = [
            found["name"],
            "" if time_ is None else f"{time_ * 1e6:.2f}",
            "" if speed is None else f"{speed:.0f}",
            "" if ratio is None else f"{ratio:.3f}",
            found["goal"],
            f"{found['per_second'] / 1e6:.0f} M/s" if "per_second" in found else found["note"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"\nFAILED {part}" for part in result.get("failed", ()))])
