"""A recipe's stages one after the other: what each hands to the next, and whom they ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.prior.ground_truth import EVALUATION_POSES
from hash3d_cuda.sds.checkpoint import find_checkpoint, load_checkpoint, remove_checkpoint
from hash3d_cuda.sds.interrupt import Interrupt
from hash3d_cuda.sds.loop import Progress, Result, generate, prepare_folder
from hash3d_cuda.sds.outputs import render_views
from hash3d_cuda.sds.recipes.files import Recipe, load_recipe
from hash3d_cuda.sds.run import SdsRun, part
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.sds.stages import stage_scene


def distil_recipe(
    recipe: Recipe | str | Path,
    prior: Prior,
    subject: Any,
    scale: str = "small",
    *,
    second: tuple[Prior, Subject] | None = None,
    clock: Callable[[], float] | None = None,
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
        clock: as for :class:`hash3d_cuda.sds.timing.TimeSplit`.
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
        with SdsRun(prior, subject, settings, previous=previous, second=second, clock=clock) as run:
            while run.step < settings.steps:
                run.train_step()
            run.time.collect(wait=True)
        runs.append(run)
    poses = torch.from_numpy(EVALUATION_POSES).float().unbind(-1)
    return {"views": render_views(runs[-1].scene, *poses, prior.image_size), "runs": runs}


def generate_recipe(
    recipe: Recipe,
    prior: Prior,
    subject: Subject,
    settings: Sequence[GenerateSettings],
    out: str | Path,
    *,
    second: tuple[Prior, Subject] | None = None,
    progress: Callable[[int], Callable[[Progress], None]] | None = None,
    resume: bool = False,
    force: bool = False,
    note: Mapping[str, Any] | None = None,
) -> Result:
    """Runs all stages, each as :func:`hash3d_cuda.sds.loop.generate` does, the first into ``out/stage-1`` and the last
    into ``out``.

    A stage that is complete keeps its checkpoint until the last one is, so that a run which ends in between can be
    resumed.

    Args:
        recipe, prior, subject, second: as for :func:`distil_recipe`.
        settings: of each stage, from ``recipe.settings``.
        progress: from a stage's number, 1 for the first, to what is called after every step of it.
        out, resume, force, note: as for ``generate``; the note's ``"recipe"`` gets the stage's number.

    Returns:
        the result of the last stage that ran; ``interrupted`` unless all are complete.

    Raises:
        ValueError, OSError, NonFinite: as ``generate`` and :func:`distil_recipe` do.
    """
    check_kind(recipe, subject)
    second = second_for(recipe, prior, subject, second)
    folders = stage_folders(Path(out), len(settings))
    first = find_stage(folders) if resume else 0
    if not resume:
        for folder in reversed(folders):
            prepare_folder(folder, resume=False, force=force)
    previous: Any = None
    result: Result | None = None
    told = dict(note or {})
    about = {"name": recipe.name, "title": recipe.title, **told.get("recipe", {}), "stages": len(settings)}
    with Interrupt() as interrupt:
        for index, (folder, values) in enumerate(zip(folders, settings, strict=True)):
            if index < first:
                previous = finished_scene(prior, values, previous, folder)
                continue
            result = generate(
                prior, subject, values, folder, previous=previous, second=second, interrupt=interrupt, force=force,
                progress=None if progress is None else progress(index + 1), resume=resume and index == first,
                note={**told, "recipe": {**about, "stage": index + 1}}, keep=folder != folders[-1],
            )  # fmt: skip
            previous = result.scene
            if result.interrupted or (interrupt.requested and folder != folders[-1]):
                return replace(result, interrupted=True)
    for folder in folders:
        remove_checkpoint(folder)
    assert result is not None
    return result


def stage_folders(out: Path, stages: int) -> list[Path]:
    """Where each stage's results go."""
    return [*(out / f"stage-{number}" for number in range(1, stages)), out]


def find_stage(folders: Sequence[Path]) -> int:
    """The stage, from 0, that an unfinished run is in; raises ValueError when there is none."""
    for index in reversed(range(len(folders))):
        if find_checkpoint(folders[index]) is not None:
            return index
    raise ValueError(f"resume: no unfinished run in {str(folders[-1])!r}; leave --resume away to start one")


def finished_scene(prior: Prior, settings: GenerateSettings, previous: Any, folder: Path) -> Any:
    """The scene that a complete stage left in its checkpoint."""
    scene = stage_scene(prior, settings, previous)
    scene.load_state_dict(part(load_checkpoint(folder).tensors, "scene."))
    return scene


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
