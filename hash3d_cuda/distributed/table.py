"""A table that is the same on every rank."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from ..results import QueryResult, TableStats
from ..table import HashTable
from .exchange import Exchange
from .group import all_gather


class ReplicatedTable:
    """One :class:`hash3d_cuda.HashTable` per rank with the same entries in all of them.

    Look-ups and queries are each rank's own and send nothing. :meth:`append` is collective: every rank calls it equally
    often, with as many items as it has, none included. An append moves, to each rank, all other ranks' entries
    (:mod:`hash3d_cuda.distributed.cost` counts them).

    Under the cache's hook, ``Hash3DConfig(process_group=...)`` does the same by itself.

    Args:
        table: this rank's; all ranks' are made with the same options, and are empty or loaded from the same file.
        group: a process group, such as ``torch.distributed.group.WORLD``.

    Raises:
        TypeError, ValueError: ``group`` is no process group, or one without a backend for CPU tensors.
    """

    def __init__(self, table: HashTable, group: Any) -> None:
        self.table = table
        self._exchange = Exchange(group, "group")
        self._serial = table.stats().appended

    @property
    def rank(self) -> int:
        """This process's."""
        return self._exchange.rank

    def append(self, keys: Tensor, latents: Tensor, features: Tensor) -> Tensor:
        """Stores the items of all ranks: rank 0's in their order, then rank 1's, and so on.

        Args:
            keys: float32 ``[B, 4]``, this rank's; B may differ from rank to rank and be 0.
            latents: ``[B, *latent_shape]``.
            features: ``[B, *feature_shape]``.

        Returns:
            serials int64 ``[B]`` of this rank's items, as :meth:`hash3d_cuda.HashTable.append` gives them.

        Raises:
            TypeError, ValueError: an argument is wrong; the other ranks raise RankLost.
            RankLost: another rank failed, ended or stood still for longer than the group's timeout.
        """
        with self._exchange.turn():
            keys, latents = self.table._check_items(keys, latents)
            features = self.table.options.check_features(features, len(keys))
            stored = features.to(self.table.options.answer_dtype)  # where that has 8 bits, each table scales
            gathered = self._exchange.gather(keys, latents.contiguous(), stored.contiguous(), self._serial)
        assert gathered is not None  # nobody abstains here
        *items, counts = gathered
        serials = self.table.append(*items)
        self._serial += len(serials)
        return serials.split(counts)[self._exchange.rank]

    def query(self, keys: Tensor, latents: Tensor, out: Tensor | None = None) -> QueryResult:
        """As :meth:`hash3d_cuda.HashTable.query`."""
        return self.table.query(keys, latents, out)

    def lookup(self, keys: Tensor) -> Tensor:
        """As :meth:`hash3d_cuda.HashTable.lookup`."""
        return self.table.lookup(keys)

    def similarity(self, keys: Tensor) -> Tensor:
        """As :meth:`hash3d_cuda.HashTable.similarity`."""
        return self.table.similarity(keys)

    def stats(self) -> TableStats:
        """Counters; entries are those of all ranks, queries this rank's own."""
        return self.table.stats()

    def __len__(self) -> int:
        """Live entries."""
        return len(self.table)

    def clear(self) -> None:
        """Empties this rank's table; to be called on all ranks."""
        self.table.clear()
        self._serial = 0

    def verify(self) -> None:
        """Compares all that the ranks' tables hold, number by number (collective; reads everything to the host).

        Ranks on machines of one kind agree bit for bit. Machines of different kinds may round similarities otherwise.

        Raises:
            RuntimeError: naming what differs.
        """
        state = self.table._state_dict()
        state["counters"] = state["counters"][:2]  # queries and hits are each rank's own
        sums = [zlib.crc32(tensor.flatten().view(torch.uint8).numpy().tobytes()) for tensor in state.values()]
        own = torch.tensor(sums, dtype=torch.int64)
        all_sums = torch.empty(self._exchange.size * len(own), dtype=torch.int64)
        all_gather(all_sums, own, "checksums", self._exchange.group)
        same = (all_sums.view(self._exchange.size, -1) == all_sums[: len(own)]).all(0).tolist()
        if different := [name for name, equal in zip(state, same, strict=True) if not equal]:
            raise RuntimeError(f"verify: ranks hold different {', '.join(different)}; clear the tables on all ranks")
