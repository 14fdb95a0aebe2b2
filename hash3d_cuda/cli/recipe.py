"""``hash3d generate --recipe``."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hash3d_cuda.cli.generate import Making
from hash3d_cuda.cli.main import UsageError
from hash3d_cuda.cli.options import load_subject, looks_like_path, prove, run_into, usage
from hash3d_cuda.cli.progress import Bar


def plan_recipe(options: argparse.Namespace, given: dict[str, Any]) -> tuple[Any, str, list[Any]]:
    """The recipe, its scale, and the settings of its stages, with those that are ``given`` in the place of its own."""
    from hash3d_cuda.sds.recipes import load_recipe

    recipe = usage(load_recipe, options.recipe)
    check_request(recipe, options)
    scale = options.recipe_scale or ("small" if is_own(options.prior) else "paper")
    stages = usage(recipe.settings, scale, **given)
    for settings in stages:
        prove(settings)
    return recipe, scale, list(stages)


def make_recipe(options: argparse.Namespace, given: dict[str, Any], making: Making) -> Any:
    """Runs a recipe; returns a :class:`hash3d_cuda.sds.loop.Result`."""
    from hash3d_cuda.sds.recipes import generate_recipe

    recipe, scale, stages = plan_recipe(options, given)
    making.check(*stages)
    if (done := making.finished(options, stages[-1], recipe.name)) is not None:
        return done
    prior, subject = load_subject(options, stages[0].device, making.load)
    second = load_second(recipe, options, prior, stages[0].device, making.load)
    overrides = {name: plain(name, value) for name, value in given.items()}
    note = making.note(options)
    note["recipe"] = {"scale": scale, "overrides": overrides}
    with run_into(options.out, "stage-1"), ExitStack() as bars:

        def progress(stage: int) -> Any:
            if making.progress is not None:
                return making.progress
            label = subject.label if len(stages) == 1 else f"{subject.label}, stage {stage} of {len(stages)}"
            return bars.enter_context(Bar(label, options.quiet, stages[stage - 1].cache))

        return generate_recipe(
            recipe, prior, subject, stages, options.out, second=second, progress=progress, resume=options.resume,
            force=options.force, note=note, interrupt=making.interrupt, ranks=making.ranks,
        )  # fmt: skip


def check_request(recipe: Any, options: argparse.Namespace) -> None:
    """Refuses a subject of the wrong kind and priors that do not fit, before anything is loaded."""
    picture = looks_like_path(options.subject)
    if recipe.kind == "image" and not picture:
        raise UsageError(
            f"--recipe {recipe.name} takes a picture, but the subject is the name {options.subject!r}; give a picture "
            "file (hash3d info --examples)"
        )
    if recipe.kind == "text" and picture:
        raise UsageError(f"--recipe {recipe.name} takes a name or prompt, but the subject is a picture; give a name")
    if not recipe.two_priors and (options.second_prior is not None or options.prompt is not None):
        raise UsageError(f"--second-prior and --prompt: --recipe {recipe.name} asks one prior only; leave them away")
    if options.second_prior is not None and options.prompt is None:
        raise UsageError("--second-prior needs --prompt, what it is asked for")
    if recipe.two_priors and options.second_prior is None and not is_own(options.prior):
        raise UsageError(
            f"--recipe {recipe.name} asks a text prior beside --prior; give --second-prior DIR and --prompt TEXT"
        )


def is_own(prior: str | None) -> bool:
    """Whether this is the shipped prior, or one that hash3d train-prior wrote."""
    return prior is None or (Path(prior).expanduser() / "prior.json").is_file()


def load_second(recipe: Any, options: argparse.Namespace, prior: Any, device: str, load: Any = None) -> Any:
    """The prior beside the first and its subject, where the command line names them, else None."""
    if not recipe.two_priors or options.prompt is None:
        return None
    if options.second_prior is None:
        return prior, prior.resolve(options.prompt)
    from hash3d_cuda.prior import load_prior

    second = (load or load_prior)(options.second_prior, device=device, encoder=options.encoder)
    return second, second.resolve(options.prompt)


def plain(name: str, value: Any) -> Any:
    """A setting as a JSON value."""
    return [list(grid.sizes) for grid in value] if name == "grids" and not isinstance(value[0], list) else value
