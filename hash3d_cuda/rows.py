"""Which rows of a U-Net's batch belong to which item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import describe

_Items = list[tuple[int, ...]]


class RowLayout:
    """Maps B items of ``groups`` rows to the rows of a batch; see ``Hash3DConfig.rows``."""

    def __init__(self, rows: str | Callable[[int, int], Any] | Sequence[Sequence[int]] | Tensor, groups: int) -> None:
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
        if self._rows == "group-major":
            return [[group * batch + item for group in range(groups)] for item in range(batch)]
        if self._rows == "item-major":
            return [[item * groups + group for group in range(groups)] for item in range(batch)]
        if self._rows == "perp-neg":
            negatives = groups - 2
            first = 2 * batch
            return [
                [item, batch + item, *range(first + item * negatives, first + (item + 1) * negatives)]
                for item in range(batch)
            ]
        return self._rows(batch, groups) if callable(self._rows) else self._rows


def _check(matrix: Any, batch: int, groups: int) -> _Items:
    """Returns a ``[batch, groups]`` matrix of row numbers as tuples of ints."""
    try:
        table = torch.as_tensor(matrix, device="cpu")
        fits = table.shape == (batch, groups) and sorted(table.flatten().tolist()) == list(range(batch * groups))
    except (TypeError, ValueError, RuntimeError):
        fits = False
    if not fits:
        raise ValueError(
            f"rows: expected [{batch}, {groups}] row numbers, each of 0..{batch * groups - 1} once, got "
            f"{describe(matrix)}; return one line per item, its rows in the order of the groups"
        )
    return [tuple(line) for line in table.tolist()]
