"""The table's part of :mod:`gpu`: queries, appends and look-ups, beside copies, deques and eager torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from axes import Size
from gpu_clock import Clock
from gpu_rows import Row, row

import hash3d_cuda as h3d

QUEUE = 3


class Case:
    """A table of one size whose entries lie in cells of their own, and calls that go through all of them."""

    def __init__(self, size: Size, dtype: torch.dtype, batch: int, device: str, cold: int):
        self.size, self.dtype, self.batch, self.device = size, dtype, batch, device
        self.bytes = size.feature_bytes(dtype)
        self.groups = max(cold // (self.bytes * batch), 2)
        count = self.groups * batch
        azimuths, radii = [30.0 * (i % 12) + 5 for i in range(count)], [2.0 + i // 12 for i in range(count)]
        self.keys = h3d.make_keys(15.0, azimuths, radii, 500.0).to(device)
        self.latents = torch.randn(count, *size.latent, device=device)
        self.features = torch.randn(count, *size.feature, device=device, dtype=dtype)
        self.out = torch.zeros_like(self.features)
        self.table = h3d.HashTable(size.feature, size.latent, capacity=count, feature_dtype=dtype, device=device)

    def part(self, group: int) -> slice:
        """The items of one call."""
        return slice(group * self.batch, (group + 1) * self.batch)

    def each(self, call: Callable[[slice], Any]) -> list[Callable[[], Any]]:
        """One function per group of items."""
        return [functools.partial(call, self.part(group)) for group in range(self.groups)]

    def copies(self) -> list[Callable[[], Any]]:
        """What the bytes alone cost: each group's features to its outputs."""
        return self.each(lambda part: self.out[part].copy_(self.features[part]))

    def queries(self) -> list[Callable[[], Any]]:
        """One candidate an item, into the outputs."""
        return self.each(lambda part: self.table.query(self.keys[part], self.latents[part], out=self.out[part]))

    def appends(self, full: bool) -> list[Callable[[], Any]]:
        """Into cells that hold no other entry, or Q of them."""
        keys = self.keys[:1].expand_as(self.keys).contiguous() if full else self.keys
        return self.each(lambda part: self.table.append(keys[part], self.latents[part], self.features[part]))

    def check(self) -> None:
        """The outputs are the features, as they were appended."""
        self.table.append(self.keys, self.latents, self.features)
        for query in self.queries():
            query()
        assert torch.equal(self.out, self.features), "a query did not give back what was appended"


def table_rows(case: Case, clock: Clock) -> list[Row]:
    """Query and append of one size, dtype and batch."""
    case.check()
    copy = clock.calls(case.copies())
    name = f"{case.size.name} {str(case.dtype).removeprefix('torch.')} B={case.batch}"
    query = clock.calls(case.queries())
    new = clock.calls(case.appends(full=False))
    full = clock.calls(case.appends(full=True))
    feature, latent = case.batch * case.bytes, case.batch * case.size.latent_bytes
    goal = "<= 1.25" if (case.size.name, case.dtype, case.batch) == ("SD", torch.float16, 1) else ""
    return [
        row(f"copy of a feature, {name}", copy, 2 * feature),
        row(f"query, {name}", query, 2 * (feature + latent), copy, goal),
        row(f"append to a new cell, {name}", new, 2 * (feature + latent), copy),
        row(f"append to a cell of {QUEUE}, {name}", full, (QUEUE + 2) * feature + 2 * latent, copy),
    ]


def rival_rows(case: Case, clock: Clock) -> list[Row]:
    """The released code's deques and eager torch, which wait for the GPU; the engine's plain calls beside them."""
    from stored import fill

    stored = fill(case.size, case.dtype, case.device, "one")
    other = torch.zeros_like(stored.out)
    mine = clock.events(lambda: stored.engine.query(stored.key, stored.latent, out=stored.out))
    deques = clock.events(lambda: stored.deques.query(stored.key, stored.latent))
    eager = clock.events(lambda: stored.eager.query(stored.key, stored.latent, other))
    moved = 2 * case.bytes + (QUEUE + 1) * case.size.latent_bytes
    return [
        row(f"query as a plain call, {case.size.name}", mine, moved),
        row("the same of Python deques", deques, moved, mine),
        row("the same in eager torch", eager, moved, mine),
    ]


def lookup_rows(clock: Clock, device: str, counts: list[int]) -> list[Row]:
    """Bare look-ups of many keys with the three grids of the paper."""
    from test_lookup import ENTRIES, moved, poses

    table = h3d.HashTable((1,), (1,), capacity=ENTRIES, device=device)
    table.append(poses(ENTRIES, seed=1).to(device), torch.zeros(ENTRIES, 1, device=device),
                 torch.ones(ENTRIES, 1, device=device))  # fmt: skip
    rows = []
    for count in counts:
        keys = poses(count, seed=2).to(device)
        seconds = clock.calls([lambda keys=keys: table.lookup(keys)])
        found = row(f"look-up of {count:,} keys", seconds, moved(table.lookup(keys)))
        found["per_second"] = count / seconds
        found["goal"] = ">= 2000 M" if count == counts[-1] else ""
        rows.append(found)
    return rows
