"""What does it cost to file a feature?

The adaptive grid (Eq. 9) wants the new feature's cosine similarity with the candidates of its cell, so these are read:
with Q = 3 of them an append reads Q + 1 features and a latent and writes a feature and a latent,
(Q + 2) F + 2 L bytes; in a new cell 2 F + 2 L, a copy's share.
"""

from __future__ import annotations

import pytest
import torch
from axes import SIZE_IDS, SIZES, Size, compare, devices
from stored import CANDIDATES, check_append, fill

import hash3d_cuda as h3d


def moved(size: Size, dtype: torch.dtype, cell: str) -> int:
    """Bytes that an append must move."""
    features = CANDIDATES + 2 if cell == "full" else 2
    return features * size.feature_bytes(dtype) + 2 * size.latent_bytes


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("against", ["copy", "deques", "eager"])
@pytest.mark.parametrize("cell", ["full", "new"])
@pytest.mark.parametrize(("size", "dtype"), SIZES, ids=SIZE_IDS)
def test_append(benchmark, size, dtype, cell, against, device):
    check_append(fill(size, dtype, device, "all"))
    stored = fill(size, dtype, device, "all")
    feature, target = stored.features[:1], torch.zeros_like(stored.out)
    steps = iter(range(10**9))

    def key() -> torch.Tensor:
        """The candidates' own cell, or one where nothing lies: further away each time."""
        return stored.key if cell == "full" else h3d.make_keys(15, 10, 10.0 + next(steps), 500, device=device)

    rivals = {
        "copy": lambda: target.copy_(feature),
        "deques": lambda: stored.deques.append(key(), stored.latent, feature),
        "eager": lambda: stored.eager.append(key(), stored.latent, feature),
    }
    compare(
        benchmark,
        lambda: stored.engine.append(key(), stored.latent, feature),
        rivals[against],
        against=against,
        rounds=20,
        warm=1 if against == "copy" else 5,
        device=device,
        moved=moved(size, dtype, cell),
    )
