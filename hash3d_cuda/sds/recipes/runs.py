"""A recipe's stages one after the other: what each hands to the next, and whom they ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.prior.ground_truth import EVALUATION_POSES
from hash3d_cuda.sds.outputs import render_views
from hash3d_cuda.sds.recipes.files import Recipe, load_recipe
from hash3d_cuda.sds.run import SdsRun


def distil_recipe(
    recipe: Recipe | str | Path,
    prior: Prior,
    subject: Any,
    scale: str = "small",
    *,
    second: tuple[Prior, Subject] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Runs all stages of a recipe without writing anything.

    Args:
        recipe: a recipe, its name or its file.
        prior: the 2D diffusion prior.
        subject: from ``prior.resolve``, or what that takes: a name or prompt, or a ``PIL.Image``.
        scale: ``"small"`` or ``"paper"``.
        second: a text prior and its subject for a recipe that asks two; None takes the same prior, where it takes names
            too, with the picture's name.
        **overrides: fields of :class:`hash3d_cuda.sds.settings.GenerateSettings`, for every stage; ``steps=`` too.

    Returns:
        ``views`` float [16,3,S,S] in 0..1 on the CPU, the evaluation views of the last stage's scene, and ``runs``,
        the closed :class:`SdsRun` of each stage.

    Raises:
        ValueError: a picture for a text recipe or a name for an image recipe, no second prior where one is needed, or a
            first stage that left nothing solid enough for a mesh.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if not isinstance(subject, Subject):
        subject = prior.resolve(subject)
    check_kind(recipe, subject)
    stages = recipe.settings(scale, **overrides)
    second = second_for(recipe, prior, subject, second)
    runs: list[SdsRun] = []
    for settings in stages:
        previous = runs[-1].scene if runs else None
        with SdsRun(prior, subject, settings, previous=previous, second=second) as run:
            while run.step < settings.steps:
                run.train_step()
            run.time.collect(wait=True)
        runs.append(run)
    poses = torch.from_numpy(EVALUATION_POSES).float().unbind(-1)
    return {"views": render_views(runs[-1].scene, *poses, prior.image_size), "runs": runs}


def check_kind(recipe: Recipe, subject: Subject) -> None:
    """Raises ValueError when the recipe starts from a picture and the subject is none, or the reverse."""
    if recipe.kind == "image" and subject.image is None:
        raise ValueError(f"subject: the recipe {recipe.name!r} takes a picture, got the name {subject.label!r}")
    if recipe.kind == "text" and subject.image is not None:
        raise ValueError(f"subject: the recipe {recipe.name!r} takes a name or prompt, got a picture")


def second_for(
    recipe: Recipe, prior: Prior, subject: Subject, second: tuple[Prior, Subject] | None = None
) -> tuple[Prior, Subject] | None:
    """Whom a recipe of two priors asks besides ``prior``: who is given, else the prior itself by the picture's name.

    Raises:
        ValueError: nobody is given, and the prior takes no names.
    """
    if not recipe.two_priors or second is not None:
        return second
    if prior.vocabulary is None or subject.name is None:
        raise ValueError(
            f"second: the recipe {recipe.name!r} asks a text prior too, and {prior.name} takes no names; give "
            "second=(prior, subject), or on the command line --second-prior DIR --prompt TEXT"
        )
    return prior, prior.resolve(subject.name)
