"""``report.html`` of one run: the object from all sides, the truth beside it when known, and where the time
went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hash3d_cuda.sds import html

ACCENT, SECOND = "#3fa796", "#5b8def"


def write_report(
    metrics: Mapping[str, Any], views: Tensor, truth: Tensor | None, folder: Path, image: Tensor | None = None
) -> None:
    """Writes ``folder/report.html``.

    Args:
        metrics: the content of ``metrics.json``.
        views, truth: float [16,3,S,S]; truth None when unknown.
        folder: holds ``turntable.webp`` already.
        image: float [3,S,S], the picture that was given, or None.
    """
    body = [
        html.cards(headline(metrics)),
        *(f'<section class="note">{note}</section>' for note in _notes(metrics)),
        _object_section(metrics, folder, image),
        html.section("Sixteen views, 30 degrees up", _views_grid(metrics, views, truth)),
        _cache_section(metrics),
        html.section("Where the time went", html.time_bar(metrics["time"]["split_s"]), _per_view_text(metrics["time"])),
        html.section("Settings", settings_tables(metrics)),
    ]
    views_per_step = metrics["settings"]["views_per_step"]
    lead = f"Score distillation with {metrics['prior']}, {metrics['steps']} steps of {views_per_step} views."
    (folder / "report.html").write_text(html.page(metrics["subject"]["label"], lead, body), encoding="utf-8")


def headline(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The large figures at the top."""
    cache, figures = metrics["cache"], {"in the loop": html.duration(metrics["time"]["total_s"])}
    if metrics["quality"]:
        figures["PSNR against the truth"] = f"{metrics['quality']['psnr']:.2f} dB"
        figures["SSIM against the truth"] = f"{metrics['quality']['ssim']:.3f}"
    if cache["enabled"]:
        figures["of retrievals hit"] = f"{cache['hit_rate']:.1%}"
        figures["of views from the cache (x)"] = f"{cache['x']:.1%}"
        figures["memory of the table"] = html.size_text(metrics["memory"]["table_bytes"])
    return figures


def settings_tables(metrics: Mapping[str, Any]) -> str:
    """Settings, counters and versions as two columns of rows."""
    settings = [(name.replace("_", " "), _value(value)) for name, value in metrics["settings"].items()]
    counters = [(name.replace("_", " "), _value(value)) for name, value in metrics["cache"].items()]
    counters += [(name.replace("_", " "), html.size_text(value)) for name, value in metrics["memory"].items()]
    counters += list(metrics["versions"].items())
    return f'<div class="two">{html.table(settings)}{html.table(counters)}</div>'


def _object_section(metrics: Mapping[str, Any], folder: Path, image: Tensor | None) -> str:
    turntable = html.figure(html.file_uri(folder / "turntable.webp", "image/webp"), "turntable", 288)
    given = "" if image is None else html.figure(html.png_uri(image, 288), "the picture that was given", 288)
    quality, rows = metrics["quality"], []
    if quality:
        worst, best = min(quality["psnr_per_view"]), max(quality["psnr_per_view"])
        rows = [
            ("PSNR, mean of 16 views", f"{quality['psnr']:.2f} dB"),
            ("PSNR, worst and best view", f"{worst:.2f} and {best:.2f} dB"),
            ("SSIM, mean of 16 views", f"{quality['ssim']:.3f}"),
        ]
    cache, time = metrics["cache"], metrics["time"]
    rows += [("one step", f"{1000 * time['per_step_s']:.1f} ms")]
    if cache["enabled"]:
        rows += [("views: hit, missed, bypassed", f"{cache['hits']}, {cache['misses']}, {cache['bypasses']}")]
    if time["hit_cost_r"] is not None:
        rows += [("cost of a hit (r), of a full pass", f"{time['hit_cost_r']:.1%}")]
    return html.section(
        "The object", f'<div class="row">{turntable}{given}<div class="wide">{html.table(rows)}</div></div>'
    )


def _views_grid(metrics: Mapping[str, Any], views: Tensor, truth: Tensor | None) -> str:
    def cell(image: Tensor, caption: str) -> str:
        return html.figure(html.png_uri(image), caption)

    turn = 360 / len(views)
    if truth is None:
        cells = [cell(view, f"{turn * k:g}°") for k, view in enumerate(views)]
        return f'<div class="views">{"".join(cells)}</div>'
    rows, scores = [], metrics["quality"]["psnr_per_view"]
    for start in range(0, len(views), 8):
        chosen = range(start, min(start + 8, len(views)))
        rows += [cell(views[k], f"{turn * k:g}°: {scores[k]:.1f} dB") for k in chosen]
        rows += [cell(truth[k], "truth") for k in chosen]
    return f'<div class="views">{"".join(rows)}</div>'


def _cache_section(metrics: Mapping[str, Any]) -> str:
    if not metrics["cache"]["enabled"]:
        return html.section("Cache", "<p>This run left the U-Net alone (no cache).</p>")
    history = metrics["history"]
    lines = {
        "hit rate: hits of all retrievals so far": (ACCENT, history["hit_rate"]),
        "x: views served from the cache so far": (SECOND, history["x"]),
    }
    return html.section("Hit rate over steps", html.line_plot(history["step"], lines, metrics["steps"]))


def _per_view_text(time: Mapping[str, Any]) -> str:
    full, hit = time["unet_full_per_view_s"], time["unet_hit_per_view_s"]
    text = "" if full is None else f"One view through the whole U-Net: {1000 * full:.1f} ms"
    text += "" if hit is None else f"; served from the cache: {1000 * hit:.1f} ms without the table's own time"
    if (estimate := time["without_cache"]) is not None:
        text += (
            f". Without the cache the U-Net would be {estimate['unet_share']:.0%} of a step, so at most "
            f"{estimate['bound_step']:.2f}x at this x and {estimate['bound_step_at_x_1']:.2f}x were every view served; "
            f"by this run's own full passes it was about {estimate['speed_up']:.2f}x (hash3d compare measures it)"
        )
    return f'<p class="lead" style="margin:14px 0 0">{text}.</p>' if text else ""


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    notes = [html.escape(note) for note in metrics.get("notes", [])]
    if metrics["interrupted"]:
        notes.insert(0, f"Interrupted at step {metrics['steps']} of {metrics['settings']['steps']}; --resume goes on.")
    return notes


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, tuple) and all(isinstance(one, str) for one in value):
        return ", ".join(value) or "none"
    if isinstance(value, list):
        return "; ".join(", ".join(f"{v:g}" for v in item) for item in value)
    return "default" if value is None else str(value)
