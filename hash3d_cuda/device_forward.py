"""One forward through the cache that decides on the device: hit or miss is never known to the host.

It runs in three pieces, of which the middle one is left out where all items hit: see :mod:`.device_pieces`.

The coin is the host's, the one that :class:`.cached.CachedForward` throws. It reaches the device as the argument of a
kernel, so that there is no host memory that a copy on its way could find changed.
"""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from collections.abc import Hashable
from typing import ClassVar

import torch
from torch import Tensor, nn

from .config import Hash3DConfig
from .device_inputs import DeviceViews, form_of
from .device_late import COUNTS, LateCounts, LateDecision
from .device_pieces import DevicePieces
from .device_runner import GraphRunner, Runner
from .parts import Parts
from .poses import HostCopies
from .rows import RowLayout
from .stats import Decision
from .store import TableStore
from .table import HashTable
from .unet.adapter import Call

_FEWEST_PROGRAMS = 4  # graphs kept, for a loop that calls the U-Net in a few ways in turn


class DeviceForward:
    """Runs calls through pieces and the tables; takes the place of :class:`.cached.CachedForward`.

    There are pieces and a graph for every form of call, state of the model and table; the least recently used ones go.
    """

    runner: ClassVar[type[Runner]] = GraphRunner

    def __init__(
        self,
        unet: nn.Module,
        config: Hash3DConfig,
        layout: RowLayout,
        parts: Parts,
        latent_channels: int,
        copies: HostCopies,
    ) -> None:
        self.runner.check_machine()
        self.store: TableStore | None = None
        self.layout = layout
        self._unet = unet
        self._config = config
        self._parts = parts
        self._latent_channels = latent_channels
        self._copies = copies
        self._coin = random.Random(config.seed)
        self._programs: OrderedDict[Hashable, tuple[DevicePieces, Runner]] = OrderedDict()
        self._counts: LateCounts | None = None
        self._before = dict.fromkeys(COUNTS, 0)  # counted on memory since dropped
        self._rejected = 0

    def __call__(self, call: Call, views: DeviceViews, state: Hashable) -> tuple[Tensor, Decision]:
        """Returns the U-Net's output ``[rows, out_channels, H, W]``, and what became of the items, to be read later.

        Args:
            call: the U-Net's arguments, on a GPU.
            views: poses and condition ids.
            state: of the model; entries and graphs serve an equal one only.
        """
        self.runner.check_sample(call.sample)
        form = form_of(call)
        batch = len(call.sample) // self.layout.groups
        condition = (self._condition(views, batch), state)
        tried = self._coin.random() < self._config.eta
        table = None if self.store is None else self.store.get(condition).table
        name = (id(table), form, state)
        program = None if table is None else self._programs.get(name)
        if program is not None and not program[1].is_stale():
            pieces, runner = program
            self._programs.move_to_end(name)
            pieces.fill(call, views, tried)
            runner.launch()
            return _results(pieces, tried)
        if self._programs.pop(name, None) is not None:
            warnings.warn(
                "hash3d: the weights have moved, so the forward's CUDA graph is made anew, which takes time; where "
                'they move at every call (offloading), pass decide="host"',
                RuntimeWarning,
                stacklevel=2,
            )
        pieces = DevicePieces(
            self._parts, call, self.layout, self._latent_channels, self._counted_on(call.sample.device)
        )
        pieces.fill(call, views, tried)
        pieces.run_first(lambda feature, latent: self._table(condition, feature, latent))
        results = _results(pieces, tried)
        self._programs[id(pieces.table), form, state] = pieces, self.runner(pieces, self._unet)
        while len(self._programs) > max(_FEWEST_PROGRAMS, self._config.max_conditions):
            self._programs.popitem(last=False)
        return results

    @property
    def rejected(self) -> int:
        """Items that were not stored because something in them was not finite."""
        return self._rejected + (0 if self.store is None else self.store.rejected)

    def counts(self, wait: bool) -> dict[str, int]:
        """Items by what became of them. Without ``wait``: of those forwards of which the device has reported."""
        late = {} if self._counts is None else self._counts.read(wait)
        return {kind: self._before[kind] + late.get(kind, 0) for kind in COUNTS}

    def forget_shapes(self) -> None:
        """Drops tables, graphs and buffers, so that the next forward may have another shape. Waits for the device."""
        self._rejected, self._before = self.rejected, self.counts(wait=True)
        self.store = self._counts = None
        self._programs.clear()

    def release(self) -> None:
        """Lets go of the model; no call may follow."""
        del self._parts, self._unet

    @staticmethod
    def _condition(views: DeviceViews, batch: int) -> Hashable:
        conditions = set(views.conditions(batch))
        if len(conditions) > 1:
            raise ValueError(
                'views: condition: with decide="device", expected one id for all items, got '
                f'{len(conditions)}; call the U-Net once for each, or pass decide="host"'
            )
        return conditions.pop()

    def _table(self, condition: Hashable, feature: Tensor, latent: Tensor) -> HashTable:
        if self.store is None:
            shapes = feature.shape[1:], latent.shape[1:]
            self.store = TableStore(self._config, *shapes, feature.dtype, feature.device, self._copies, followed=False)
        return self.store.get(condition).table

    def _counted_on(self, device: torch.device) -> Tensor:
        if self._counts is None:
            self._counts = LateCounts(device)
        return self._counts.there


def _results(pieces: DevicePieces, tried: bool) -> tuple[Tensor, Decision]:
    """Copies, as the buffers are the next forward's."""
    assert pieces.output is not None
    return pieces.output.clone(), LateDecision(pieces.found.clone(), tried)
