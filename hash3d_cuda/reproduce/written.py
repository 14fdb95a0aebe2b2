"""What an experiment leaves: JSON, Markdown and a picture each, and one README with all of them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

from hash3d_cuda.reproduce.base import Context
from hash3d_cuda.reproduce.registry import EXPERIMENTS
from hash3d_cuda.reproduce.runner import UNITS
from hash3d_cuda.sds.outputs import write_json

INDEX, README = "reproduce.json", "README.md"
FORMAT = 1


def check_folder(out: Path, names: Sequence[str]) -> None:
    """Refuses a folder in which somebody else's files have the names that ours need.

    Raises:
        ValueError: naming them.
        OSError: the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {str(out)!r} is a file; name a folder")
    ours = own_files(out)
    needed = [INDEX, README, UNITS, *(f"{name}.{ending}" for name in names for ending in ("json", "md", "png"))]
    foreign = [name for name in needed if name not in ours and os.path.lexists(out / name)]
    if foreign:
        raise ValueError(
            f"out: {str(out)!r} holds {', '.join(foreign)}, which hash3d reproduce did not write; "
            "choose another folder or move that away"
        )
    out.mkdir(parents=True, exist_ok=True)
    replace_json({"format": FORMAT, "files": sorted({*ours, *needed})}, out / INDEX)


def own_files(out: Path) -> list[str]:
    """Names in ``out`` that its index says are ours."""
    try:
        index = json.loads((out / INDEX).read_text("utf-8"))
        return [str(name) for name in index["files"]] if index["format"] in range(1, FORMAT + 1) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_experiment(
    module: ModuleType, context: Context, results: dict[str, dict[str, Any]], command: str
) -> dict[str, Any]:
    """Sums one experiment up and writes ``ID.json``, ``ID.md`` and ``ID.png``; returns the JSON's content."""
    summary = module.summarise(context, results)
    content = {
        "id": module.ID, "title": module.TITLE, "paper": module.PAPER, "command": command, "machine": machine(),
        "date": date.today().isoformat(), "quick": context.quick, "objects": list(context.objects),
        "steps": context.steps, "seed": context.seed, "prior": context.prior_name,
        "device": context.device, "scale": context.scale, "summary": summary,
        "seconds": "processor time of one thread" if context.device == "cpu" else "wall clock",
    }  # fmt: skip
    picture = context.out / f"{module.ID}.png"
    module.plot(summary, picture)
    (context.out / f"{module.ID}.md").write_text(markdown(content), encoding="utf-8")
    replace_json(content, context.out / f"{module.ID}.json")
    write_readme(context.out)
    return content


def write_readme(out: Path) -> None:
    """All experiments in the folder, in the paper's order, on one page."""
    pages = [out / f"{name}.md" for name in EXPERIMENTS if (out / f"{name}.json").is_file()]
    parts = ["# The paper's tables and figures, measured anew\n", *(page.read_text("utf-8") for page in pages)]
    (out / README).write_text("\n".join(parts), encoding="utf-8")


def markdown(content: Mapping[str, Any]) -> str:
    """One experiment for people."""
    summary = content["summary"]
    objects = ", ".join(content["objects"])
    lines = [
        f"## {content['title']}", "",
        *table_lines(summary["rows"]), "",
        *(f"- {finding}" for finding in summary["findings"]), "",
        f"The paper: {paper_text(content['paper'])}", "",
        f"![{content['title']}]({content['id']}.png)", "",
        f"{content['date']}, {content['machine']}; {content['prior']}, {content['device']}; objects: {objects}; "
        f"seed {content['seed']}; seconds are {content['seconds']}{'; quick' if content['quick'] else ''}.", "",
        "```text", content["command"], "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as a Markdown table; the columns are those of all rows in the order in which they first come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in rows]


def cell(value: Any) -> str:
    """One value of a table; what is not known is a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    size = abs(value)
    return f"{value:.0f}" if size >= 1000 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"


def paper_text(paper: Any) -> str:
    """The paper's claim as text: its words, or its numbers as they stand."""
    if isinstance(paper, str):
        return paper
    if isinstance(paper, Mapping):
        return "; ".join(f"{name}: {paper_text(value)}" for name, value in paper.items())
    if isinstance(paper, (list, tuple)):
        return ", ".join(paper_text(value) for value in paper)
    return str(paper)


def replace_json(values: Any, path: Path) -> None:
    """Writes beside and renames: the file is the old one or the new one, never half of it."""
    beside = path.with_suffix(".tmp")
    write_json(values, beside)
    os.replace(beside, path)


def machine() -> str:
    """Processor, cores and torch's version."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"
