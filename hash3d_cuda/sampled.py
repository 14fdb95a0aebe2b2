"""A sampler's steps through the cache, the short way: what becomes of most is known without asking a table."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from .cached import CachedForward
from .rows import memory_format_of
from .sampling import Sampling
from .stats import Decision
from .unet.adapter import Call

_HIT, _MISS = Decision(("hit",)), Decision(("miss",))


class SampledForward(CachedForward):
    """What :class:`CachedForward` does, for one item at one pose whose entry is most often still there as it came.

    Between a DeepCache step and this one lies what the host does besides, so the short way does nothing that such a
    step has no use for: no key as a tensor, no query, no copy of a feature; and what comes of class labels and
    added conditions is made once while a run keeps to the short way. What it decides and counts is the same;
    ``tests/test_sampled.py`` runs both ways side by side.
    """

    _left_alone: Hashable = None  # the model's state in which the last tail did not write to the feature
    _run: tuple[Hashable, Hashable] = None, None  # with the model's state: what ``_made`` holds for
    _made: dict[str, Any]

    def step(self, call: Call, run: Sampling, state: Hashable) -> tuple[Tensor, Decision]:
        """The U-Net's output ``[rows, out_channels, H, W]`` and what became of the batch, at the step that ``run`` is
        at. ``state``: the model's fingerprint."""
        condition = (run.condition, state)
        table = None if self.store is None else self.store.find(condition)
        feature = None if table is None else table.recall(run.key, call.sample)
        if feature is None and table is not None and not table.holds_nothing_for(run.key):
            self._run = None, None  # the table may have been cleared, because of what cannot be seen
            return self(call, run.keys(call.timestep, (0,), len(call.sample)), [condition])
        self._hints.forward()
        self.forward += 1
        self._coin.random()  # eta is 1: whatever it says
        with self._parts.during(call) as entered:
            parts = self._parts.prepare(call, entered, self._made_in(*condition))
            if feature is not None:
                return self._parts.finish(parts, feature), _HIT
            feature = self._parts.compute(call, parts, None)
            self._keep(call, run, condition, feature)  # before the tail, which under FreeU scales it in place
            writes = _count_writes(feature)
            output = self._parts.finish(parts, feature)
            self._left_alone = state if writes is not None and writes == _count_writes(feature) else None
            return output, _MISS

    def forget_shapes(self) -> None:
        self._run, self._made, self._left_alone = (None, None), {}, None
        super().forget_shapes()

    def _made_in(self, run: Hashable, state: Hashable) -> dict[str, Any]:
        """What came of the run's conditions so far."""
        if self._run[0] is not run or self._run[1] is not state:
            self._run, self._made = (run, state), {}
        return self._made

    def _keep(self, call: Call, run: Sampling, condition: tuple[Hashable, Hashable], feature: Tensor) -> None:
        self._dtype, self._format = feature.dtype, memory_format_of(feature)
        latents = call.sample[:1, : self._latent_channels]
        table = self._make_store(latents, feature[None]).get(condition)
        if self._left_alone is condition[1] and table.hold(run.key, latents, feature):
            return
        table.append(run.keys(call.timestep, (0,), len(call.sample)), latents, feature[None], self.forward)


def _count_writes(feature: Tensor) -> int | None:
    """None where nobody counts them."""
    return None if feature.is_inference() else feature._version
