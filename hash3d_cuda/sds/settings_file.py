"""Settings in a file of their own: one TOML table of :class:`GenerateSettings`' fields, as recipes have them.

.. code-block:: toml

    eta = 0.7
    position = 2
    grids = "pose"                # or [[5.0, 5.0, 0.5, 1000.0]]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hash3d_cuda.keys import Grid
from hash3d_cuda.sds.recipes.files import tomllib
from hash3d_cuda.sds.settings import GenerateSettings, parse_grids

FIELDS = tuple(field.name for field in fields(GenerateSettings))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The fields in a settings file, each proved; grids may be named.

    Raises:
        ValueError: no such file, not TOML, or a field or value that does not do; file and field are named.
    """
    where = Path(path)
    try:
        content = tomllib.loads(where.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"settings: {str(path)!r} cannot be read ({' '.join(str(error).split())})") from None
    if "stages" in content:
        raise ValueError(f"settings: {str(path)!r} is a recipe; give it with --recipe")
    if unknown := sorted(set(content) - set(FIELDS)):
        raise ValueError(f"settings: {str(path)!r}: unknown field {', '.join(unknown)}")
    try:
        if isinstance(content.get("grids"), str):
            content["grids"] = parse_grids(content["grids"])
        # Whether there is such a GPU is for the machine to say that the run is made on, and --device goes first.
        later = {"device": "cpu"} if str(content.get("device")).startswith("cuda") else {}
        GenerateSettings.from_dict(content | later)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings: {str(path)!r}: {error}") from None
    return content


def settings_text(values: Mapping[str, Any], comments: Sequence[str] = ()) -> str:
    """Fields as TOML with comments above; fields that are None are left out, for TOML has no such value."""
    lines = [f"# {line}" for comment in comments for line in comment.splitlines()]
    return "\n".join([*lines, *(f"{name} = {toml(v)}" for name, v in values.items() if v is not None)]) + "\n"


def toml(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Grid):
        return toml(value.sizes)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value)
