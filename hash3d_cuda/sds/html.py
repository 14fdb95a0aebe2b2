"""Building blocks of the reports: one page, no script, no outside file; plots are hand-drawn SVG."""

# ruff: noqa: E501  (markup reads better unbroken)

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from torch import Tensor

COLOURS = {
    "render": "#5b8def", "encode": "#4bb3c6", "decode": "#2f6f8f", "unet_full": "#e07a5f", "unet_hit": "#3fa796",
    "table": "#8e6bbf", "backward": "#e9b44c", "optimizer": "#b98a2f", "other": "#9aa3ad",
}  # fmt: skip
NAMES = {
    "render": "render", "encode": "encode", "decode": "decode", "unet_full": "U-Net, full", "unet_hit": "U-Net, hit",
    "table": "table", "backward": "backward", "optimizer": "optimizer", "other": "other",
}  # fmt: skip

STYLE = """
:root{--ink:#1d2733;--soft:#667486;--line:#e3e8ee;--paper:#fff;--back:#f4f6f9;--accent:#3fa796}
@media(prefers-color-scheme:dark){:root{--ink:#e8edf3;--soft:#9aa7b6;--line:#2c3846;--paper:#18212c;--back:#10171f}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 48px}
h1{margin:0;font-size:30px;letter-spacing:-.02em}
h2{margin:0 0 14px;font-size:17px}
.lead{margin:4px 0 22px;color:var(--soft)}
section{background:var(--paper);border:1px solid var(--line);border-radius:14px;padding:20px 22px;margin:0 0 18px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:12px;margin:0 0 18px}
.card{background:var(--paper);border:1px solid var(--line);border-radius:14px;padding:12px 16px}
.card b{display:block;font-size:23px;letter-spacing:-.02em;font-variant-numeric:tabular-nums;white-space:nowrap}
.card span{color:var(--soft);font-size:13px}
.row{display:flex;flex-wrap:wrap;gap:22px;align-items:flex-start}
.row>figure{flex:0 0 auto}.row>.wide{flex:1 1 340px;min-width:0}
figure{margin:0}figcaption{color:var(--soft);font-size:13px;margin-top:6px}
img{border-radius:10px;border:1px solid var(--line);background:#fff;display:block;max-width:100%}
.views{display:grid;grid-template-columns:repeat(8,1fr);gap:8px}
.views img{width:100%}.views figcaption{font-size:12px;margin-top:3px;text-align:center}
.bar{display:flex;height:26px;border-radius:8px;overflow:hidden}.bar i{display:block}
.key{display:flex;flex-wrap:wrap;gap:6px 18px;margin-top:10px;font-size:13px;color:var(--soft)}
.key i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
td,th{padding:5px 10px 5px 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:500}td.n,th.n{text-align:right}
.two{display:grid;align-items:start;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:0 36px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}
.note{border-left:4px solid #e9b44c;padding-left:12px}
@media(max-width:640px){.views{grid-template-columns:repeat(4,1fr)}}
"""


def page(title: str, lead: str, body: Sequence[str]) -> str:
    """A whole HTML document."""
    title = title[:1].upper() + title[1:]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f'<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{"".join(body)}</main></body></html>\n'
    )


def section(title: str, *content: str) -> str:
    """A titled box."""
    return f"<section><h2>{escape(title)}</h2>{''.join(content)}</section>"


def cards(figures: Mapping[str, str]) -> str:
    """Large figures with their captions."""
    items = (
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in figures.items()
    )
    return f'<div class="cards">{"".join(items)}</div>'


def figure(source: str, caption: str, width: int | None = None, alt: str = "") -> str:
    """A picture from a data URI."""
    size = f' width="{width}"' if width else ""
    return f'<figure><img src="{source}" alt="{escape(alt or caption)}"{size}><figcaption>{escape(caption)}</figcaption></figure>'


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A plain table; all columns but the first are numbers when there is a head."""
    kind = ' class="n"' if head else ""

    def line(cells: Sequence[str], tag: str) -> str:
        first, rest = cells[0], "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell in cells[1:])
        return f"<tr><th>{escape(first)}</th>{rest}</tr>"

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f"<table>{top}<tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table>"


def time_bar(split: Mapping[str, float], scale: float | None = None) -> str:
    """Stacked bar of seconds by part; ``scale`` seconds are the full width (default: their sum)."""
    total = sum(split.values()) or 1.0
    full = scale or total
    parts = "".join(
        f'<i style="width:{100 * seconds / full:.2f}%;background:{COLOURS[name]}" title="{NAMES[name]}: {seconds:.1f} s"></i>'
        for name, seconds in split.items()
    )
    keys = "".join(
        f'<span><i style="background:{COLOURS[name]}"></i>{NAMES[name]} {duration(seconds)} ({seconds / total:.0%})</span>'
        for name, seconds in split.items()
        if seconds > 0
    )
    return f'<div class="bar">{parts}</div><div class="key">{keys}</div>'


def line_plot(steps: Sequence[float], lines: Mapping[str, tuple[str, Sequence[float]]], last_step: int) -> str:
    """Shares (0 to 1) over steps as SVG; ``lines`` maps a caption to its colour and values."""
    width, height, left, right, top, bottom = 860, 250, 46, 12, 10, 34
    peak = max((max(values, default=0.0) for _, values in lines.values()), default=0.0)
    ceiling = next(c for c in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if peak <= c * 0.98 or c == 1.0)

    def at(step: float, value: float) -> str:
        x = left + (width - left - right) * step / max(last_step, 1)
        return f"{x:.1f},{height - bottom - (height - top - bottom) * value / ceiling:.1f}"

    grid = []
    for share in range(5):
        value = ceiling * share / 4
        y = at(0, value).split(",")[1]
        grid.append(f'<line x1="{left}" x2="{width - right}" y1="{y}" y2="{y}" stroke="var(--line)"/>')
        grid.append(f'<text x="{left - 8}" y="{float(y) + 4}" text-anchor="end">{value:.0%}</text>')
        step = round(last_step * share / 4)
        grid.append(f'<text x="{at(step, 0).split(",")[0]}" y="{height - 12}" text-anchor="middle">{step}</text>')
    curves = [
        f'<polyline fill="none" stroke="{colour}" stroke-width="2.5" stroke-linejoin="round" '
        f'points="{" ".join(at(s, v) for s, v in zip(steps, values, strict=True))}"/>'
        for colour, values in lines.values()
    ]
    key = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, (colour, _) in lines.items()
    )
    drawing = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="shares over steps">{"".join(grid + curves)}</svg>'
    )
    return f'{drawing}<div class="key">{key}</div>'


def png_uri(image: Tensor, side: int | None = None) -> str:
    """float [3,H,W] in 0..1 as a PNG data URI, enlarged to ``side`` pixels across when given."""
    from PIL import Image

    from hash3d_cuda.sds.outputs import to_picture

    picture = to_picture(image)
    if side and side > picture.width:
        picture = picture.resize((side, side * picture.height // picture.width), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def file_uri(path: Path, kind: str) -> str:
    """A file's bytes as a data URI of the MIME type ``kind``."""
    return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode()


def duration(seconds: float) -> str:
    """Seconds for people: ``0.42 s``, ``17.3 s``, ``4 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def size_text(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
