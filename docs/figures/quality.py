"""Figures of evaluated objects, and of the same object without and with the cache."""

from __future__ import annotations

from functools import cache
from statistics import mean
from typing import Any

from docs.figures import Passage, load

QUALITY, DECIDE = "docs/quality.md", "docs/decide.md"

KINDS = ("sds", "sds_cache", "mean_image", "mean_sds", "own_mean", "picture", "copy", "fit")


@cache
def objects() -> dict[str, dict[str, Any]]:
    """The evaluated objects by name."""
    return {one["name"]: one for one in load("quality.json")["objects"]}


def mean_of(kind: str, score: str = "psnr") -> float:
    return mean(one[score][kind] for one in objects().values())


def quality_row(name: str) -> Passage:
    """PSNR of all ways to make the object."""
    one = objects()[name]
    text = f"| {name} | " + "{:.2f} | " * len(KINDS) + "{:.1%} | {:.1%} |"
    return Passage(
        QUALITY, text, lambda: [*(one["psnr"][kind] for kind in KINDS), one["cache"]["hit_rate"], one["cache"]["x"]]
    )


def compared(run: str) -> dict[str, Any]:
    return load("compare.json")["runs"][run]


def of_both(run: str, score: str) -> list[float]:
    return [compared(run)["quality"][name][score] for name in ("without", "with")]


def fall(run: str) -> float:
    without, cached = of_both(run, "psnr")
    return without - cached


def compare_row(grids: str) -> Passage:
    run = f"{grids} 0.5"
    names = ("hit_rate", "x", "bound_unet", "bound_step", "unet_speed_up", "speed_up")
    text = f"| `{grids}` | 0.5 | {{:.1%}} | {{:.1%}} | " + "{:.2f}, {:.2f} | " * 3 + "{:.3f}, {:.3f} |"
    return Passage(
        QUALITY, text, lambda: [*(compared(run)[name] for name in names), *of_both(run, "psnr"), *of_both(run, "ssim")]
    )


def served(grids: str) -> tuple[int, float]:
    """Runs from all seeds with these grids, and their mean x: 800 views each."""
    hits = [run["served"]["hits"] for run in load("quality-seeds.json")["runs"] if run["tag"] == grids]
    return len(hits), mean(hits) / 800


PASSAGES = (
    *(quality_row(name) for name in objects()),
    Passage(QUALITY, "| **mean** | " + "**{:.2f}** | " * len(KINDS) + "| |", lambda: [mean_of(kind) for kind in KINDS]),
    Passage(
        QUALITY,
        "Score distillation is {:.1f} dB above the mean of all and {:.1f} dB above the object's own mean",
        lambda: [mean_of("sds") - mean_of("mean_image"), mean_of("sds") - mean_of("own_mean")],
    ),
    Passage(
        QUALITY,
        "The cache costs {:.2f} dB of PSNR ({:.2f} to {:.2f}) and {:.4f} of SSIM ({:.3f} to {:.3f})",
        lambda: [
            figure
            for score in ("psnr", "ssim")
            for plain, cached in [(mean_of("sds", score), mean_of("sds_cache", score))]
            for figure in (plain - cached, plain, cached)
        ],
    ),
    compare_row("paper"),
    compare_row("pose"),
    Passage(
        QUALITY,
        "differed by a factor of {:.2f} and {:.2f}",
        lambda: [compared("paper 0.5")["drift"], compared("pose 0.5")["drift"]],
    ),
    Passage(QUALITY, "The U-Net is {:.0%} of a step here", lambda: [compared("paper 0.5")["unet_share_of_step"]]),
    Passage(
        QUALITY,
        "At eta 0.9 reuse costs this object {:.2f} dB with `paper` (x {:.1%}) and {:.2f} dB with `pose` (x {:.1%})",
        lambda: [f for run in ("paper 0.9", "pose 0.9") for f in (fall(run), compared(run)["x"])],
    ),
    Passage(
        "README.md",
        "{:.0%} of the views come from the cache and [a step gets {:.2f} times as fast](docs/quality.md), for "
        "{:.2f} dB; with `--grids pose` {:.0%} and {:.2f} times, for {:.2f} dB",
        lambda: [
            f for run in ("paper 0.5", "pose 0.5") for f in (compared(run)["x"], compared(run)["speed_up"], fall(run))
        ],
    ),
    Passage(
        DECIDE,
        "{} runs with the paper's grids at x = {:.1%} and {} with `pose` at x = {:.1%}; at eta 0.9, one object, "
        "{:.1f} to {:.1f} dB",
        lambda: [*served("paper"), *served("pose"), *sorted([fall("paper 0.9"), fall("pose 0.9")])],
    ),
)
