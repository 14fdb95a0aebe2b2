"""What the host learns of forwards that decide on the device: later, or when it asks."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from .stats import Decision

COUNTS = ("hit", "miss", "bypass", "saved")  # items; saved: hits of forwards that had no need of deep


class LateCounts:
    """Counters on the device, and what the host knows of them."""

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.there = torch.zeros(len(COUNTS), dtype=torch.int64, device=device)
        self._known = [0] * len(COUNTS)
        self._coming: deque[tuple[Any, Tensor]] = deque()

    def read(self, wait: bool) -> dict[str, int]:
        """The counters; without ``wait``, as they were when last heard of."""
        if wait or not self.there.is_cuda:
            self._known = self.there.tolist()
            self._coming.clear()
        else:
            if not self._coming:
                copy = torch.empty(self.there.shape, dtype=torch.int64, pin_memory=True)
                copy.copy_(self.there, non_blocking=True)
                arrived = torch.cuda.Event()
                arrived.record(torch.cuda.current_stream(self.there.device))
                self._coming.append((arrived, copy))
            if self._coming[0][0].query():
                self._known = self._coming.popleft()[1].tolist()
        return dict(zip(COUNTS, self._known, strict=True))


class LateDecision(Decision):
    """A decision that lies on the device until someone asks; then it is waited for."""

    _found: Any  # bool [B]; a list once it has been asked for
    _fallback: str

    def __init__(self, found: Tensor, tried: bool) -> None:
        self.__dict__.update(plain=None, _found=found, _fallback="miss" if tried else "bypass")

    @property
    def kinds(self) -> tuple[str, ...]:
        if isinstance(self._found, Tensor):
            self.__dict__["_found"] = self._found.tolist()
        return tuple("hit" if hit else self._fallback for hit in self._found)
