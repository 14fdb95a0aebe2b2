"""How many bare look-ups a second? One look-up is one key in the three grids of the paper, Q = 3.

Each must move 16 bytes of key, per grid 8 + 8 Q of chain and 16 for each entry's cell that is compared, and 8 Q of
answer per grid: 16 + 3 (32 + 24) = 184 bytes and the cells. The answers alone are 72 MB for a million keys.
"""

from __future__ import annotations

import pytest
import torch
from axes import rate
from torch import Tensor

import hash3d_cuda as h3d

ENTRIES = 10_000  # what DreamFusion's 10,000 steps leave behind, one view each
COUNTS = [1, 100, 10_000, 1_000_000]
GRIDS, QUEUE = len(h3d.PAPER_GRIDS), 3


def poses(count: int, seed: int) -> Tensor:
    """Keys drawn as a text-to-3D run draws its views: all around, timesteps 20 to 980."""
    random = torch.Generator().manual_seed(seed)
    elevation, azimuth, radius, timestep = torch.rand(4, count, generator=random)
    return h3d.make_keys(-10 + 70 * elevation, -180 + 360 * azimuth, 1.5 + 0.7 * radius, 20 + (960 * timestep).floor())


def filled(kind: type, entries: int) -> h3d.HashTable:
    """A table with ``entries`` of one number each: a look-up never touches the features."""
    table = kind((1,), (1,), capacity=entries)
    table.append(poses(entries, seed=1), torch.zeros(entries, 1), torch.ones(entries, 1))
    return table


def check_lookup(entries: int, keys: int) -> None:
    """The same serials as the oracle's, and some of them are there."""
    wanted = poses(keys, seed=2)
    found = filled(h3d.HashTable, entries).lookup(wanted)
    assert torch.equal(found, filled(h3d.reference.HashTable, entries).lookup(wanted))
    assert (found >= 0).any() and (found < 0).any()


def moved(found: Tensor) -> int:
    """Bytes that look-ups must move which found this."""
    return len(found) * (16 + GRIDS * (8 + 8 * QUEUE + 8 * QUEUE)) + 16 * int((found >= 0).sum())


@pytest.mark.parametrize("count", COUNTS)
def test_lookup(benchmark, count):
    check_lookup(entries=300, keys=300)
    table, keys = filled(h3d.HashTable, ENTRIES), poses(count, seed=2)
    found = table.lookup(keys)
    shares = ", ".join(f"{share:.2f}" for share in (found >= 0).any(dim=2).float().mean(dim=0).tolist())
    rate(
        benchmark,
        lambda: table.lookup(keys),
        rounds=10 if count == COUNTS[-1] else 100,
        items=count,
        moved=moved(found),
        limit=">= 5 M" if count == COUNTS[-1] else "",
        note=f"found in grids of 10, 20, 30 degrees: {shares}",
    )
