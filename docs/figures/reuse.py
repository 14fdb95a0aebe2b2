"""Figures of `hash3d reproduce frontier` and `mismatch`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from docs.figures import FigureError, Passage, load, pick

REUSE = "docs/reuse.md"


def frontier(run: str) -> dict[str, Any]:
    """A run of ``hash3d reproduce frontier``."""
    return pick(load("reuse/frontier.json")["summary"]["rows"], run=run)


def frontier_row(title: str, run: str) -> Passage:
    """A line of the table under "What it buys"."""
    names = ("x", "U-Net speed-up", "speed-up", "bound", "PSNR change, dB", "SSIM change")
    text = f"| {title} | {{:.3f}} | {{:.2f}}x | {{:.2f}}x | {{:.2f}}x | {{:+.2f}} | {{:+.3f}} |"
    return Passage(REUSE, text, lambda: [frontier(run)[name] for name in names])


def lost(run: str) -> float:
    """dB that reuse costs against the same views without the cache."""
    return frontier("anchored-85-no-cache")["PSNR change, dB"] - frontier(run)["PSNR change, dB"]


def decibels(*runs: str) -> Sequence[float]:
    return [frontier(run)["PSNR change, dB"] for run in runs]


def mismatch(differs: str) -> float:
    """How much larger the answer's error is."""
    return pick(load("reuse/mismatch.json")["summary"]["rows"], differs=differs)["error"]


def gates_row(option: str, cache: str) -> Passage:
    """A line of the table of limits."""
    names = ("x", "PSNR change, dB", "speed-up")
    row = pick(load("reuse/gates.json")["summary"]["rows"], cache=cache)
    return Passage(REUSE, f"| {option} | {{:.3f}} | {{:+.2f}} | {{:.2f}}x |", lambda: [row[name] for name in names])


def gates_prices() -> list[float]:
    """dB that each tenth of x costs, by limit."""
    found = load("reuse/gates.json")["summary"]["rows"]
    limited = [pick(found, cache=cache) for _, cache in LIMITS]
    return [row["PSNR change, dB"] / (-10 * row["x"]) for row in limited]


def told(name: str, pattern: str) -> list[float]:
    """Figures out of an experiment's findings."""
    for finding in load(f"reuse/{name}.json")["summary"]["findings"]:
        if found := re.search(pattern, finding):
            return [float(figure) for figure in found.groups()]
    raise FigureError(f"no finding of {name} has {pattern!r}")


def int8() -> float:
    """The largest change of any object's PSNR, as the findings say it."""
    return max(map(abs, told("frontier", r"int8 .* from (\S+) to (\S+) by object")))


SPREAD, K2, K3, K4 = "anchored-85-spread", "anchored-85", "anchored-85-position-3", "anchored-85-position-4"
LIMITS = (
    ("no limit", "no limit"),
    ("`max_age=10`", "entries serve 10 steps"),
    ("`max_age=40`", "entries serve 40 steps"),
    ("`max_change=0.1`", "shallow change at most 0.1"),
    ("`max_change=0.2`", "shallow change at most 0.2"),
    ("`min_similarity=0.99`", "similarity at least 0.99"),
    ("`target_x=0.2`", "eta follows x = 0.2"),
    ("`target_quality=0.95`", "eta follows 5% of error"),
)
FRONTIER = (
    ("paper's eta 0.9, its grids stretched", "default eta=0.9 stretched"),
    ("every 7th step in full", "interval-7"),
    ("released code's indexing, eta 0.9", "released eta=0.9 stretched"),
    ("anchored, position 2", K2),
    ("anchored and spread, position 2", SPREAD),
    ("anchored, position 3", K3),
    ("anchored, position 4 (the preset)", K4),
)
PASSAGES = (
    *(frontier_row(*row) for row in FRONTIER),
    *(gates_row(*row) for row in LIMITS),
    Passage(
        REUSE,
        "remains with [the anchors spread](#anchors-that-are-spread) ({:+.2f} dB); the same views without the "
        "cache score {:+.2f} dB, so that reuse costs {:.2f} dB there",
        lambda: [
            *decibels(SPREAD, f"{SPREAD}-no-cache"),
            frontier(f"{SPREAD}-no-cache")["PSNR change, dB"] - frontier(SPREAD)["PSNR change, dB"],
        ],
    ),
    Passage(
        REUSE,
        "the shipped prior's U-Net is half of it ({:.0f}%)",
        lambda: told("frontier", r"with the U-Net at (\S+)% of a step"),
    ),
    Passage(
        REUSE,
        "They trade x for quality, at {:.1f} to {:.1f} dB for each tenth of x",
        lambda: [extreme(gates_prices()) for extreme in (min, max)],
    ),
    Passage(
        REUSE,
        "audits found a mean error of {:.3f} where {:.3f} was allowed",
        lambda: told("gates", r"which with x makes (\S+) over all views \((\S+) allowed\)"),
    ),
    Passage(
        REUSE,
        "other noise alone moves it by {:.3f} of its norm, 136 steps by {:.3f}",
        lambda: told("ageing", r"feature by (\S+) of its norm; an entry 136 steps old differs by (\d\.\d+)"),
    ),
    Passage(REUSE, "with a correlation of {:.2f}", lambda: told("ageing", r"by \+(\S+) over those of the second half")),
    Passage(
        REUSE,
        "The same views *without* the cache score {:+.2f} dB over uniform views, and uniform views with timesteps "
        "about the middle of the schedule {:+.2f} dB. Against the same views, reuse costs {:.2f} dB at position "
        "4, {:.2f} dB at position 3, and {:.2f} dB at position 2.",
        lambda: [*decibels("anchored-85-no-cache", "none-middle"), lost(K4), lost(K3), lost(K2)],
    ),
    Passage(
        REUSE,
        "moves the answer by half of its error at timestep 600, though not away from the truth ({:.1%})",
        lambda: [mismatch("noise")],
    ),
    Passage(
        REUSE,
        "50 timesteps add {:.1%} to the error, 150 add {:.0%}",
        lambda: [mismatch("timestep 50"), mismatch("timestep 150")],
    ),
    Passage(
        REUSE,
        "A turn of 4 degrees adds {:.1%}, an elevation 3 degrees off {:.1%}, a radius 0.04 off {:.1%}, and one "
        "0.15 off {:.0%}",
        lambda: [mismatch(name) for name in ("azimuth 4", "elevation 3", "radius 0.04", "radius 0.15")],
    ),
    Passage(
        "README.md",
        "the U-Net ran {:.2f} times and a step {:.2f} times as fast, at {:.2f} dB *more* than without, of which "
        "the choice of views gives {:.2f} and reuse takes {:.2f}",
        lambda: [
            frontier(K4)["U-Net speed-up"],
            frontier(K4)["speed-up"],
            *decibels(K4, "anchored-85-no-cache"),
            lost(K4),
        ],
    ),
    Passage(
        "README.md",
        "it was {:.2f} and {:.2f} times, at {:.2f} dB less; the U-Net is half of a step here, so that {:.2f} is the "
        "bound",
        lambda: [
            frontier(SPREAD)["U-Net speed-up"],
            frontier(SPREAD)["speed-up"],
            -frontier(SPREAD)["PSNR change, dB"],
            frontier(SPREAD)["bound"],
        ],
    ),
    Passage("README.md", "serve {:.0%}: over eight objects", lambda: [frontier(K4)["x"]]),
    Passage(
        REUSE, "**int8** instead of float32 changes PSNR by at most {:.3f} dB on any of the objects", lambda: [int8()]
    ),
)
