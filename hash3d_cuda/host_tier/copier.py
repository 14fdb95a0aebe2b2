"""Copies between the device's slots and host memory. A copy is one ``(target, source)`` pair of tensors of one shape
and dtype; a ticket stands for all work up to some point, and None for work that is over."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Pairs = Sequence[tuple[Tensor, Tensor]]


class Copier(Protocol):
    """What a tier needs of its copies.

    Attributes:
        immediate: whether a copy is over when the call that makes it returns.
    """

    immediate: bool

    def empty(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Host memory for ``rows`` entries."""

    def mark(self) -> Any:
        """A ticket for the work queued by now on the current stream."""

    def down(self, pairs: Pairs, after: Iterable[Any]) -> Any:
        """Copies to the host once ``after`` is over; returns a ticket."""

    def up(self, pairs: Pairs, after: Iterable[Any]) -> Any:
        """Copies to the device once ``after`` is over; returns a ticket."""

    def hold(self, ticket: Any) -> None:
        """What is queued on the current stream from now on comes after ``ticket``."""

    def arrived(self, ticket: Any) -> bool:
        """Whether ``ticket`` is over, without waiting."""

    def settle(self) -> None:
        """Waits until all copies are over."""


class HostCopier:
    """For a table on a CPU: everything is over when it returns."""

    immediate = True

    def empty(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype)

    def mark(self) -> None:
        return None

    def down(self, pairs: Pairs, after: Iterable[Any]) -> None:
        for target, source in pairs:
            target.copy_(source)

    up = down

    def hold(self, ticket: Any) -> None:
        return None

    def arrived(self, ticket: Any) -> bool:
        return True

    def settle(self) -> None:
        return None


class CudaCopier:
    """For a table on a GPU: one side stream in each direction, so that what comes back does not queue behind what
    leaves, which waits for the step's own work. Tickets are events. The host waits in :meth:`settle` alone.

    Host memory is allocated as it is and then pinned: torch's pinned allocator would round it up to a power of two.
    """

    immediate = False

    def __init__(self, device: torch.device, memory: Iterable[Tensor]) -> None:
        """``memory``: the device's, which must outlive copies that are under way."""
        self._device = device
        self._down, self._up = torch.cuda.Stream(device), torch.cuda.Stream(device)
        for tensor in memory:
            tensor.record_stream(self._down)
            tensor.record_stream(self._up)
        self._pinned: list[Tensor] = []
        self._runtime = torch.cuda.cudart()
        weakref.finalize(self, _release, self._pinned, (self._down, self._up), self._runtime).atexit = False

    def empty(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        memory = torch.empty(rows, columns, dtype=dtype)
        error = self._runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0) if memory.nbytes else 0
        if int(error):
            raise MemoryError(
                f"host_budget: {memory.nbytes:,} bytes of host memory cannot be pinned (CUDA error {int(error)}); "
                "lower host_budget, or raise the limit on locked memory (ulimit -l)"
            )
        self._pinned.append(memory)
        return memory

    def mark(self) -> torch.cuda.Event:
        return self._record(torch.cuda.current_stream(self._device))

    def down(self, pairs: Pairs, after: Iterable[Any]) -> torch.cuda.Event:
        return self._copy(self._down, pairs, after)

    def up(self, pairs: Pairs, after: Iterable[Any]) -> torch.cuda.Event:
        return self._copy(self._up, pairs, after)

    def hold(self, ticket: Any) -> None:
        if ticket is not None:
            torch.cuda.current_stream(self._device).wait_event(ticket)

    def arrived(self, ticket: Any) -> bool:
        return ticket is None or ticket.query()

    def settle(self) -> None:
        self._down.synchronize()
        self._up.synchronize()

    def _copy(self, stream: torch.cuda.Stream, pairs: Pairs, after: Iterable[Any]) -> torch.cuda.Event:
        for ticket in after:
            if ticket is not None:
                stream.wait_event(ticket)
        with torch.cuda.stream(stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        return self._record(stream)

    @staticmethod
    def _record(stream: Any) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(stream)
        return event


def _release(pinned: list[Tensor], streams: Sequence[torch.cuda.Stream], runtime: Any) -> None:
    """Lets go of host memory that no copy uses any more."""
    for stream in streams:
        stream.synchronize()
    for memory in pinned:
        if memory.nbytes:
            runtime.cudaHostUnregister(memory.data_ptr())


def make_copier(device: torch.device, memory: Iterable[Tensor]) -> Copier:
    """The copier for a table's device; ``memory`` is the table's."""
    return HostCopier() if device.type == "cpu" else CudaCopier(device, memory)
