"""A sampler's steps through the cache: the short way for one that the last full step's feature answers."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from .cached import CachedForward
from .sampling import Sampling
from .stats import Decision
from .unet.adapter import Call

_HIT = Decision(("hit",))


class SampledForward(CachedForward):
    """What :class:`CachedForward` does, for one item at one pose whose entry is most often still there as it came.

    Between a DeepCache step and this one lies what the host does besides, so the short way does nothing that such a
    step has no use for: no key as a tensor, no latents taken apart, no query, no copy. What it decides and counts is
    the same; ``tests/test_sampled.py`` runs both ways side by side.
    """

    def step(self, call: Call, run: Sampling, state: Hashable) -> tuple[Tensor, Decision]:
        """The U-Net's output ``[rows, out_channels, H, W]`` and what became of the batch, at the step that ``run`` is
        at. ``state``: the model's fingerprint."""
        condition = (run.condition, state)
        table = None if self.store is None else self.store.find(condition)
        feature = None if table is None else table.recall(run.key, call.sample)
        if feature is None:
            return self(call, run.keys(call.timestep, (0,), len(call.sample)), [condition])
        self._hints.forward()
        self.forward += 1
        self._coin.random()  # eta is 1: whatever it says
        with self._parts.during(call) as entered:
            return self._parts.finish(self._parts.prepare(call, entered), feature), _HIT
