"""``hash3d generate --resume``: what the unfinished run was asked for, and that it is not asked for something else."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hash3d_cuda.cli.main import UsageError

REQUEST = ("subject", "prior", "encoder", "elevation", "azimuth", "second_prior", "prompt")
"""Options beside the settings that a checkpoint keeps."""


def recall(options: argparse.Namespace) -> dict[str, Any]:
    """The unfinished run's settings, of a recipe those that were given over the recipe's own; what it was asked for
    goes into ``options`` where nothing was given."""
    from hash3d_cuda.sds.checkpoint import read_about
    from hash3d_cuda.sds.finished import find_unfinished

    path = find_unfinished(options.out)
    if path is None:
        raise ValueError(f"resume: no unfinished run in {str(options.out)!r}; leave --resume away to start one")
    about = read_about(path)
    recipe = about["note"].get("recipe")
    if recipe is None and options.recipe is not None:
        raise UsageError(f"--resume: the run in {str(options.out)!r} was started without --recipe; leave it away")
    if recipe is not None and options.recipe not in (None, recipe["name"]):
        raise UsageError(f"--resume: the run in {str(options.out)!r} was started with --recipe {recipe['name']}")
    for name in REQUEST:
        require_same(options, name, about["note"])
        if getattr(options, name) is None:
            setattr(options, name, about["note"].get(name))
    if recipe is None:
        return about["settings"]
    options.recipe = recipe["name"]
    options.recipe_scale = options.recipe_scale or recipe["scale"]
    return recipe["overrides"]


def require_same(options: argparse.Namespace, name: str, note: dict[str, Any]) -> None:
    """Refuses to go on with another prior, encoder, pose or prompt than the run was started with. The subject is
    compared by what the prior makes of it."""
    given = getattr(options, name)
    if given is None or name == "subject" or name not in note or given == note[name]:
        return
    before, option = note[name], "--" + name.replace("_", "-")
    if isinstance(given, str) and isinstance(before, str) and Path(given).absolute() == Path(before).absolute():
        return
    started = f"without {option}" if before is None else f"with {option} {before}"
    raise UsageError(
        f"--resume: the run in {str(options.out)!r} was started {started}, got {given}; leave {option} away, or start "
        "over with --force in the place of --resume"
    )
