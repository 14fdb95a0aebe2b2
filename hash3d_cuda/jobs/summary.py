"""One table of all jobs: printed, and as JSON, Markdown and HTML."""

from __future__ import annotations

import html
import json
import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .claims import Ledger, Status
from .files import TAKEN, Job

COLUMNS = ("job", "status", "attempts", "steps", "seconds", "hit rate", "x", "PSNR", "SSIM", "error")
STYLE = "body{font:14px sans-serif}td,th{padding:.2em .7em;text-align:left;border-bottom:1px solid #ccc}"


def summarise(jobs: Sequence[Job], ledger: Ledger, out: Path) -> dict[str, Any]:
    """The jobs' states and, of those that are done, what their ``metrics.json`` says."""
    rows = [summary_of(job, ledger, out / job.name) for job in jobs]
    counts = Counter(row["status"] for row in rows)
    return {"counts": {status.value: counts[status.value] for status in Status}, "jobs": rows}


def summary_of(job: Job, ledger: Ledger, folder: Path) -> dict[str, Any]:
    """One row; numbers are None where there are none."""
    from hash3d_cuda.sds.replace import METRICS, is_metrics, read_json

    status = ledger.status(job)
    row: dict[str, Any] = dict.fromkeys(("steps", "seconds", "hit_rate", "x", "psnr", "ssim"))
    row = {"job": job.name, "status": status.value, "attempts": len(ledger.attempts(job)), **row, "error": ""}
    metrics = read_json(folder / METRICS)
    if status is Status.DONE and is_metrics(metrics):
        quality = metrics.get("quality") or {}
        row |= {"steps": metrics["steps"], "seconds": metrics["time"]["total_s"]}
        row |= {name: metrics["cache"].get(name) for name in ("hit_rate", "x")}
        row |= {name: quality.get(name) for name in ("psnr", "ssim")}
    elif status is not Status.DONE:
        row["error"] = ledger.error(job)
    return row


def write_summary(summary: Mapping[str, Any], out: Path) -> None:
    """Writes ``summary.json``, ``.md`` and ``.html`` into ``out``, each in one go, for several workers may do so."""
    texts = (json.dumps(summary, indent=1) + "\n", markdown(summary), page(summary))
    for name, text in zip(TAKEN, texts, strict=True):
        draft = out / f".{name}.{uuid.uuid4().hex}"
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, out / name)


def table_text(summary: Mapping[str, Any]) -> str:
    """For a terminal: the rows in columns, then how many ended how."""
    lines = [COLUMNS, *map(cells, summary["jobs"])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*rows, tally(summary)])


def tally(summary: Mapping[str, Any]) -> str:
    """How many jobs are in which state, in one line."""
    return ", ".join(f"{count} {status}" for status, count in summary["counts"].items() if count) or "no jobs"


def markdown(summary: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, summary["jobs"])]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{body}\n\n{tally(summary)}\n"


def page(summary: Mapping[str, Any]) -> str:
    """The table as a page; a job that is done links to its report."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "\n".join(f"<tr>{html_row(row)}</tr>" for row in summary["jobs"])
    return (
        f'<!doctype html><meta charset="utf-8"><title>jobs</title><style>{STYLE}</style>\n'
        f"<p>{tally(summary)}</p>\n<table><tr>{head}</tr>\n{body}\n</table>\n"
    )


def html_row(row: Mapping[str, Any]) -> str:
    """One row's cells."""
    name, *rest = map(html.escape, cells(row))
    link = f'<a href="{name}/report.html">{name}</a>' if row["status"] == Status.DONE.value else name
    return "".join(f"<td>{cell}</td>" for cell in (link, *rest))


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row as texts, in the order of ``COLUMNS``."""

    def figure(name: str, form: str) -> str:
        return "" if row[name] is None else format(row[name], form)

    return (
        row["job"], row["status"], str(row["attempts"]), figure("steps", "d"), figure("seconds", ".1f"),
        figure("hit_rate", ".1%"), figure("x", ".1%"), figure("psnr", ".2f"), figure("ssim", ".3f"), row["error"],
    )  # fmt: skip
