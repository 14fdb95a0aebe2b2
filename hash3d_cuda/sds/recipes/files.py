"""Recipe files: TOML with a title, a kind, and one or two stages of settings at two scales.

.. code-block:: toml

    title = "My system"
    kind = "text"                # or "image"

    [[stages]]
    title = "voxels"
    common = { scene = "voxels" }                        # at both scales
    paper = { steps = 10000, guidance_scale = 100.0 }    # with real weights
    small = { steps = 300 }                              # with the shipped prior

Every name but ``title`` is a field of :class:`hash3d_cuda.sds.settings.GenerateSettings`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from hash3d_cuda.checks import fail
from hash3d_cuda.config import DEFAULT_MEMORY_BUDGET
from hash3d_cuda.sds.settings import GenerateSettings

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

RECIPES = (
    "dreamgaussian", "zero123-nerf", "zero123-gs", "magic123", "dreamfusion", "latent-nerf", "sds-gs", "magic3d",
    "gaussian-dreamer", "fantasia3d",
)  # fmt: skip
"""The paper's systems in the order of its tables 1 and 2; Fantasia3D is in its figures."""
SCALES = ("small", "paper")
KINDS = ("text", "image")
MOST_STAGES = 2
# Entries of real U-Nets take megabytes: 256 MiB would hold 48 of SD's.
SCALE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"small": {}, "paper": {"memory_budget": DEFAULT_MEMORY_BUDGET}}
# What belongs to a run and not to a system.
NOT_A_RECIPES = ("seed", "device", "checkpoint_every", "turntable_frames", "turntable_size")


@dataclass(frozen=True)
class Stage:
    """One stage: its title and the settings of each scale by field name."""

    title: str
    scales: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """A system as settings.

    Attributes:
        name: the name it is called by, or its file.
        title: as people write it.
        kind: ``"text"`` takes a name or prompt, ``"image"`` a picture.
        stages: one or two.
    """

    name: str
    title: str
    kind: str
    stages: tuple[Stage, ...]

    def settings(self, scale: str = "small", **overrides: Any) -> list[GenerateSettings]:
        """The settings of each stage.

        Args:
            scale: ``"small"`` for the shipped prior, ``"paper"`` for real weights.
            **overrides: fields of :class:`GenerateSettings`, for every stage.

        Raises:
            ValueError, TypeError: another scale, or an override that does not do; the field is named.
        """
        if scale not in SCALES:
            raise ValueError(f"scale: expected {' or '.join(map(repr, SCALES))}, got {scale!r}")
        stages = [GenerateSettings.from_dict({**stage.scales[scale], **overrides}) for stage in self.stages]
        check_scenes(stages)
        return stages

    @property
    def two_priors(self) -> bool:
        """Whether a stage asks a text prior beside the image prior."""
        return any(values.get("second_weight") for stage in self.stages for values in stage.scales.values())


def check_scenes(stages: Sequence[GenerateSettings]) -> None:
    """Raises ValueError where a stage asks for another scene than it gets: it goes on with that of the stage before, or
    with a mesh made of it."""
    for before, after in itertools.pairwise(stages):
        kept = sorted({"mesh", before.scene})
        if after.scene not in kept:
            fail(
                ValueError, "scene", f"{' or '.join(map(repr, kept))} after a stage of {before.scene}", after.scene,
                "a stage goes on with the scene of the one before",
            )  # fmt: skip


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by its name (``RECIPES``) or file.

    Raises:
        ValueError: no such recipe or file, or a file with something wrong in it; the field is named.
    """
    if str(name) in RECIPES:
        return read(Path(str(files("hash3d_cuda") / "sds" / "recipes" / f"{name}.toml")), str(name))
    path = Path(name)
    if not os.path.isfile(path):
        raise ValueError(f"recipe: {str(name)!r} is neither a file nor one of {', '.join(RECIPES)}")
    return read(path, str(name))


def read(path: Path, name: str) -> Recipe:
    """The recipe in a file, with every stage's settings proved at both scales."""

    def wrong(problem: str) -> NoReturn:
        raise ValueError(f"recipe: {str(path)!r}: {problem}")

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        wrong(" ".join(str(error).split()))
    if unknown := sorted(set(content) - {"title", "kind", "stages"}):
        wrong(f"unknown field {', '.join(unknown)}; a recipe has title, kind and stages")
    if not isinstance(content.get("title"), str):
        wrong(f"title: expected a text, got {content.get('title')!r}")
    if content.get("kind") not in KINDS:
        wrong(f"kind: expected {' or '.join(map(repr, KINDS))}, got {content.get('kind')!r}")
    stages = content.get("stages")
    if not isinstance(stages, list) or not 1 <= len(stages) <= MOST_STAGES:
        wrong(f"stages: expected one or two [[stages]], got {describe(stages)}")
    read_stages = []
    for number, stage in enumerate(stages, 1):
        try:
            read_stages.append(read_stage(stage))
        except (TypeError, ValueError) as error:
            wrong(f"stage {number}: {error}")
    recipe = Recipe(name, content["title"], content["kind"], tuple(read_stages))
    try:
        for scale in SCALES:
            recipe.settings(scale)
    except ValueError as error:
        wrong(str(error))
    return recipe


def read_stage(stage: Any) -> Stage:
    """One of ``[[stages]]``; raises ValueError or TypeError naming the field."""
    if not isinstance(stage, dict):
        raise ValueError(f"expected a table, got {stage!r}")
    if unknown := sorted(set(stage) - {"title", "common", *SCALES}):
        raise ValueError(f"unknown field {', '.join(unknown)}; a stage has title, common, {' and '.join(SCALES)}")
    if not isinstance(stage.get("title"), str):
        raise ValueError(f"title: expected a text, got {stage.get('title')!r}")
    parts = {name: stage.get(name, {}) for name in ("common", *SCALES)}
    known = {field.name for field in fields(GenerateSettings)} - set(NOT_A_RECIPES)
    for name, values in parts.items():
        if not isinstance(values, dict):
            raise ValueError(f"{name}: expected a table of settings, got {values!r}")
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{name}: unknown field {', '.join(unknown)}")
    scales = {scale: {**SCALE_DEFAULTS[scale], **parts["common"], **parts[scale]} for scale in SCALES}
    for scale, values in scales.items():
        try:
            GenerateSettings.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{scale}: {error}") from None
    return Stage(stage["title"], scales)


def describe(stages: Any) -> str:
    """What a file has in the place of its stages."""
    return f"{len(stages)}" if isinstance(stages, list) else repr(stages)
