"""Timesteps that the host knows: drawn there, and written over those that a guidance drew on its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class HostTimesteps:
    """Draws t for a step, and writes it into the guidance's own tensor before that is used.

    The generator is its own: cameras and noise are those of a run without it.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed % 2**63)
        self.written: Tensor | None = None  # what the step's tensor holds; None when only the device knows
        self._drawn: Tensor | None = None
        self._scheduler: Any = None

    def begin(self, low: int, high: int, batch: int, one: bool) -> None:
        """Draws ``batch`` timesteps from ``low`` to ``high`` inclusive; ``one``: the same for all."""
        count = 1 if one else batch
        drawn = torch.randint(low, high + 1, [count], generator=self.generator)
        self._drawn, self.written = drawn.expand(batch), None

    def write(self, timesteps: Tensor) -> None:
        """Writes what was drawn into ``timesteps`` ``[B]``, once a step, without waiting for its device."""
        if self._drawn is not None and timesteps.shape == self._drawn.shape:
            timesteps.copy_(self._drawn, non_blocking=True)
            self.written = self._drawn
        self._drawn = None

    def end(self) -> None:
        self._drawn = self.written = None

    def watch(self, scheduler: Any, then: Callable[[], None]) -> None:
        """Makes ``scheduler.add_noise``, where all but one guidance first use t, write before it reads."""
        plain = scheduler.add_noise

        def add_noise(samples: Tensor, noise: Tensor, timesteps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self._drawn is not None:
                self.write(timesteps)
                then()
            return plain(samples, noise, timesteps, *args, **kwargs)

        scheduler.add_noise = add_noise
        self._scheduler = scheduler

    def leave(self) -> None:
        """Gives the scheduler its own method back."""
        if self._scheduler is not None:
            del self._scheduler.add_noise
            self._scheduler = None
