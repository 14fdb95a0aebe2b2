"""``report.html`` of a comparison: both objects turning side by side, the figures, and the time bars to one
scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hash3d_cuda.sds import html
from hash3d_cuda.sds.compare import bound_sentence, table_rows
from hash3d_cuda.sds.report import ACCENT, SECOND

TITLES = {"without": "without cache", "with": "with cache"}
SHOWN = 8


def write_compare_report(figures: Mapping[str, Any], results: Mapping[str, Any], folder: Path) -> None:
    """Writes ``folder/report.html``; ``results`` holds both runs' results by the names of ``RUNS``."""
    runs, settings = figures["runs"], figures["settings"]
    body = [
        html.cards(_headline(figures)),
        html.section("Side by side", _turntables(folder), html.table(table_rows(figures), ("", "without", "with", ""))),
        html.section("What the cache could give at most", f"<p>{html.escape(bound_sentence(figures))}</p>"),
        html.section("Where the time went", _bars(runs)),
        html.section("Views", _views({name: result.views for name, result in results.items()})),
        html.section("Hit rate over steps", _plot(runs["with"])),
    ]
    run = f"{settings['steps']} steps from seed {settings['seed']}, eta {settings['eta']:g}"
    lead = f"{figures['prior']}; {run}."
    title = f"{figures['subject']['label']}: without and with the cache"
    (folder / "report.html").write_text(html.page(title, lead, body), encoding="utf-8")


def _headline(figures: Mapping[str, Any]) -> dict[str, str]:
    cards = {"speed-up of the loop": f"{figures['speed_up']:.2f}x"}
    if figures["bound_step"] is not None:
        cards["bound at this x"] = f"{figures['bound_step']:.2f}x"
    cards |= {
        "of retrievals hit": f"{figures['hit_rate']:.1%}",
        "of views from the cache (x)": f"{figures['x']:.1%}",
    }
    quality = figures["quality"]
    if quality["with"] and quality["without"]:
        cards["PSNR, with minus without"] = f"{quality['with']['psnr'] - quality['without']['psnr']:+.2f} dB"
    return cards


def _turntables(folder: Path) -> str:
    source = html.file_uri(folder / "compare.webp", "image/webp")
    pair = html.figure(source, "left: without cache, right: with cache", 592)
    return f'<div class="row" style="margin-bottom:16px">{pair}</div>'


def _bars(runs: Mapping[str, Any]) -> str:
    scale = max(sum(one["time"]["split_s"].values()) for one in runs.values())
    return "".join(
        f'<p style="margin:10px 0 6px">{TITLES[name]}: {html.duration(one["time"]["total_s"])}</p>'
        + html.time_bar(one["time"]["split_s"], scale)
        for name, one in runs.items()
    )


def _views(views: Mapping[str, Tensor]) -> str:
    cells = []
    for name, images in views.items():
        stride = max(1, len(images) // SHOWN)
        cells += [html.figure(html.png_uri(image), TITLES[name]) for image in images[::stride][:SHOWN]]
    return f'<div class="views">{"".join(cells)}</div>'


def _plot(metrics: Mapping[str, Any]) -> str:
    history = metrics["history"]
    lines = {"hit rate": (ACCENT, history["hit_rate"]), "x": (SECOND, history["x"])}
    return html.line_plot(history["step"], lines, metrics["steps"])
