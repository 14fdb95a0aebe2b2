"""Rule 10: NaN and infinity are never stored, never hit, and use up a serial and a slot."""

from __future__ import annotations

import math

import pytest
import torch
from table_cases import append, found, keys, query, small

A, B = (0.5, 0.5, 0.5, 0.5), (1.5, 0.5, 0.5, 0.5)
BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", range(4))
def test_a_bad_key(make_table, bad, place):
    table = small(make_table)
    key = tuple(bad if i == place else 0.5 for i in range(4))
    assert append(table, A, key, A) == [0, -1, 2]
    assert found(table, A, key) == [[[2, 0]], [[]]]
    assert table.stats().rejected == 1 and len(table) == 2
    result = query(table, key, A)
    assert result.hit.tolist() == [False, True] and result.grid.tolist() == [-1, 0]
    assert result.serials[0].tolist() == [-1] * 3 and result.weights[0].tolist() == [0.0] * 3
    assert result.features[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_latent(make_table, bad):
    table = small(make_table)
    assert append(table, A, A, latents=[bad, 1.0]) == [-1, 1]
    assert found(table, A) == [[[1]]]
    result = query(table, A, A, latents=[bad, 1.0])
    assert result.hit.tolist() == [False, True]
    assert table.stats().rejected == 1 and table.stats().misses == 1


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_feature(make_table, bad):
    table = small(make_table)
    assert append(table, A, A, A, features=[(1.0, 0.0), (bad, 0.0), (0.0, bad)]) == [0, -1, -1]
    assert found(table, A) == [[[0]]] and table.stats().rejected == 2
    assert table.similarity(keys(table, A)).tolist() == [[1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("size", [1, 19, 99, 989, 4099])
def test_anywhere_in_a_long_row(make_table, size, dtype):
    """The first, the last and a middle number, where a vectorised check could lose its tail."""
    table = make_table((size,), (size,), num_buckets=7, capacity=9, feature_dtype=dtype)
    for place in {0, size // 2, size - 1}:
        good = torch.ones(1, size, device=table.device)
        bad = good.clone()
        bad[0, place] = math.nan
        assert table.append(keys(table, A), good, bad).tolist() == [-1]
        assert table.append(keys(table, A), bad, good).tolist() == [-1]
        table.append(keys(table, A), good, good)
        assert table.query(keys(table, A, A), torch.cat([good, bad])).hit.tolist() == [True, False]


def test_finiteness_is_judged_in_the_stored_dtype(make_table):
    """65520 is finite in float32 and infinite in float16; 65519 rounds to 65504. Latents are stored in float32."""
    table = small(make_table, feature_dtype=torch.float16)
    rows = [(65520.0, 0.0), (65519.0, 0.0), (-1e30, 0.0)]
    assert append(table, A, A, A, features=rows, latents=[1e30, 1e30, 0.0]) == [-1, 1, -1]
    assert query(table, A, latents=[1e30]).features.tolist() == [[65504.0, 0.0]]
    table = small(make_table, feature_dtype=torch.bfloat16)
    assert append(table, A, A, features=[(65520.0, 0.0), (3.4e38, 0.0)]) == [
        0,
        -1,
    ]  # above bfloat16's 3.39e38


def test_a_rejected_entry_uses_a_slot(make_table):
    """Capacity 3: the rejected entry 3 takes the slot of entry 0, which is gone; 4 takes that of 1."""
    table = small(make_table, capacity=3)
    append(table, A, B, A)
    assert append(table, B, latents=[math.nan]) == [-1]
    assert found(table, A, B) == [[[2]], [[1]]]
    assert append(table, A) == [4]
    assert found(table, A, B) == [[[4, 2]], [[]]]
    assert len(table) == 2


def test_all_rejected(make_table):
    table = small(make_table, capacity=2)
    assert append(table, *[A] * 5, latents=[math.nan] * 5) == [-1] * 5
    assert len(table) == 0 and table.stats().rejected == 5 and table.stats().appended == 5
    assert append(table, A) == [5]


def test_in_out_a_bad_row_is_untouched(make_table):
    table = small(make_table)
    append(table, A, features=[(3.0, 4.0)])
    out = torch.full((2, 2), 7.0, device=table.device)
    table.query(keys(table, A, A), torch.tensor([[math.nan], [0.0]], device=table.device), out=out)
    assert out.tolist() == [[7.0, 7.0], [3.0, 4.0]]


def test_huge_but_finite_keys_are_stored(make_table):
    table = small(make_table)
    key = (3e38, -3e38, 1e-45, -1e30)
    assert append(table, key) == [0]
    assert query(table, key).hit.tolist() == [True]
