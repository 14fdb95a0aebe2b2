"""The table on the device in front of a host tier, and how much both hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import calls
from ..checks import fail
from ..options import COUNTERS, MATCHES, BudgetTooSmall, TableOptions
from ..results import QueryResult
from ..table import HashTable

_LANDING = 4  # one of so many slots is for entries that come back


def divide(options: TableOptions, slots: int) -> tuple[int, int]:
    """Of ``slots`` on the device those of the table's own entries, and those for entries that come back: at least M Q,
    as many as one item can have candidates.

    Raises:
        BudgetTooSmall: nothing is left for the table.
    """
    least = len(options.grids) * options.queue_length
    if slots <= least:
        problem = (
            f"capacity, memory_budget: expected room for at least {least + 1} entries beside a host_budget ({least} of "
            f"them, queue_length in each grid, for what comes back), got {slots}"
        )
        raise BudgetTooSmall(problem, "raise it, lower queue_length, or leave host_budget out")
    landing = max(least, slots // _LANDING)
    return slots - landing, landing


def slots_for(options: TableOptions, own: int) -> int:
    """The fewest slots of which :func:`divide` leaves ``own`` for the table's own entries."""
    return own + max(len(options.grids) * options.queue_length, (own - 1) // (_LANDING - 1))


def entry_bytes(options: TableOptions) -> int:
    """Bytes of one entry that move between host and device: feature and scales as stored, and latent."""
    return options.feature_size * options.feature_dtype.itemsize + 4 * (options.channels + options.latent_size)


def host_capacity(options: TableOptions, front: int, budget: int) -> int:
    """Entries that ``budget`` bytes of host memory hold, chains and keys for finding them included.

    Args:
        options: of the table on the device.
        front: its capacity.
        budget: bytes.

    Raises:
        ValueError: the host would hold no more than the device does.
    """
    fixed, entry = host_bytes(options)
    if (slots := (budget - fixed) // entry) <= front:
        expected = f"more than {fixed + entry * front} bytes, which copies of the {front} entries on the device take"
        fail(ValueError, "host_budget", expected, budget, "raise it, lower memory_budget, or leave host_budget out")
    return min(slots, 2**31 - 1)


def host_bytes(options: TableOptions) -> tuple[int, int]:
    """Bytes of a tier: those of any, and those of each entry."""
    index = replace(options, feature_shape=(1,), latent_shape=(1,), feature_dtype=torch.float32)
    return index.fixed_bytes, index.slot_bytes + entry_bytes(options)


class FrontTable(HashTable):
    """A :class:`hash3d_cuda.HashTable` with further slots behind its own, in which entries from the host land.

    Its memory is that of a table with the same options; :func:`divide` says how it is shared out.
    """

    def _divide(self, slots: int) -> tuple[int, int]:
        return divide(self.options, slots)

    @property
    def landing(self) -> range:
        """The further slots."""
        return range(self.capacity, self.capacity + self._spare)

    def ask(self, slots: Sequence[Sequence[int]], key: Tensor, latent: Tensor, out: Tensor) -> QueryResult:
        """A query of one item whose candidates the host has found: Eq. 7 and 8 by the engine's own rules, on a table of
        one bucket that has these chains and shares this one's memory and the averages of the key's buckets.

        Args:
            slots: for each grid where the candidates lie, newest first; at most ``queue_length``.
            key: float32 ``[1, 4]``.
            latent: ``[1, *latent_shape]``.
            out: ``[1, *feature_shape]``, as for :meth:`query`.
        """
        chains = torch.full((len(slots), 1, 1 + self.options.queue_length), -1, dtype=torch.int64)
        for chain, places in zip(chains[:, 0], slots, strict=True):
            chain[0] = len(places)
            chain[1 : 1 + len(places)] = torch.tensor(places[::-1], dtype=torch.int64)  # a ring starts with the oldest
        room = self.capacity + self._spare
        counters = torch.zeros(COUNTERS, dtype=torch.int64)
        counters[0] = room  # the next serial: slots are serials here, and all of them live
        there = [tensor.to(self.device, non_blocking=True) for tensor in (chains, counters)]
        averages = self.similarity(key).T.contiguous()  # [M, 1]
        memory = there[0], averages, *self._content[2:], there[1]
        engine = self._make_engine(memory, capacity=room, num_buckets=1, match=MATCHES.index("bucket"))
        return calls.run_query(self, engine, key, latent, out)

    def averages_and_counters(self) -> dict[str, Tensor]:
        """These two of what a saved table has, as CPU tensors."""
        with self._lock:
            return {"similarity": self._similarity.cpu().clone(), "counters": self._counters[:4].cpu().clone()}
