"""From units' results to rows: means and standard deviations over objects, and the plots that experiments share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hash3d_cuda.reproduce.quality import columns
from hash3d_cuda.reproduce.sweep import BASELINE, open_picture_row

Results = Mapping[str, Mapping[str, Any]]
NAMES = {"psnr": "PSNR, dB", "ssim": "SSIM"}


def over_objects(results: Results, run: str) -> list[dict[str, Any]]:
    """One run's figures of every object (a sweep's result each)."""
    return [dict(result["runs"][run]) for result in results.values()]


def plus_minus(values: Iterable[float], digits: int = 3) -> str:
    """Mean and standard deviation as text; the deviation is left away for a single value."""
    found = list(values)
    spread = f" ± {stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{mean(found):.{digits}f}{spread}"


def average(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean of one figure over the runs."""
    return mean(float(run[name]) for run in runs)


def quality_cells(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Every measure of quality as ``mean ± std`` over objects."""
    qualities = [run["quality"] for run in runs]
    return {
        NAMES.get(name, name): plus_minus((q[name] for q in qualities), 2 if name == "psnr" else 3)
        for name in columns(qualities)
    }


def change(results: Results, run: str, measure: str = "psnr", to: str = BASELINE) -> float | None:
    """Mean over objects of one run's score minus another's; None where it is not measured."""
    pairs = [(result["runs"][run]["quality"], result["runs"][to]["quality"]) for result in results.values()]
    if any(measure not in one or measure not in two for one, two in pairs):
        return None
    return mean(one[measure] - two[measure] for one, two in pairs)


def row(results: Results, run: str, **first: Any) -> dict[str, Any]:
    """The usual row: time beside its bound, what was served, quality, and how much worse than without a cache."""
    runs = over_objects(results, run)
    return {
        **first,
        "seconds": average(runs, "seconds"),
        "speed-up": average(runs, "speed_up"),
        "bound": average(runs, "bound_step"),
        "drift": average(runs, "drift"),
        "U-Net speed-up": average(runs, "unet_speed_up"),
        "U-Net bound": average(runs, "bound_unet"),
        "hit rate": average(runs, "hit_rate"),
        "x": average(runs, "x"),
        **quality_cells(runs),
        "PSNR change, dB": change(results, run),
    }


def signed(value: float | None, digits: int = 2) -> str:
    """A difference as text."""
    return "unknown" if value is None else f"{value:+.{digits}f}"


def curve(results: Results, runs: Sequence[str], points: Sequence[Any]) -> dict[str, list[Any]]:
    """Means over objects along a parameter, for plots: point, seconds, x, PSNR and its deviation."""
    found = [over_objects(results, run) for run in runs]
    quality = [[run["quality"].get("psnr", float("nan")) for run in one] for one in found]
    return {
        "point": list(points),
        "seconds": [average(one, "seconds") for one in found],
        "x": [average(one, "x") for one in found],
        "psnr": [mean(values) for values in quality],
        "psnr_std": [stdev(values) if len(values) > 1 else 0.0 for values in quality],
    }


def pictures(results: Results, runs: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Rows of views by object and title."""
    return {name: {title: r["runs"][run]["picture"] for run, title in runs.items()} for name, r in results.items()}


def plot_pictures(rows: Mapping[str, Mapping[str, str]], path: Path, most: int = 3) -> None:
    """A PNG of views: one block per object, one row per title."""
    plt = pyplot()
    shown = [(name, title, text) for name in list(rows)[:most] for title, text in rows[name].items()]
    figure, axes = plt.subplots(len(shown), 1, figsize=(6, 1.55 * len(shown)), squeeze=False)
    for axis, (name, title, text) in zip(axes[:, 0], shown, strict=True):
        axis.imshow(open_picture_row(text))
        axis.set_axis_off()
        axis.set_title(f"{name}: {title}", fontsize=8, loc="left", pad=2)
    save(figure, path)


def plot_time_and_quality(curve: Mapping[str, Any], label: str, path: Path, log: bool = False) -> None:
    """The paper's form of figures 9 and 14: run time (bars of our own seconds) and quality over a parameter."""
    plt = pyplot()
    figure, left = plt.subplots(figsize=(6, 3.6))
    places = list(range(len(curve["point"])))
    left.bar(places, curve["seconds"], color="#9db8d9", width=0.6)
    left.set_xticks(places, [str(point) for point in curve["point"]])
    left.set_xlabel(label)
    left.set_ylabel("seconds")
    right = left.twinx()
    right.errorbar(places, curve["psnr"], yerr=curve["psnr_std"], color="#b5432f", marker="o", capsize=3)
    right.set_ylabel("PSNR, dB (mean and std over objects)")
    save(figure, path)


def plot_bars(values: Mapping[str, Mapping[str, float | None]], measures: Sequence[str], path: Path) -> None:
    """One panel per measure, one bar per name, ``values[name][measure]``; points, on an axis that does not begin at 0,
    where the values are near each other."""
    plt = pyplot()
    size = (3.4 * len(measures), 0.9 + 0.36 * len(values))
    figure, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        known = {name: one[measure] for name, one in values.items() if one.get(measure) is not None}
        axis.barh(list(values), [0.0] * len(values))  # every name has its line, also where nothing is known
        if known and min(known.values()) > 0 and max(known.values()) < 1.5 * min(known.values()):
            axis.clear()
            axis.scatter([known.get(name, float("nan")) for name in values], list(values), color="#4a72a8")
            axis.grid(axis="y", alpha=0.4)
        else:
            axis.barh(list(known), list(known.values()), color="#7a9cc6")
        axis.locator_params(axis="x", nbins=4)
        axis.set_xlabel(measure)
    axes[0][0].invert_yaxis()
    save(figure, path)


def pyplot() -> object:
    """matplotlib without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: object, path: Path) -> None:
    """Writes and closes a figure."""
    figure.savefig(path, dpi=110, bbox_inches="tight")  # type: ignore[attr-defined]
    pyplot().close(figure)  # type: ignore[attr-defined]
