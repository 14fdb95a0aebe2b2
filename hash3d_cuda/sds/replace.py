"""New results take the place of an earlier run's and of nothing else: renamed in one go, undone on an error.

Ours is what a ``metrics.json`` or ``compare.json`` of our own format beside it says we wrote. All else stays: what has
a name that we need becomes ``NAME.kept``.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hash3d_cuda.sds.checkpoint import FOLDER as CHECKPOINT
from hash3d_cuda.sds.metrics import FORMAT

METRICS, COMPARISON, VIEWS = "metrics.json", "compare.json", "views"
RUN_FILES = (
    "turntable.webp", "turntable.mp4", VIEWS, "contact-sheet.png", "scene.ply", "mesh.glb", "report.html", METRICS,
)  # fmt: skip
COMPARE_FILES = ("compare.webp", "compare.mp4", "report.html", COMPARISON)
VIEW = re.compile(r"view_\d+\.png")
METRICS_KEYS = {"format", "subject", "prior", "steps", "settings", "time", "cache", "versions"}
CHECKPOINT_FILES = re.compile(r"(state\.json|(state|table|cache|cache-\d+)\.safetensors|\.hash3d-.*|\.tmp.*)")
STAGE, ASIDE = ".hash3d-new", ".hash3d-old"
FULL = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # encoders report a full disk without a number


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A scratch folder inside ``folder``; on success its files replace the earlier run's, on failure it vanishes."""
    finish_swap(folder)
    stage = folder / STAGE
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
        swap_in(stage, folder)
    except OSError as error:
        remedy = "free some space" if error.errno in FULL else "choose another folder, or mend what is in the way"
        raise type(error)(f"out: cannot write to {str(folder)!r} ({error.strerror or error}); {remedy}") from error
    finally:
        if not (folder / ASIDE).exists():  # it does when the swap could not even be undone; the next run ends it
            shutil.rmtree(stage, ignore_errors=True)


def finish_swap(folder: Path) -> None:
    """Ends the swap of a process that was killed meanwhile; does nothing where there is none."""
    stage, aside = folder / STAGE, folder / ASIDE
    if files_below(stage) and aside.is_dir():
        swap_in(stage, folder)
    elif aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)


def swap_in(stage: Path, folder: Path) -> None:
    """Renames the earlier results aside, then the files of ``stage`` in, and only then deletes what is aside.

    ``ASIDE`` exists from before the first renaming until after the last: with it and files in ``STAGE``, a kill came
    between, and calling this again ends what is left. What proves files to be ours goes last, each way.

    Raises:
        OSError: a file cannot be renamed; everything is where it was.
    """
    aside, new, old = folder / ASIDE, files_below(stage), own_files(folder)
    done: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        done.append((source, target))

    aside.mkdir(exist_ok=True)
    try:
        for path in in_the_way(folder, new, old):
            move(folder / path, free_name(folder / path))
        for path in old:
            move(folder / path, aside / path)
        for path in new:
            move(stage / path, folder / path)
    except BaseException:
        for source, target in reversed(done):
            os.rename(target, source)
        if not files_below(aside):
            shutil.rmtree(aside)
        raise
    shutil.rmtree(stage, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)
    if any(path.parent.name == VIEWS for path in old):
        with contextlib.suppress(OSError):  # stays unless it is empty
            (folder / VIEWS).rmdir()


def own_names(folder: Path) -> set[str]:
    """The entries of ``folder`` that its metrics.json or compare.json says are ours, and that are of the right kind."""
    names: set[str] = set()
    metrics, comparison = read_json(folder / METRICS), read_json(folder / COMPARISON)
    if is_metrics(metrics):
        listed = metrics.get("files")  # results of before it was written list none
        names.update(name for name in RUN_FILES if not isinstance(listed, list) or name in (*listed, METRICS))
    if isinstance(comparison, dict) and isinstance(comparison.get("runs"), dict):
        runs = comparison["runs"].values()
        names.update(COMPARE_FILES if runs and all(map(is_metrics, runs)) else ())
    places = {name: folder / name for name in names}
    return {n for n, at in places.items() if at.is_symlink() or (at.is_dir() if n == VIEWS else at.is_file())}


def own_files(folder: Path) -> list[Path]:
    """The same as relative paths of files and links; of ``views/`` only the numbered views."""
    paths = []
    for name in own_names(folder):
        if name == VIEWS and not (folder / name).is_symlink():
            paths += [Path(name, view) for view in os.listdir(folder / name) if VIEW.fullmatch(view)]
        else:
            paths.append(Path(name))
    return sorted((path for path in paths if is_file(folder / path)), key=proofs_last)


def foreign_names(folder: Path) -> list[str]:
    """Names of results under which ``folder`` holds something that is not ours."""
    own = own_names(folder)
    names = dict.fromkeys(RUN_FILES + COMPARE_FILES)
    return [name for name in names if name not in own and os.path.lexists(folder / name)]


def foreign_checkpoints(folder: Path) -> list[str]:
    """Names of checkpoints, which are deleted whole, under which ``folder`` holds something else."""

    def ours(path: Path) -> bool:
        return not is_file(path) and all(map(CHECKPOINT_FILES.fullmatch, os.listdir(path)))

    names = [CHECKPOINT + suffix for suffix in ("", ".old", ".new")]
    return [name for name in names if os.path.lexists(folder / name) and not ours(folder / name)]


def in_the_way(folder: Path, new: list[Path], old: list[Path]) -> list[Path]:
    """What has to make room for ``new`` though it is not among ``old``: files, links, or folders in a file's place."""
    found: dict[Path, None] = {}
    for path in new:
        for place in (*list(path.parents)[-2::-1], path):
            if place in old or not os.path.lexists(folder / place):
                break
            if place == path or is_file(folder / place):
                found[place] = None
                break
    return list(found)


def free_name(path: Path) -> Path:
    """``NAME.kept``, or with a number when that is taken."""
    names = (path.with_name(f"{path.name}.kept{number or ''}") for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def is_metrics(value: Any) -> bool:
    """Whether this is the content of a metrics.json that this or an earlier version wrote."""
    return isinstance(value, dict) and value.keys() >= METRICS_KEYS and value["format"] in range(1, FORMAT + 1)


def read_json(path: Path) -> Any:
    """The content, or None when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_file(path: Path) -> bool:
    """Whether there is anything but a folder; a link to one is no folder, since what it points to is not ours."""
    return os.path.lexists(path) and (path.is_symlink() or not path.is_dir())


def files_below(folder: Path) -> list[Path]:
    """Relative paths of all files and links."""
    return sorted((path.relative_to(folder) for path in folder.rglob("*") if is_file(path)), key=proofs_last)


def proofs_last(path: Path) -> tuple[bool, str]:
    """Sorting key."""
    return path.name in (METRICS, COMPARISON), str(path)
