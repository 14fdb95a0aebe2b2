"""One forward through the cache that decides on the device: hit or miss is never known to the host.

The forward is cut in three pieces on memory that stays in place, so that they can be captured in CUDA graphs and joined
by a conditional node (:mod:`.device_runner`):

    before: head; keys (NaN where the coin says bypass: nothing is found then) -> query -> found; need = not all found
    body:   deep, for all rows                                                           (only where need is not 0)
    after:  feature = found ? what was retrieved : what deep made; append of what was not found; tail; counts

The coin is the host's, the one that :class:`.cached.CachedForward` throws. It reaches the device as the argument of a
kernel, so that there is no host memory that a copy on its way could find changed.
"""

from __future__ import annotations

import contextlib
import math
import random
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .config import Hash3DConfig
from .device_inputs import DeviceViews, StaticCall, form_of
from .device_runner import GraphRunner, Runner
from .parts import Parts
from .poses import HostCopies
from .rows import RowLayout, memory_format_of
from .stats import Decision
from .store import TableStore
from .table import HashTable
from .unet.adapter import Call
from .unet.call import take_rows

_FEWEST_PROGRAMS = 4  # graphs kept, for a loop that calls the U-Net in a few ways in turn
_COUNTS = ("hit", "miss", "bypass", "saved")  # items; saved: hits of forwards that had no need of deep


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
        self._before = dict.fromkeys(_COUNTS, 0)  # counted on memory since dropped
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
        return {kind: self._before[kind] + late.get(kind, 0) for kind in _COUNTS}

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


class LateCounts:
    """Counters on the device, and what the host knows of them."""

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.there = torch.zeros(len(_COUNTS), dtype=torch.int64, device=device)
        self._known = [0] * len(_COUNTS)
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
        return dict(zip(_COUNTS, self._known, strict=True))


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


def _results(pieces: DevicePieces, tried: bool) -> tuple[Tensor, Decision]:
    """Copies, as the buffers are the next forward's."""
    assert pieces.output is not None
    return pieces.output.clone(), LateDecision(pieces.found.clone(), tried)


def _index(places: list[int], device: torch.device) -> Tensor | None:
    """Row numbers on the device; None where they say to leave everything as it is."""
    if places == list(range(len(places))):
        return None
    return torch.tensor(places).to(device, non_blocking=True)


def _take(value: Tensor, index: Tensor | None) -> Tensor:
    return value if index is None else value.index_select(0, index)
