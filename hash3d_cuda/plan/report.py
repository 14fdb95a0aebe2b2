"""A plan as text, Markdown, JSON and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hash3d_cuda.plan.plan import Plan
from hash3d_cuda.plan.simulation import BYPASS
from hash3d_cuda.sds.outputs import write_json
from hash3d_cuda.unet.configs import UNETS

NOTES = (
    "The table is the real one, with features of one number. All similarities are then equal, so the finest grid with "
    "a candidate serves; with real features another may, but the hit rate is the same.",
    "Bounds count multiply-accumulates: what the table itself and the misses' appends cost is not in them.",
    "What reuse costs in quality is not predicted: it grows with eta and with the cells, and falls with k.",
)
FILES = ("plan.json", "plan.md", "plan.png")
WINDOWS, TRIED = (4, 40), 20  # of the plotted curves, and the tried views that each should have


def rows(plan: Plan) -> list[tuple[str, str]]:
    """What and how much, for a table of two columns."""
    run, memory, setting = plan.simulation, plan.memory, plan.setting
    steps, batch = run.grid.shape
    parts = [
        (f"  from grid {index} ({', '.join(f'{size:g}' for size in grid.sizes)})", f"{share:.1%}")
        for index, (grid, share) in enumerate(zip(setting.grids, run.by_grid, strict=True))
    ]
    all_hit = [("steps whose views all hit, of those tried", f"{run.all_hit:.1%}")] if batch > 1 else []
    encoder = []
    if plan.vae != "none":
        work = f"{plan.encoder_gmacs:.0f} GMAC a view, the U-Net {setting.groups * plan.full_gmacs:.0f}"
        encoder = [(f"encoder in every step, {plan.vae}, forward and backward", work)]
    last = run.coverage[-1] if len(run.coverage) else float("nan")
    return [
        ("steps x views", f"{steps} x {batch}"),
        ("eta", f"{setting.eta:g}"),
        ("hit rate", f"{run.hit_rate:.1%}"),
        *parts,
        *repeat_rows(plan),
        *all_hit,
        ("new views with a candidate at the end", f"{last:.1%}"),
        ("x, views served from the cache", f"{run.x:.1%}"),
        ("U-Net, position k", f"{UNETS[plan.unet].label}, {setting.position}"),
        ("r, a hit's share of a full pass", f"{plan.r:.3f}"),
        ("bound on the U-Net's speed-up", f"{plan.unet_bound:.3f}x"),
        *encoder,
        ("U-Net's share of a step", f"{plan.unet_share:.0%}"),
        ("bound on a step's speed-up", f"{plan.step_bound:.3f}x"),
        ("memory of one entry", size(memory.slot)),
        ("memory of the table", f"{size(memory.allocated)}, {memory.capacity:,} entries"),
        *host_rows(plan),
        ("memory that holds every view", f"{size(memory.for_all)}, {steps * batch:,} entries"),
        ("entries at the end", f"{run.live:,} of {run.stored:,} stored"),
    ]


def repeat_rows(plan: Plan) -> list[tuple[str, str]]:
    """The same for runs with other seeds; nothing where one run was asked for."""
    more = plan.repeats
    if more is None:
        return []
    told = [f"{more.hit_rate:.1%}, single runs {min(more.rates):.1%} to {max(more.rates):.1%}"] if more.rates else []
    told.append(f"x {more.x:.1%}")
    if more.idle:
        told.append(f"{more.idle} of the runs tried no retrieval and have no hit rate")
    return [(f"hit rate over {more.runs} runs, other seeds", "; ".join(told))]


def host_rows(plan: Plan) -> list[tuple[str, str]]:
    """The same for the host tier; nothing where there is none."""
    run, memory = plan.simulation, plan.memory
    if not memory.host_capacity:
        return []
    copied = run.copied * memory.host_entry
    return [
        ("memory of the host tier", f"{size(memory.host_allocated)}, {memory.host_capacity:,} entries"),
        ("hits that need it, if all copies come in time", f"{run.from_host:,} of {run.hits:,}"),
        ("copied to the device", f"{run.copied:,} entries, {size(copied)}, {size(copied // len(run.grid))} a step"),
        ("copied to the host", f"{run.stored:,} entries, {size(run.stored * memory.host_entry)}"),
    ]


BEST_HEAD = ("eta", "grids", "k", "buckets", "entries", "hit rate", "x", "U-Net bound", "step bound")


def best_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The settings that the search found, one per eta."""
    return [
        (
            f"{one.setting.eta:g}", one.grids_name, str(one.setting.position), str(one.setting.num_buckets),
            str(one.capacity), f"{one.hit_rate:.1%}", f"{one.x:.1%}", f"{one.unet_bound:.2f}x",
            f"{one.step_bound:.2f}x",
        )
        for one in plan.best
    ]  # fmt: skip


def markdown(plans: Sequence[Plan]) -> str:
    """All plans as one page."""
    lines = ["# What the cache will do"]
    for plan in plans:
        lines += ["", f"## {plan.title}", "", "| | |", "|---|---|"]
        lines += [f"| {name.strip()} | {value} |" for name, value in rows(plan)]
        if plan.best:
            lines += ["", "The largest step bound of each eta, under the same budget:", ""]
            lines += [f"| {' | '.join(BEST_HEAD)} |", "|---" * len(BEST_HEAD) + "|"]
            lines += [f"| {' | '.join(row)} |" for row in best_rows(plan)]
    lines += ["", *(f"- {note}" for note in NOTES), ""]
    return "\n".join(lines)


def write(plans: Sequence[Plan], folder: Path) -> None:
    """Writes ``plan.json``, ``plan.md`` and ``plan.png`` into ``folder``, which is made.

    Raises:
        ValueError: files of these names are there that no plan wrote.
    """
    if (foreign := [name for name in FILES if os.path.lexists(folder / name)]) and not is_own(folder):
        raise ValueError(
            f"out: {str(folder)!r} holds {', '.join(foreign)}, which hash3d plan did not write; choose another folder "
            "or move that away"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(as_json(plans), folder / "plan.json")
    (folder / "plan.md").write_text(markdown(plans), encoding="utf-8")
    plot(plans, folder / "plan.png")


def is_own(folder: Path) -> bool:
    """Whether an earlier plan is in ``folder``."""
    try:
        content = json.loads((folder / FILES[0]).read_text("utf-8"))
        return isinstance(content["plans"], list) and "notes" in content
    except (OSError, ValueError, KeyError, TypeError):
        return False


def as_json(plans: Sequence[Plan]) -> dict[str, object]:
    """Plain values."""
    return {"plans": [plan.as_dict() for plan in plans], "notes": list(NOTES)}


def plot(plans: Sequence[Plan], path: Path) -> None:
    """Hit rate by grid, coverage and x over the steps, one row of axes per plan."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2 * len(plans)), layout="constrained")
    axes = figure.subplots(len(plans), 2, squeeze=False)
    for plan, (left, right) in zip(plans, axes, strict=True):
        run = plan.simulation
        middles, shares, served = windows(run.grid, run.grids)
        labels = [f"grid {index}: {', '.join(f'{s:g}' for s in g.sizes)}" for index, g in enumerate(plan.setting.grids)]
        left.stackplot(middles, shares, labels=labels, alpha=0.8)
        left.plot(run.looks, run.coverage, "k--", linewidth=1, label="new views with a candidate")
        left.set(title=f"{plan.title}: hit rate", xlabel="step", ylabel="share of tried views", ylim=(0, 1))
        left.legend(fontsize="small", loc="upper left")
        right.plot(middles, served, label="x")
        right.axhline(plan.setting.eta, color="grey", linestyle=":", label="eta")
        bound = f"U-Net at most {plan.unet_bound:.3f}x, step at most {plan.step_bound:.3f}x"
        top = 1.25 * max(plan.setting.eta, float(served.max()), 0.04)
        right.set(title=bound, xlabel="step", ylabel="share of views served", ylim=(0, top))
        right.legend(fontsize="small", loc="upper left")
    figure.savefig(path, dpi=110)


def windows(grid: np.ndarray, grids: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Curves over the run from int8 ``[steps, B]``: middles ``[W]``, hit rate by grid ``[M, W]`` (of the tried views of
    a window; the value before where none was tried), and x ``[W]``."""
    count = int(np.clip((grid != BYPASS).sum() // TRIED, *WINDOWS))
    pieces = np.array_split(np.arange(len(grid)), min(count, len(grid)))
    middles = np.array([piece.mean() for piece in pieces])
    shares = np.zeros((grids, len(pieces)))
    for column, piece in enumerate(pieces):
        tried = grid[piece][grid[piece] != BYPASS]
        if len(tried):
            shares[:, column] = [(tried == index).mean() for index in range(grids)]
        elif column:
            shares[:, column] = shares[:, column - 1]
    return middles, shares, np.array([(grid[piece] >= 0).mean() for piece in pieces])


def size(count: int) -> str:
    """Bytes as people write them."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"
