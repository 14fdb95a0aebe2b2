"""Filled tables for the benchmarks of query and append."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from axes import Size
from baselines.deque_table import DequeTable
from baselines.eager_table import EagerTable
from torch import Tensor

import hash3d_cuda as h3d
from hash3d_cuda.checks import QUANTISED_DTYPES

CAPACITY = 8
CANDIDATES = 3  # Q of the paper


@dataclass
class Stored:
    """Three tables with the same three candidates of one cell, and a query for them."""

    engine: h3d.HashTable
    eager: EagerTable
    deques: DequeTable
    key: Tensor  # [1, 4]
    latent: Tensor  # [1, *latent]
    features: Tensor  # [3, *feature], as given
    out: Tensor  # [1, *feature], memory that has been written to


def fill(size: Size, dtype: torch.dtype, device: str, weighing: str) -> Stored:
    """``weighing="one"``: the second candidate's latent is the query's own, the others are so far away that their
    weights are exactly 0 in float32. ``"all"``: all are equally far away and weigh the same. With a ``dtype`` of 8 bits
    the rivals keep what goes in and comes out, float16."""
    random = torch.Generator().manual_seed(0)
    latent = torch.randn(1, *size.latent, generator=random)
    others = latent.repeat(CANDIDATES, *(1,) * len(size.latent))
    if weighing == "one":
        others[[0, 2]] += 200 * torch.randn(2, *size.latent, generator=random)
    else:
        flat = others.flatten(1)
        for candidate in range(CANDIDATES):
            flat[candidate, candidate] = latent.flatten()[candidate] + 1
    given = torch.float16 if dtype in QUANTISED_DTYPES else dtype
    features = torch.randn(CANDIDATES, *size.feature, generator=random).to(given)
    others, latent, features = others.to(device), latent.to(device), features.to(device)
    keys = h3d.make_keys(elevation=15, azimuth=[10.01, 10.02, 10.03], radius=2.05, timestep=[501, 502, 503]).to(device)
    options = dict(capacity=CAPACITY, feature_dtype=dtype, device=device)
    engine = h3d.HashTable(size.feature, size.latent, **options)
    eager = EagerTable(size.feature, size.latent, **{**options, "feature_dtype": given})
    tables = (engine, eager, DequeTable(device))
    for table in tables:
        table.append(keys, others, features)
    return Stored(*tables, keys[1:2], latent, features, torch.zeros_like(features[:1]))


def check_query(stored: Stored, weighing: str) -> None:
    """All three tables give the same feature, which is the one that the case was built for."""
    found = stored.engine.query(stored.key, stored.latent, out=stored.out)
    assert found.hit.all() and found.serials.tolist() == [[2, 1, 0]]
    if weighing == "one":
        assert found.weights.tolist() == [[0, 1, 0]]
        expected = stored.features[1:2]
        assert torch.equal(stored.out, expected)
    else:
        assert torch.allclose(found.weights, torch.full_like(found.weights, 1 / 3), atol=1e-4)
        expected = stored.features.float().mean(dim=0, keepdim=True).to(stored.out.dtype)
    tolerance = 4 * torch.finfo(stored.out.dtype).eps + 1e-3  # the deques' weights are rounded to the dtype
    other = torch.zeros_like(stored.out)
    assert stored.eager.query(stored.key, stored.latent, other) == [True]
    for result in (stored.out, other, stored.deques.query(stored.key, stored.latent)[0][None]):
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def check_append(stored: Stored) -> None:
    """What is appended comes back, from every table, and the similarity of the engine and of eager torch agree."""
    feature = (stored.features[:1].float() * 2).to(stored.features.dtype)
    far = stored.latent - 300
    out = torch.zeros_like(feature)
    for table in (stored.engine, stored.eager):
        table.append(stored.key, far, feature)
        table.query(stored.key, far, out=out)
        assert torch.equal(out, feature)
    stored.deques.append(stored.key, far, feature)
    assert torch.equal(stored.deques.query(stored.key, far)[0], feature[0])
    _, buckets = stored.eager._place(stored.key[0])
    mine, theirs = stored.engine.similarity(stored.key)[0], stored.eager._similarity[stored.eager._grids, buckets]
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
