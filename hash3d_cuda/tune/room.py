"""How many entries a run can use: a search holds many tables at once, and none is larger than its run can fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hash3d_cuda.checks import DTYPE_NAMES
from hash3d_cuda.options import TableOptions
from hash3d_cuda.sds.settings import GenerateSettings

INDEXING = ("grids", "num_buckets", "queue_length", "match")


def slots_of(settings: GenerateSettings, table: Mapping[str, Any]) -> int:
    """Entries of one table: what the memory holds, at most every view of the run, so that hits stay what they would be.

    Args:
        settings: of one stage; two subjects on one U-Net share its memory.
        table: ``feature`` and ``latent``, the shapes, and ``dtype``.

    Raises:
        BudgetTooSmall: the memory does not hold one entry.
    """
    share = tables_of(settings)
    room = {name: None if amount is None else amount // share for name, amount in settings.room(share).items()}
    stored = settings.feature_dtype
    options = TableOptions.build(
        tuple(table["feature"]), tuple(table["latent"]), **{name: getattr(settings, name) for name in INDEXING},
        weighting=settings.aggregation, similarity_decay=0.9, initial_similarity=1.0, min_similarity=None,
        azimuth_period=360.0, device="cpu", **room,
        feature_dtype=getattr(torch, table["dtype"]) if stored is None else DTYPE_NAMES[stored],
    )  # fmt: skip
    views = settings.steps * settings.views_per_step
    if settings.objective == "refine":  # cleared at every step, which has so many forwards at most
        views = settings.views_per_step * -(-1000 // settings.denoise_stride)
    return min(options.resolve_capacity(), views)


def tables_of(settings: GenerateSettings) -> int:
    """Tables that share the memory."""
    return 2 if settings.second_weight else 1


def fitted(settings: GenerateSettings, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Changes that give the run's tables :func:`slots_of` entries each; ``tables`` is by position. No changes where the
    cache is off, or where what it stores was not measured."""
    table = tables.get(str(settings.position))
    if not settings.cache or settings.mode != "feature" or table is None:
        return {}
    return {"capacity": slots_of(settings, table) * tables_of(settings), "memory_budget": None}
