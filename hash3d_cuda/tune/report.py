"""What a search leaves: ``tune.json``, ``tune.md``, ``tune.png``, and the settings file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from hash3d_cuda.reproduce.runner import UNITS
from hash3d_cuda.reproduce.written import machine, replace_json, table_lines
from hash3d_cuda.sds.settings_file import settings_text
from hash3d_cuda.tune.search import FORMAT
from hash3d_cuda.tune.space import as_settings

JSON, MARKDOWN, PICTURE, SETTINGS = "tune.json", "tune.md", "tune.png", "settings.toml"
FILES = (JSON, MARKDOWN, PICTURE, SETTINGS, UNITS)
SHOWN = 12  # settings in the plot's legend and the printed table
FAR = 0.1  # difference of x that is worth a word


def open_folder(out: Path) -> None:
    """Makes the folder and marks it as a search's.

    Raises:
        ValueError: something else has one of the names that are needed.
        OSError: it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {str(out)!r} is a file; name a folder")
    if (foreign := [name for name in FILES if os.path.lexists(out / name)]) and not is_own(out):
        raise ValueError(
            f"out: {str(out)!r} holds {', '.join(foreign)}, which hash3d tune did not write; choose another folder or "
            "move that away"
        )
    out.mkdir(parents=True, exist_ok=True)
    if not (out / JSON).exists():
        replace_json({"format": FORMAT, "what": "hash3d tune", "ended": "not yet"}, out / JSON)


def is_own(out: Path) -> bool:
    """Whether an earlier search is in the folder."""
    try:
        content = json.loads((out / JSON).read_text("utf-8"))
        return content["what"] == "hash3d tune" and content["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write(content: Mapping[str, Any], out: Path, command: str, prior: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Writes all files; where nothing was chosen, no settings file is left.

    Args:
        content: of :func:`hash3d_cuda.tune.search.tune`.
        out: the folder.
        command: that the user gave.
        prior: its name.
        given: settings that were given and not searched; they go into the settings file too.
    """
    about = {"command": command, "prior": prior, "machine": machine(), "date": date.today().isoformat()}
    full = {**content, **about}
    if content["chosen"] is None:
        (out / SETTINGS).unlink(missing_ok=True)
    else:
        values = {**given, **as_settings(content["chosen"]["changes"])}
        (out / SETTINGS).write_text(settings_text(values, comments(full)), encoding="utf-8")
    plot(content, out / PICTURE)
    (out / MARKDOWN).write_text(markdown(full), encoding="utf-8")
    replace_json(full, out / JSON)
    return full


def comments(content: Mapping[str, Any]) -> list[str]:
    """What stands above the settings."""
    return [
        f"Found by {content['command']}",
        f"{content['title']}; {content['prior']}; {content['machine']}; {content['date']}",
        *sentences(content),
    ]


def sentences(content: Mapping[str, Any]) -> list[str]:
    """What was found, in a few sentences."""
    best = content["chosen"]
    asked = f"Bound: {content['bound_text']}."
    if best is None:
        return [asked, "No setting was faster within the bound; see the table for the nearest."]
    sure = "not known from one run" if best["confidence"] is None else f"{best['confidence']:.0%}"
    found = [
        asked,
        f"Chosen: {best['name']}: {best['speed_up']:.2f}x a step's speed (its x = {best['x']:.2f} allows "
        f"{best['bound_step']:.2f}x), {lost(content, best)} on average of {runs_of(best)}; confidence that the mean is "
        f"within the bound: {sure}.",
    ]
    if not best["confident"]:
        found.append(
            f"That is less than the {content['asked_confidence']:.0%} asked for: give more --runs, or a looser bound."
        )
    whole = best["whole_run"]
    if abs(whole["x"] - whole["x_here"]) > FAR:
        found.append(
            f"A whole run of {whole['steps']} steps would have x = {whole['x']:.2f} by simulation, "
            f"{whole['x_here']:.2f} here: what it loses was not measured. Tune with more --steps."
        )
    return found


def lost(content: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """A loss in words."""
    if content["measure"] == "agreement":
        return f"agreement {content['bound'] - one['loss']:.2f} dB"
    return f"{one['loss']:+.3f} lost of {content['measure']}"


def runs_of(one: Mapping[str, Any]) -> str:
    """How many runs a mean is of."""
    if one["judging_runs"]:
        return f"{one['judging_runs']} runs that had no part in choosing it"
    return f"{one['runs']} runs that also chose it"


def rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per setting: those within the bound first, the fastest at the top."""
    chosen = content["chosen"]["name"] if content["chosen"] else None
    return [
        {
            "setting": one["name"] + (" (chosen)" if one["name"] == chosen else ""),
            "loss": one["loss"],
            "speed-up": one["speed_up"],
            "bound": one["bound_step"],
            "x": one["x"],
            "runs": f"{one['runs']}, {one['judging_runs']} judging",
            "confidence": None if one["confidence"] is None else f"{one['confidence']:.0%}",
        }
        for one in content["settings"]
    ]


def chosen_by(plan: Mapping[str, Any]) -> str:
    """How the settings that are judged were found."""
    if not plan["halving"]:
        return f"So few runs leave no round to choose in: simulation chose {plan['finalists']}"
    return f"Rounds of {', '.join(map(str, plan['halving']))} settings chose {plan['finalists']}"


def markdown(content: Mapping[str, Any]) -> str:
    """The report."""
    plan, costs = content["plan"], content["costs"]
    hits = ", ".join(f"{position}: {r:.2f}" for position, r in costs["r"].items())
    lines = [
        f"# Tuning: {content['title']}", "", *(f"{one}\n" for one in sentences(content)),
        "\n".join(table_lines(rows(content))), "",
        f"![loss against speed-up, every run]({PICTURE})", "",
        f"- {content['runs_done']} runs of {' + '.join(map(str, content['steps']))} steps, of {plan['runs']} planned: "
        f"{content['ended']}.",
        f"- {content['combinations']} combinations, {content['promising']} of them promise a speed-up by simulation; "
        f"{len(content['settings'])} were run.",
        f"- {chosen_by(plan)}; {plan['confirming']} rounds on fresh objects or seeds judge them.",
        f"- The U-Net is {costs['share']:.0%} of a step without a cache here; a hit's cost by position: {hits}.",
        f"- Objects: {', '.join(content['subjects'])}; first seed {content['seed']}; {content['prior']}.",
        f"- {content['machine']}; seconds are {content['seconds']}; {content['date']}.", "",
        "```text", content["command"], "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def plot(content: Mapping[str, Any], path: Path) -> None:
    """Loss against speed-up: every run a dot, every setting's mean a circle, and the bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for place, one in enumerate(content["settings"]):
        colour = f"C{place % 10}"
        own = [point for point in content["points"] if point["setting"] == one["name"]]
        axes.scatter([p["speed_up"] for p in own], [p["loss"] for p in own], s=12, color=colour, alpha=0.5)
        name = one["name"] if place < SHOWN else None
        axes.scatter([one["speed_up"]], [one["loss"]], s=60, color=colour, edgecolors="black", label=name)
    if content["chosen"]:
        best = content["chosen"]
        axes.scatter([best["speed_up"]], [best["loss"]], s=260, marker="*", color="gold", edgecolors="black", zorder=5)
    axes.axhline(content["limit"], color="black", linestyle="--", linewidth=1)
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set(xlabel="speed-up of a step", ylabel=f"loss ({content['measure']})", title=content["bound_text"])
    axes.legend(fontsize=6, loc="best")
    figure.savefig(path, dpi=130)


def text_rows(content: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """The table for a terminal."""
    head = ("setting", "loss", "speed-up", "x", "runs", "confidence")
    shown = rows(content)[:SHOWN]
    return [head] + [
        (
            one["setting"], f"{one['loss']:+.3f}", f"{one['speed-up']:.2f}x", f"{one['x']:.2f}", str(one["runs"]),
            one["confidence"] or "-",
        )
        for one in shown
    ]  # fmt: skip
