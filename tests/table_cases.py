"""Small tables and items for tests whose expected numbers are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda import Grid

UNIT = Grid(1.0, 1.0, 1.0, 1.0)  # a cell is the floor of the key
ORIGIN = (0.0, 0.0, 0.0, 0.0)


def small(make_table: Callable[..., Any], **options: Any) -> Any:
    """A float32 table of two-number features and one-number latents on one grid of unit cells."""
    defaults: dict[str, Any] = {
        "grids": [UNIT],
        "num_buckets": 1009,
        "capacity": 64,
        "feature_dtype": torch.float32,
    }
    return make_table((2,), (1,), **{**defaults, **options})


def keys(table: Any, *rows: Sequence[float]) -> Tensor:
    """Keys ``[len(rows), 4]`` on the table's device."""
    return torch.tensor(rows, dtype=torch.float32, device=table.device).reshape(len(rows), 4)


def append(
    table: Any,
    *rows: Sequence[float],
    features: Sequence[Sequence[float]] | None = None,
    latents: Sequence[float] | None = None,
) -> list[int]:
    """Appends one item per key; features default to (1, 0) and latents to 0. Returns the serials."""
    features = features if features is not None else [(1.0, 0.0)] * len(rows)
    latents = latents if latents is not None else [0.0] * len(rows)
    latent = torch.tensor(latents, device=table.device).reshape(len(rows), 1)
    feature = torch.tensor(features, device=table.device).reshape(len(rows), 2)
    return table.append(keys(table, *rows), latent, feature).tolist()


def query(table: Any, *rows: Sequence[float], latents: Sequence[float] | None = None) -> Any:
    """Queries one item per key; latents default to 0."""
    latents = latents if latents is not None else [0.0] * len(rows)
    return table.query(keys(table, *rows), torch.tensor(latents, device=table.device).reshape(len(rows), 1))


def found(table: Any, *rows: Sequence[float]) -> list[list[list[int]]]:
    """``lookup`` as lists, per key and grid, without the -1 that fill them up; these must all come last."""
    result = []
    for grids in table.lookup(keys(table, *rows)).tolist():
        chains = [[serial for serial in serials if serial >= 0] for serials in grids]
        for serials, chain in zip(grids, chains, strict=True):
            assert serials == chain + [-1] * (len(serials) - len(chain))
        result.append(chains)
    return result


def same_cell(table: Any, key: Sequence[float], others: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each other key finds what is appended under ``key`` in the table's only grid."""
    (serial,) = append(table, key)
    return [serial in chain for (chain,) in found(table, *others)]
