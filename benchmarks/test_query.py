"""What does it cost to get a feature back?

F = bytes of a feature (2 rows of 320 channels), L = bytes of a latent in float32, Q = 3 candidates.

    a copy of one feature         reads F, writes F                              2 F
    query, one weight dominates   reads Q + 1 latents and one feature, writes F  2 F + (Q + 1) L
    query, all weigh              reads Q + 1 latents, Q features, writes F      (Q + 1) F + (Q + 1) L

At SD's size in float16 F is 5 MiB and L 64 KiB.
"""

from __future__ import annotations

import pytest
import torch
from axes import SIZE_IDS, SIZES, Size, compare, devices
from stored import CANDIDATES, check_query, fill

BOUNDS = {("copy", "one"): "<= 1.25", ("deques", "one"): "<= 0.05"}


def moved(size: Size, dtype: torch.dtype, weighing: str) -> int:
    """Bytes that a query must move."""
    features = 2 if weighing == "one" else CANDIDATES + 1
    return features * size.feature_bytes(dtype) + (CANDIDATES + 1) * size.latent_bytes


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("against", ["copy", "deques", "eager"])
@pytest.mark.parametrize("weighing", ["one", "all"])
@pytest.mark.parametrize(("size", "dtype"), SIZES, ids=SIZE_IDS)
def test_query(benchmark, size, dtype, weighing, against, device):
    stored = fill(size, dtype, device, weighing)
    check_query(stored, weighing)
    source = stored.engine._features[1].view(stored.out.shape)  # the bytes that the heaviest candidate's feature is
    other = torch.zeros_like(stored.out)
    rivals = {
        "copy": lambda: stored.out.copy_(source),  # to the same place: both find the same memory warm
        "deques": lambda: stored.deques.query(stored.key, stored.latent),
        "eager": lambda: stored.eager.query(stored.key, stored.latent, other),
    }
    compare(
        benchmark,
        lambda: stored.engine.query(stored.key, stored.latent, out=stored.out),
        rivals[against],
        against=against,
        rounds=200 if against == "copy" else 20,
        warm=1 if against == "copy" else 5,
        device=device,
        moved=moved(size, dtype, weighing),
        limit=BOUNDS.get((against, weighing), "") if size.name == "SD" else "",
    )
