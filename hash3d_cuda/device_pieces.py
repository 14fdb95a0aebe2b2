"""The three pieces of a forward that decides on the device, and all the memory that they share.

They work on memory that stays in place, so that they can be captured in CUDA graphs and joined by a conditional node
(:mod:`.device_runner`):

    before: head; keys (NaN where the coin says bypass: nothing is found then) -> query -> found; need = not all found
    body:   deep, for all rows                                                           (only where need is not 0)
    after:  feature = found ? what was retrieved : what deep made; append of what was not found; tail; counts
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .device_inputs import DeviceViews, StaticCall
from .parts import Parts
from .rows import RowLayout, memory_format_of
from .table import HashTable
from .unet.adapter import Call
from .unet.call import take_rows


class DevicePieces:
    """The pieces for calls of one form and one table, and all the memory that they share.

    B items, R = B x G rows. The call's buffers, ``keys`` and ``tried`` are filled before the pieces run; ``output`` and
    ``found`` are valid until they run again.
    """

    def __init__(self, parts: Parts, call: Call, layout: RowLayout, latent_channels: int, counts: Tensor) -> None:
        self._parts = parts
        self._static = StaticCall(call)
        self._rows = len(call.sample)
        self._items = layout.items(self._rows // layout.groups)
        self._latent_channels = latent_channels
        self._counts = counts
        device, batch = call.sample.device, len(self._items)
        with torch.inference_mode(False):  # or they could not be written to outside inference mode
            self.keys = torch.empty(batch, 4, device=device)
            self.tried = torch.empty(1, dtype=torch.bool, device=device)
            self.found = torch.empty(batch, dtype=torch.bool, device=device)
            self.need = torch.empty(1, dtype=torch.int32, device=device)
            order = [row for rows in self._items for row in rows]
            self._order = _index(order, device)  # item by item -> the batch's rows
            self._places = _index([order.index(row) for row in range(self._rows)], device)  # and back
        self.output: Tensor | None = None
        self._state: Any = None

    def fill(self, call: Call, views: DeviceViews, tried: bool) -> None:
        """Hands over a call, its poses and the coin."""
        self._static.fill(call)
        views.write(self.keys, call.timestep, [rows[0] for rows in self._items], self._rows)
        self.tried.fill_(tried)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with torch.no_grad(), self._parts.during(self._static.call) as self._entered:
            yield

    def run_first(self, find_table: Callable[[Tensor, Tensor], HashTable]) -> None:
        """All three pieces, one after the other, so that everything is warm. ``find_table`` is shown the items'
        features and latents, of whose shapes the table must be."""
        with self.running():
            self._enter()
            feature = self._compute()
            self._format, entries = memory_format_of(feature), self._by_item(feature)
            self.table = find_table(entries, self._latents())
            with torch.inference_mode(False):
                self._entries = torch.empty_like(entries, memory_format=torch.contiguous_format)
                self._room = torch.zeros(
                    self._entries.shape, dtype=self.table.options.answer_dtype, device=feature.device
                )
            self._look_up()
            self._entries.copy_(entries)
            self.after()

    def keep_for(self, stream: torch.cuda.Stream) -> None:
        own = (self.keys, self.tried, self.found, self.need, self._entries, self._room, self.output, self._counts)
        for memory in (*own, self._order, self._places, *self._static.buffers):
            if memory is not None:
                memory.record_stream(stream)
        self.table._stream()

    def before(self) -> None:
        self._enter()
        self._look_up()

    def body(self) -> None:
        self._entries.copy_(self._by_item(self._compute()))

    def after(self) -> None:
        self.table.append(self.keys, self._latents(), self._entries, skip=self.found)
        self._count()
        output = self._parts.finish(self._state, self._merge())
        if self.output is None:
            with torch.inference_mode(False):
                self.output = torch.empty_like(output)
        self.output.copy_(output)
        self._state = None  # what a graph has in between is its own

    def _enter(self) -> None:
        self._state = self._parts.prepare(self._static.call, self._entered)

    def _compute(self) -> Tensor:
        return self._parts.compute(self._static.call, self._state, None)

    def _look_up(self) -> None:
        keys = self.keys.masked_fill(~self.tried, math.nan)
        self.found.copy_(self.table.query(keys, self._latents(), out=self._room).hit)
        self.need.copy_(~self.found.all())

    def _merge(self) -> Tensor:
        """The features of all rows, in the batch's order."""
        found = self.found.view(-1, *(1,) * (self._entries.dim() - 1))
        merged = torch.where(found, self._room.to(self._entries.dtype), self._entries).flatten(0, 1)
        return _take(merged, self._places).contiguous(memory_format=self._format)

    def _count(self) -> None:
        batch, hits, tried = len(self._items), self.found.sum().view(1), self.tried.to(torch.int64)
        self._counts.add_(torch.cat([hits, batch * tried - hits, batch - batch * tried, hits * (self.need == 0)]))

    def _by_item(self, feature: Tensor) -> Tensor:
        """``[R, ...]`` in the batch's order as ``[B, G, ...]``."""
        return _take(feature, self._order).unflatten(0, (len(self._items), -1))

    def _latents(self) -> Tensor:
        firsts = [rows[0] for rows in self._items]
        return take_rows(self._static.call.sample, firsts, self._rows)[:, : self._latent_channels]


def _index(places: list[int], device: torch.device) -> Tensor | None:
    """Row numbers on the device; None where they say to leave everything as it is."""
    if places == list(range(len(places))):
        return None
    return torch.tensor(places).to(device, non_blocking=True)


def _take(value: Tensor, index: Tensor | None) -> Tensor:
    return value if index is None else value.index_select(0, index)
