"""A host tier beside one table that is large enough, driven by the same calls; and copies that are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import hash3d_cuda as h3d
from hash3d_cuda.host_tier import FrontTable, HostTier
from hash3d_cuda.host_tier.copier import HostCopier
from hash3d_cuda.host_tier.front import host_bytes

SHAPES = (1, 2, 2, 2), (3,)  # of features and latents
OPTIONS: dict[str, Any] = dict(
    grids=h3d.PAPER_GRIDS[:1], num_buckets=13, queue_length=2, match="cell", weighting="softmax", similarity_decay=0.9,
    initial_similarity=1.0, min_similarity=None, azimuth_period=360.0, feature_dtype=torch.float32, device="cpu",
    memory_budget=None,
)  # fmt: skip


class SlowCopier(HostCopier):
    """Copies are made when a test says so, or when work that the device does in order needs them. In each direction
    they are over in the order in which they were asked for, as on a stream."""

    immediate = False

    def __init__(self) -> None:
        self.queued: dict[int, tuple[str, Any, tuple[Any, ...]]] = {}  # by ticket
        self._next = 0
        self.marks = 0  # how often the stream was marked

    def mark(self) -> str:
        self.marks += 1
        return f"mark {self.marks}"

    def down(self, pairs: Any, after: Iterable[Any]) -> int:
        return self._queue("down", pairs, after)

    def up(self, pairs: Any, after: Iterable[Any]) -> int:
        return self._queue("up", pairs, after)

    def hold(self, ticket: Any) -> None:
        self.finish(ticket)

    def arrived(self, ticket: Any) -> bool:
        return ticket is None or ticket not in self.queued

    def settle(self) -> None:
        for ticket in list(self.queued):
            self.finish(ticket)

    def finish(self, ticket: Any) -> None:
        """Makes a copy, and those that come before it."""
        if self.arrived(ticket):
            return
        way, pairs, after = self.queued[ticket]
        for earlier in [other for other in self.queued if other < ticket and self.queued[other][0] == way]:
            self.finish(earlier)
        del self.queued[ticket]
        for other in after:
            self.finish(other)
        for target, source in pairs:
            target.copy_(source)

    def _queue(self, way: str, pairs: Any, after: Iterable[Any]) -> int:
        self.queued[self._next] = way, list(pairs), tuple(after)
        self._next += 1
        return self._next - 1


def make_tier(slots: int, entries: int, copier: Any = None, **options: Any) -> HostTier:
    """A tier of ``entries`` entries behind ``slots`` slots."""
    arguments = {**OPTIONS, **options, "capacity": slots}
    table = FrontTable(*SHAPES, **arguments)
    fixed, entry = host_bytes(table.options)
    return HostTier(table, arguments, fixed + entry * entries + entry - 1, copier)


def make_items(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents and features."""
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=numbers), torch.randn(count, 1, 2, 2, 2, generator=numbers)


class TierPair:
    """A tier and ``large``, one table of its capacity; each method calls both and compares."""

    def __init__(self, slots: int, entries: int, copier: Any = None, **options: Any) -> None:
        self.tier = make_tier(slots, entries, copier, **options)
        self.large = h3d.HashTable(*SHAPES, **{**OPTIONS, **options, "capacity": entries})
        assert self.tier.capacity == entries

    def append(self, keys: Tensor, latents: Tensor, features: Tensor) -> None:
        assert self.tier.append(keys, latents, features) == self.large.append(keys, latents, features).tolist()

    def query(self, keys: Tensor, latents: Tensor, same_averages: bool = False) -> list[bool]:
        """With ``same_averages`` the large table chooses among grids by the averages of the device's."""
        if same_averages:
            self.large._similarity.copy_(self.tier.table._similarity)
        shape = (len(keys), *SHAPES[0])
        mine, theirs = (torch.full(shape, 7.0, dtype=self.large.options.answer_dtype) for _ in range(2))
        hits = self.tier.query(keys, latents, mine)
        expected = self.large.query(keys, latents, out=theirs)
        assert hits == expected.hit.tolist()
        assert torch.equal(mine, theirs)
        return hits

    def clear(self) -> None:
        self.tier.clear()
        self.large.clear()

    def swap_states(self) -> None:
        """Both go on from what they would save, which must be the same."""
        mine, theirs = self.tier._state_dict(), self.large._state_dict()
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"similarity", "counters"}:
            assert same(mine[name], theirs[name]), name
        assert torch.equal(mine["counters"][:2], theirs["counters"][:2])
        h3d.storage.fill("state", self.tier, mine)
        self.large._load_state_dict(theirs)


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit."""
    bits = [tensor.contiguous().view(torch.uint8) if tensor.numel() else tensor for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)
