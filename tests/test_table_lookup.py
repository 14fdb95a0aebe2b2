"""The bare look-up takes short cuts (one multiplication for a division, rounding by conversion): here they could fail.

Blends take one, too: a weight that cannot change a float16 is not read.
"""

from __future__ import annotations

import pytest
import torch

import hash3d_cuda as h3d


def awkward_keys(count: int) -> torch.Tensor:
    """Ordinary keys, whole multiples of cell sizes, either zero, and cells around 2^23 and beyond 32 and 64 bits."""
    random = torch.Generator().manual_seed(0)
    ordinary = torch.rand(count, 4, generator=random) * torch.tensor([120.0, 1440, 3, 1000]) - 60
    step = torch.arange(-20, 20, dtype=torch.float32)
    borders = torch.stack([10 * step, 30 * step, step / 10, 10 * step], dim=1)
    wide = [ordinary[:40] * 10.0**power for power in (4, 5, 6, 9, 17, 30)]
    edge = torch.tensor([[8388607.5, 8388608.0, -8388608.0, 8388609.0], [0.0, -0.0, -0.0, 0.0], [-1e-30] * 4])
    return torch.cat([ordinary, borders, *wide, edge, edge * 10, -edge])


def pair(**options) -> list:
    return [kind((1,), (1,), **options) for kind in (h3d.HashTable, h3d.reference.HashTable)]


@pytest.mark.parametrize("match", ["cell", "bucket"])
@pytest.mark.parametrize("num_buckets", [1, 2, 64, 997, 100_003, 2_000_003])
@pytest.mark.parametrize("queue_length", [1, 4])
def test_serials_equal_the_oracle(num_buckets, queue_length, match):
    keys = awkward_keys(150)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(1))
    tables = pair(num_buckets=num_buckets, queue_length=queue_length, match=match, capacity=300)
    for table in tables:
        table.append(keys[order], torch.zeros(len(keys), 1), torch.ones(len(keys), 1))
    engine, oracle = (table.lookup(keys) for table in tables)
    assert torch.equal(engine, oracle)
    assert (engine >= 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("apart", [0.0, 20.0, 28.0, 29.0, 30.0, 60.0, 90.0, 105.0])
def test_features_under_tiny_weights_equal_the_sum(dtype, apart):
    """A candidate with weight exp(-apart) beside one at distance 0, with the largest numbers that the dtype blends."""
    table = h3d.HashTable((6,), (1,), capacity=4, feature_dtype=dtype)
    near = torch.tensor([0.0, 1.0, -1.0, 6e-8, 65504.0, -6e-8])
    far = torch.tensor([65504.0, -65504.0, 65504.0, -65504.0, -65504.0, 65504.0])
    keys, latents = h3d.make_keys(0, [1, 2], 2.0, 500), torch.tensor([[0.0], [apart**0.5]])
    table.append(keys, latents, torch.stack([near, far]))
    found = table.query(keys[:1], torch.zeros(1, 1))
    weights = found.weights[0, :2].double().flip(0)  # oldest first
    stored = torch.stack([near, far]).to(dtype).double()
    expected = (weights[:, None] * stored).sum(dim=0)
    torch.testing.assert_close(found.features[0], expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=6e-8)
