"""Items that an append leaves out: the table is as if they had not been in the batch."""

from __future__ import annotations

import math

import pytest
import torch

import hash3d_cuda as h3d

OPTIONS = {"capacity": 4, "num_buckets": 101, "feature_dtype": torch.float32}


def items(azimuths):
    count = len(azimuths)
    numbers = torch.arange(float(count))[:, None]
    return h3d.make_keys(0.0, azimuths, 2.0, 500.0), numbers.expand(count, 3), numbers.expand(count, 5) + 1


def mask(*marks: int) -> torch.Tensor:
    return torch.tensor(marks, dtype=torch.bool)


def assert_same(one, other) -> None:
    mine, theirs = one._state_dict(), other._state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("marks", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1)])
@pytest.mark.parametrize("azimuths", [(0.0, 0.0, 0.0), (0.0, 90.0, 180.0)], ids=["one cell", "three cells"])
def test_skipped_items_leave_no_trace(make_table, marks, azimuths):
    table, plain = make_table((5,), (3,), **OPTIONS), make_table((5,), (3,), **OPTIONS)
    kept = [place for place, mark in enumerate(marks) if not mark]
    for _ in range(3):  # beyond the capacity
        batch = [part.to(table.device) for part in items(azimuths)]
        serials = table.append(*batch, skip=mask(*marks).to(table.device)).tolist()
        expected = plain.append(*(part[kept] for part in batch)).tolist()
        assert [serials[place] for place in kept] == expected
        assert all(serial == -1 for serial, mark in zip(serials, marks, strict=True) if mark)
    assert_same(table, plain)
    assert table.stats() == plain.stats()


def test_a_skipped_item_is_not_looked_at(make_table):
    """Not even at what is not finite in it: it counts as left out, not as rejected."""
    table = make_table((5,), (3,), **OPTIONS)
    keys, latents, features = items((0.0, math.nan, 0.0))
    features = features.clone()
    features[2] = math.inf
    batch = [part.to(table.device) for part in (keys, latents, features)]
    assert table.append(*batch, skip=mask(0, 1, 1).to(table.device)).tolist() == [0, -1, -1]
    assert (table.stats().appended, table.stats().rejected) == (1, 0)


def test_wrong_masks_are_named(make_table):
    table = make_table((5,), (3,), **OPTIONS)
    batch = [part.to(table.device) for part in items((0.0, 90.0))]
    with pytest.raises(ValueError, match=r"skip: expected a bool tensor of shape \[2\]"):
        table.append(*batch, skip=mask(0, 1, 1).to(table.device))
    with pytest.raises((TypeError, ValueError), match="skip"):
        table.append(*batch, skip=torch.zeros(2, device=table.device))
    with pytest.raises(TypeError, match="skip"):
        table.append(*batch, skip=[True, False])
    assert table.stats().appended == 0
