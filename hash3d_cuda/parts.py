"""What is cached: the activation at the cut (``FeatureParts``) or the model's output (``NoiseParts``).

Both offer the same three steps for one call: ``prepare`` (all rows), ``compute`` (rows that miss), ``finish`` (all
rows). On a hit, ``compute`` is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .checks import fail
from .config import Hash3DConfig
from .unet import Adapter
from .unet.adapter import Call
from .unet.call import take_rows


class Parts(Protocol):
    """The steps; ``state`` is what ``prepare`` returned. ``cut_blocks`` are the blocks of which only a part may run."""

    cut_blocks: Sequence[nn.Module]

    def cut(self) -> None:
        """To be called when the U-Net's modules were exchanged.

        Raises:
            TypeError, ValueError: it cannot be cut any more.
        """

    def during(self, call: Call) -> contextlib.AbstractContextManager[Any]:
        """What surrounds the three steps of a call; its value goes to ``prepare``."""

    def prepare(self, call: Call, entered: Any, made: dict[str, Any] | None = None) -> Any:
        """Runs what precedes the cached tensor and is needed on a hit too. ``made`` is for what comes of conditions:
        the same dict for calls with the same ones."""

    def compute(self, call: Call, state: Any, rows: Sequence[int] | None) -> Tensor:
        """Computes the tensor that is cached, for ``rows``, in that order; None: all."""

    def finish(self, state: Any, feature: Tensor) -> Tensor:
        """Turns the cached tensor of all rows into the U-Net's output."""


class FeatureParts:
    """Head, deep and tail of the split model, compiled when the configuration says so."""

    def __init__(self, adapter: Adapter, config: Hash3DConfig) -> None:
        if config.compile is not False and not adapter.compiles:
            expected = f"False for a {type(adapter.model).__name__}, whose parts cannot be compiled one by one"
            fail(
                ValueError, "compile", expected, config.compile, "leave it out, or compile the model's blocks yourself"
            )
        self._adapter = adapter
        self._config = config
        self.cut()

    def cut(self) -> None:
        split = self._adapter.split(self._config.position)
        self.cut_blocks: Sequence[nn.Module] = split.cut_blocks
        self._head, self._deep, self._tail = (
            _compiled(part, self._config.compile) for part in (split.head, split.deep, split.tail)
        )

    def during(self, call: Call) -> contextlib.AbstractContextManager[Any]:
        return self._adapter.during(call)

    def prepare(self, call: Call, entered: Any, made: dict[str, Any] | None = None) -> Any:
        inputs = self._adapter.inputs(call, entered)
        if made is None or self._config.compile is not False or not self._adapter.keeps_made:
            return self._head(*inputs)
        return self._head(*inputs, made)

    def compute(self, call: Call, state: Any, rows: Sequence[int] | None) -> Tensor:
        hidden, _, conditioning = state
        if rows is None:
            return self._deep(hidden, conditioning)
        batch = len(call.sample)
        if not self._adapter.takes_rows(call, conditioning):
            return take_rows(self._deep(hidden, conditioning), rows, batch)
        return self._deep(*take_rows((hidden, conditioning), rows, batch))

    def finish(self, state: Any, feature: Tensor) -> Tensor:
        _, skips, conditioning = state
        return self._tail(feature, skips, conditioning)


class NoiseParts:
    """The whole model: its output is what is cached, and a hit runs nothing of it (the paper's ablation)."""

    cut_blocks: Sequence[nn.Module] = ()

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def cut(self) -> None:
        pass

    def during(self, call: Call) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def prepare(self, call: Call, entered: Any, made: dict[str, Any] | None = None) -> None:
        return None

    def compute(self, call: Call, state: None, rows: Sequence[int] | None) -> Tensor:
        if rows is None:
            return self._adapter.run(call)
        if not call.can_take:
            return take_rows(self._adapter.run(call), rows, len(call.sample))
        return self._adapter.run(call.take(rows))

    def finish(self, state: None, feature: Tensor) -> Tensor:
        return feature.clone()  # a retrieved one lies in a buffer that the next call overwrites


def _compiled(part: Callable[..., Any], options: bool | dict[str, Any]) -> Callable[..., Any]:
    if options is False:
        return part
    return torch.compile(part, **{"fullgraph": True, **({} if options is True else options)})
