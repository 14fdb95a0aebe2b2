"""What ranks tell each other so that their tables stay the same: one exchange per forward or append.

    header (host) -> every rank's number of items, and what must agree -> keys -> latents -> features, in rank order

The header travels between hosts as CPU tensors; so do keys that lie there. Latents and features go from device to
device, in the dtype that is stored, or float16 where that has 8 bits. Ranks append what all of them hold after the
exchange, in the same order, and a table is a function of its appends: so serials, chains and similarities agree, and
what is not finite is rejected alike.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .group import RankLost, all_gather, check_group, gather_rows

STORES, ABSTAINS, FAILED = range(3)


class Header(NamedTuple):
    """What a rank says of its part in an exchange; numbers, so that they travel as one int64 tensor."""

    state: int
    items: int = 0
    tried: int = 0
    condition: int = 0
    layout: int = 0
    serial: int = 0


# What must be the same on all ranks, and what it means when it is not.
_AGREED = {
    "tried": "toss different coins; give all ranks the same seed",
    "condition": "name different conditions; call with one condition per forward, the same on all ranks",
    "layout": "have features or latents of different shapes or dtypes; call all ranks with the same sizes",
    "serial": "hold tables that have come apart; clear(), load and change weights on all or none",
}


class Exchange:
    """A rank's side of the exchanges in ``group``. Every rank makes the same exchanges in the same order.

    Args:
        group: a process group, see :func:`hash3d_cuda.distributed.check_group`.
        name: of the option that it came from, for messages.
    """

    def __init__(self, group: Any, name: str = "process_group") -> None:
        self.group = check_group(name, group)
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._spoken = True

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Brackets what leads to one exchange: a rank that fails on the way tells the others, who would wait."""
        self._spoken = False
        try:
            yield
        except BaseException:
            if not self._spoken:
                with contextlib.suppress(RankLost):
                    self._tell(Header(FAILED))
            raise

    def abstain(self) -> bool:
        """This rank has nothing that could be stored, nor a table that it knows the shapes of; nobody stores then.

        Returns:
            whether another rank went on, and so has tossed its coin.
        """
        headers = self._tell(Header(ABSTAINS))
        self._heed(headers)
        return any(header.state == STORES for header in headers)

    def gather(
        self, keys: Tensor, latents: Tensor, features: Tensor, serial: int, tried: bool = False, condition: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, list[int]] | None:
        """All ranks' items in rank order, or None when a rank abstained.

        Args:
            keys: float32 ``[B, 4]``; B may be 0 and differs from rank to rank.
            latents: ``[B, ...]``.
            features: ``[B, ...]`` in the stored dtype, or float16 where that has 8 bits.
            serial: the next one of this rank's table.
            tried: the coin.
            condition: what the entries are filed under, an object with a repr that says what it is.

        Returns:
            keys, latents, features ``[sum of all B, ...]``, and each rank's B.

        Raises:
            RankLost: a rank failed, ended or stood still.
            ValueError: ranks contradict each other; all of them raise it.
        """
        layout = checksum((tuple(latents.shape[1:]), latents.dtype, tuple(features.shape[1:]), features.dtype))
        own = Header(STORES, len(keys), int(tried), checksum(condition), layout, serial)
        counts = self._heed(self._tell(own))
        if counts is None:
            return None
        keys = gather_rows(keys, counts, "keys", self.group)
        latents = gather_rows(latents, counts, "latents", self.group)
        features = gather_rows(features, counts, "features", self.group)
        return keys, latents, features, counts

    def _tell(self, header: Header) -> list[Header]:
        """Every rank's header."""
        self._spoken = True
        own = torch.tensor(header, dtype=torch.int64)
        told = torch.empty(self.size * len(own), dtype=torch.int64)
        all_gather(told, own, "headers", self.group)
        return [Header(*numbers) for numbers in told.view(self.size, -1).tolist()]

    @staticmethod
    def _heed(headers: list[Header]) -> list[int] | None:
        """Every rank's number of items; None when one abstained. Raises when one failed or they disagree."""
        if failed := [rank for rank, header in enumerate(headers) if header.state == FAILED]:
            raise RankLost(f"process_group: rank {failed[0]} failed in this forward; its own message says why")
        if any(header.state == ABSTAINS for header in headers):
            return None
        for name, remedy in _AGREED.items():
            values = [getattr(header, name) for header in headers]
            if len(set(values)) > 1:
                raise ValueError(f"process_group: ranks 0 to {len(headers) - 1} {remedy} ({name}: {values})")
        return [header.items for header in headers]


def checksum(value: Hashable) -> int:
    """A number for comparing what ``value`` looks like."""
    return zlib.crc32(repr(value).encode())
