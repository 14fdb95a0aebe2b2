"""What is searched: values by field of :class:`GenerateSettings`, as data, so that any field can be searched."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from hash3d_cuda.sds.settings import NAMED_GRIDS, GenerateSettings, parse_grids

Space = Mapping[str, Sequence[Any]]
Changes = dict[str, Any]
FIELDS = tuple(field.name for field in fields(GenerateSettings))
NOT_SEARCHED = ("seed", "steps", "device", "cache", "checkpoint_every", "turntable_frames", "turntable_size")
# Plain JSON values; grids as on a command line. The paper's cells, ones that are narrow in pose and open in timestep
# (a short annealed run comes to no timestep twice), one of these alone, and cells between the two.
SPACE: Space = {
    "eta": (0.3, 0.5, 0.7, 0.9, 1.0),
    "grids": ("paper", "pose", "5,5,.5,1000", "10,10,.1,100;20,20,.15,200;30,30,.2,300"),
    "position": (1, 2, 3, 4),
    "min_similarity": (None, 0.98),
}


def make_space(vary: Iterable[str] = (), fixed: Iterable[str] = (), space: Space = SPACE) -> dict[str, tuple[Any, ...]]:
    """The space that a command line asks for.

    Args:
        vary: ``"FIELD=VALUE VALUE ..."``; takes the place of that field's values, or adds the field.
        fixed: fields that are not searched.
        space: what is searched by default.

    Raises:
        ValueError: no such field, one that is no part of a setting, or a value that it does not take.
    """
    found = {name: tuple(values) for name, values in space.items() if name in FIELDS}
    for told in vary:
        name, _, values = told.partition("=")
        name = name.strip().replace("-", "_")
        if name not in FIELDS or name in NOT_SEARCHED:
            raise ValueError(f"vary: {name!r} is not among {', '.join(n for n in FIELDS if n not in NOT_SEARCHED)}")
        if not values.split():
            raise ValueError(f'vary: expected FIELD=VALUE VALUE ..., got {told!r}; try "eta=0.5 0.9"')
        found[name] = tuple(as_value(name, word) for word in values.split())
    found = {name: values for name, values in found.items() if name not in set(fixed)}
    for name, values in found.items():
        for value in values:
            prove(GenerateSettings(), {name: value}, name)
    return found


def as_value(name: str, word: str) -> Any:
    """One value of a field from its text."""
    if name == "grids":
        return word
    if word.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def as_settings(changes: Mapping[str, Any]) -> Changes:
    """Changes as fields of the settings: grids that are named are looked up, and memory takes the place of memory."""
    found = dict(changes)
    if isinstance(found.get("grids"), str):
        found["grids"] = [list(grid.sizes) for grid in parse_grids(found["grids"])]
    for one, other in (("capacity", "memory_budget"), ("memory_budget", "capacity")):
        if found.get(one) is not None:
            found.setdefault(other, None)
    return found


def prove(base: GenerateSettings, changes: Mapping[str, Any], name: str) -> GenerateSettings:
    """``base`` with ``changes``; raises ValueError naming the field that was varied."""
    try:
        return replace(base, **as_settings(changes))
    except (TypeError, ValueError) as error:
        raise ValueError(f"vary: {name}: {error}") from None


def candidates(space: Space, stages: Sequence[GenerateSettings], positions: int) -> list[Changes]:
    """Every combination of the space's values that all stages take, as changes by field; the first field varies
    slowest.

    Args:
        space: values by field.
        stages: the settings that are changed.
        positions: how many places the U-Net can be cut at; higher ones are left out.
    """
    found = []
    for values in itertools.product(*space.values()):
        changes = dict(zip(space, values, strict=True))
        if changes.get("position", 1) > positions:
            continue
        try:
            for settings in stages:
                replace(settings, **as_settings(changes))
        except (TypeError, ValueError):
            continue
        found.append(changes)
    return found


def label(changes: Mapping[str, Any]) -> str:
    """Changes as text: ``"eta 0.5, grids pose, position 2"``; what is None is left out."""
    return (
        ", ".join(f"{name} {shown(name, value)}" for name, value in changes.items() if value is not None) or "as it is"
    )


def shown(name: str, value: Any) -> str:
    """One value as text; grids by their name or their coarsest cell."""
    if name != "grids" or value in NAMED_GRIDS:
        return f"{value:g}" if isinstance(value, float) else str(value)
    grids = parse_grids(value) if isinstance(value, str) else value
    cells = [list(getattr(grid, "sizes", grid)) for grid in grids]
    return (
        f"{len(cells)}x" + "/".join(f"{size:g}" for size in cells[-1])
        if len(cells) > 1
        else "/".join(f"{size:g}" for size in cells[0])
    )
