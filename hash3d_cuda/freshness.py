"""When an entry is too old, or too different, to be served.

Under score distillation the object changes, so that an entry ages. Two options of :class:`hash3d_cuda.Hash3DConfig`
are kept here; neither is in the paper, both are off by default:

- ``max_age``: forwards. An entry serves the ``max_age`` forwards after the one that stored it.
- ``max_change``: relative L1 change of the head's output (the shallow features), averaged over space, since the entry
  was stored, as FirstBlockCache does for transformers: |now - then| / |then|, means over an item's rows and channels.

Both gates look at the newest entry of the item's cell in every grid that has one there: all must pass. What is refused
is a miss: it is computed and stored, so that the cell is fresh again.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Freshness:
    """When each entry of one table was stored, and what the shallow features were then.

    Everything lies on the host, in rings of the table's capacity: entry s is gone once s + capacity is appended.
    """

    def __init__(self, capacity: int, max_age: int | None, max_change: float | None) -> None:
        self._max_age, self._max_change = max_age, max_change
        self._births = torch.full((capacity,), -1, dtype=torch.int64)
        self._sketches: Tensor | None = None  # float32 [capacity, D]

    def note(self, serials: Sequence[int], forward: int, sketch: Tensor | None) -> None:
        """Files items just appended: their serials (-1: rejected), the forward's number, their sketches [N, D]."""
        for place, serial in enumerate(serials):
            if serial < 0:
                continue
            slot = serial % len(self._births)
            self._births[slot] = forward
            if sketch is not None:
                if self._sketches is None or self._sketches.shape[1] != sketch.shape[1]:
                    self._sketches = torch.full((len(self._births), sketch.shape[1]), torch.nan)
                self._sketches[slot] = sketch[place]

    def passing(self, candidates: Tensor, forward: int, sketch: Tensor | None) -> Tensor:
        """Which items may be served: bool [N].

        Args:
            candidates: int64 [N, M, Q], what a look-up gave, newest first, -1 for none.
            forward: the number of the forward now.
            sketch: [N, D] of the items, needed with ``max_change``.
        """
        newest = candidates[:, :, 0]
        slots = newest.clamp(min=0) % len(self._births)
        fine = torch.ones_like(newest, dtype=torch.bool)
        if self._max_age is not None:
            fine &= forward - self._births[slots] <= self._max_age
        if self._max_change is not None:
            if self._sketches is None or sketch is None:  # such as entries of a run that had no max_change
                return (newest < 0).all(1)
            then = self._sketches[slots]  # [N, M, D]
            change = (sketch[:, None] - then).abs().mean(-1) / then.abs().mean(-1).clamp(min=1e-12)
            fine &= change <= self._max_change  # NaN passes nothing
        return (fine | (newest < 0)).all(1)

    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        found: dict[str, Any] = {"births": _text(self._births)}
        return found if self._sketches is None else {**found, "sketches": _text(self._sketches)}

    def load(self, state: dict[str, Any]) -> None:
        """The reverse; raises ValueError when it is of another capacity."""
        births = _tensor(state["births"], torch.int64)
        if births.shape != self._births.shape:
            raise ValueError(f"births: expected {len(self._births)} numbers, got {len(births)}")
        sketches = None
        if "sketches" in state:
            sketches = _tensor(state["sketches"], torch.float32).reshape(len(births), -1)
        self._births, self._sketches = births, sketches


def sketch_items(hidden: Tensor, items: Sequence[Sequence[int]]) -> Tensor:
    """The shallow features of every item, averaged over space: float32 [B, G * C]. They are [rows, C, ...], or a
    transformer's [rows, tokens, C]."""
    hidden = hidden.detach().float()
    means = hidden.mean(1) if hidden.dim() == 3 else hidden.flatten(2).mean(-1)
    return torch.stack([means[list(rows)].flatten() for rows in items])


def _text(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode("ascii")


def _tensor(text: str, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype)
