"""Which rows of a U-Net's batch belong to which item."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_choice, describe, fail

Rows = str | Callable[[int, int], Any] | Sequence[Sequence[int]] | Tensor
ROW_ORDERS = ("group-major", "item-major", "perp-neg")
_Items = list[tuple[int, ...]]


class RowLayout:
    """Maps B items of ``groups`` rows to the rows of a batch; see ``Hash3DConfig.rows``."""

    def __init__(self, rows: Rows, groups: int) -> None:
        self.groups = groups
        self._rows = rows
        self._known: dict[int, _Items] = {}

    def items(self, batch: int) -> _Items:
        """The row numbers of each of ``batch`` items, its first row first.

        Raises:
            ValueError: what the configuration gave is not every row once.
        """
        if batch not in self._known:
            self._known[batch] = _check(self._build(batch), batch, self.groups)
        return self._known[batch]

    def assemble(self, entries: Sequence[Tensor]) -> Tensor:
        """Puts the items' features, ``[groups, ...]`` each, in the batch's order: ``[rows, ...]``. One item whose rows
        are in order is handed through without a copy."""
        items = self.items(len(entries))
        if len(entries) == 1 and items[0] == tuple(range(self.groups)):
            return entries[0]
        places = {row: (item, group) for item, rows in enumerate(items) for group, row in enumerate(rows)}
        return torch.stack([entries[item][group] for item, group in (places[row] for row in range(len(places)))])

    def _build(self, batch: int) -> Any:
        groups = self.groups
        if not isinstance(self._rows, str):
            return self._rows(batch, groups) if callable(self._rows) else self._rows
        if self._rows == "group-major":
            return [[group * batch + item for group in range(groups)] for item in range(batch)]
        if self._rows == "item-major":
            return [[item * groups + group for group in range(groups)] for item in range(batch)]
        negatives = groups - 2  # "perp-neg"
        first = 2 * batch
        return [
            [item, batch + item, *range(first + item * negatives, first + (item + 1) * negatives)]
            for item in range(batch)
        ]


def check_rows(rows: Any, groups: int) -> None:
    """Checks ``Hash3DConfig.rows``, as far as that can be done before the batch is known.

    Raises:
        TypeError, ValueError: naming ``rows``.
    """
    if isinstance(rows, str):
        check_choice("rows", rows, ROW_ORDERS)
    elif not callable(rows):
        try:
            batch = max(len(rows), 1)
        except TypeError:  # a number, None, an array without dimensions
            expected = "the name of an order, a callable (B, groups), or a [B, groups] matrix"
            fail(TypeError, "rows", expected, rows, f"choose one of {ROW_ORDERS}, or give row numbers")
        _check(rows, batch, groups)


def _check(matrix: Any, batch: int, groups: int) -> _Items:
    """Returns a ``[batch, groups]`` matrix of row numbers as tuples of ints."""
    try:
        table = torch.as_tensor(matrix, device="cpu")
        whole = not (table.is_floating_point() or table.is_complex() or table.dtype is torch.bool)
        every_row = sorted(table.flatten().tolist()) == list(range(batch * groups))
        fits = whole and every_row and table.shape == (batch, groups)
    except (TypeError, ValueError, RuntimeError):
        fits = False
    if not fits:
        raise ValueError(
            f"rows: expected [{batch}, {groups}] row numbers, each of 0..{batch * groups - 1} once, got "
            f"{describe(matrix)}; return one line per item, its rows in the order of the groups"
        )
    return [tuple(line) for line in table.tolist()]


def places_by(conditions: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Condition -> the places where it stands, in order."""
    places: dict[Hashable, list[int]] = {}
    for place, condition in enumerate(conditions):
        places.setdefault(condition, []).append(place)
    return places


def memory_format_of(feature: Tensor) -> torch.memory_format:
    """channels_last where a feature of rows lies so, and not otherwise."""
    channels_last = feature.dim() == 4 and feature.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not feature.is_contiguous() else torch.contiguous_format
