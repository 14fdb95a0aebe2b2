"""Rules 7 and 8: the running similarity (Eq. 9) and the grid it chooses (Eq. 8)."""

from __future__ import annotations

import math

import pytest
import torch
from table_cases import ORIGIN, UNIT, append, keys, query, small

from hash3d_cuda import Grid

X, Y, DIAGONAL, MINUS_X = (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (-2.0, 0.0)
WIDE = Grid(10.0, 10.0, 10.0, 10.0)
A, B = (0.5, 0.5, 0.5, 0.5), (1.5, 0.5, 0.5, 0.5)
FEW = 4e-7  # a few roundings of float32 around 1


def similarity(table, *rows):
    return table.similarity(keys(table, *rows)).tolist()


def test_starts_at_the_initial_value(make_table):
    assert similarity(small(make_table), A) == [[1.0]]
    assert similarity(small(make_table, initial_similarity=0.25), A, B) == [[0.25], [0.25]]


def test_without_candidates_it_stays(make_table):
    table = small(make_table, initial_similarity=0.25)
    append(table, A)
    assert similarity(table, A) == [[0.25]]


def test_the_first_mean_replaces_the_initial_value(make_table):
    table = small(make_table)
    append(table, A, A, features=[X, DIAGONAL])
    assert similarity(table, A)[0] == pytest.approx([math.sqrt(0.5)], abs=FEW)


def test_later_means_are_averaged(make_table):
    """Candidates of the third: cosines with (0, 1) are 0 with X and sqrt(1/2) with the diagonal."""
    table = small(make_table, similarity_decay=0.75)
    append(table, A, A, A, features=[X, DIAGONAL, Y])
    root = math.sqrt(0.5)
    assert similarity(table, A)[0] == pytest.approx([0.75 * root + 0.25 * (root / 2)], abs=FEW)


def test_the_mean_is_over_the_chain_before_the_oldest_leaves(make_table):
    """Q=2: MINUS_X meets X and Y (cosines -1 and 0), then Y meets Y and MINUS_X (1 and 0)."""
    table = small(make_table, queue_length=2, similarity_decay=0.5)
    append(table, A, A, features=[X, Y])
    assert similarity(table, A)[0] == pytest.approx([0.0], abs=FEW)
    append(table, A, features=[MINUS_X])
    assert similarity(table, A)[0] == pytest.approx([-0.25], abs=FEW)
    append(table, A, features=[Y])
    assert similarity(table, A)[0] == pytest.approx([0.125], abs=FEW)


def test_only_candidates_count(make_table):
    """One bucket: with match="cell" B does not meet A; with "bucket" it does. The average is the bucket's, so a key
    elsewhere in it sees the same number."""
    table = small(make_table, num_buckets=1, initial_similarity=0.5)
    append(table, A, B, features=[X, Y])
    assert similarity(table, A, B) == [[0.5], [0.5]]
    append(table, B, features=[Y])
    assert similarity(table, A, B) == [[pytest.approx(1.0, abs=FEW)]] * 2
    table = small(make_table, num_buckets=1, match="bucket")
    append(table, A, B, features=[X, Y])
    assert similarity(table, A, B) == [[0.0], [0.0]]


def test_an_evicted_entry_is_not_met(make_table):
    """Capacity 2: entry 2 takes the slot of entry 0, so it meets only entry 1."""
    table = small(make_table, capacity=2, similarity_decay=0.0)
    append(table, A, A, A, features=[X, Y, Y])
    assert similarity(table, A)[0] == pytest.approx([1.0], abs=FEW)


def test_it_outlives_the_entries(make_table):
    table = small(make_table, capacity=2)
    append(table, A, A, features=[X, Y])
    append(table, B, B)
    assert similarity(table, A) == [[0.0]]


def test_the_feature_as_stored_is_compared(make_table):
    """In float16, 1e-9 is 0: the stored features (1, 0) and (0, 0) have a cosine of 0, not the 1 of float32."""
    table = small(make_table, feature_dtype=torch.float16)
    append(table, A, A, features=[X, (1e-9, 0.0)])
    assert similarity(table, A) == [[0.0]]


def test_a_zero_feature_has_cosine_zero(make_table):
    table = small(make_table)
    append(table, A, A, features=[X, (0.0, 0.0)])
    assert similarity(table, A) == [[0.0]]
    append(table, A, features=[(0.0, 0.0)])
    assert similarity(table, A) == [[0.0]]


def test_a_norm_beyond_float32_has_cosine_zero(make_table):
    table = small(make_table)
    append(table, A, A, features=[(1e30, 0.0), (1e30, 0.0)])
    assert similarity(table, A) == [[0.0]]


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_decay_at_its_ends(make_table, decay):
    table = small(make_table, similarity_decay=decay)
    append(table, A, A, A, features=[X, X, MINUS_X])
    assert similarity(table, A)[0] == pytest.approx([1.0 if decay else -1.0], abs=FEW)


def test_not_finite_keys_have_none(make_table):
    table = small(make_table)
    assert math.isnan(similarity(table, (math.nan, 0.0, 0.0, 0.0))[0][0])
    assert math.isnan(similarity(table, (0.0, 0.0, 0.0, -math.inf))[0][0])


def two_grids(make_table, **options):
    """Fine grid: A and B apart. Wide grid: together."""
    return small(make_table, grids=[UNIT, WIDE], **options)


def test_a_tie_goes_to_the_finest(make_table):
    table = two_grids(make_table)
    append(table, A)
    assert query(table, A).grid.tolist() == [0]
    assert query(table, A).grid.dtype == torch.int32


def test_only_grids_with_a_candidate_are_chosen_from(make_table):
    table = two_grids(make_table)
    append(table, A)
    assert query(table, B).grid.tolist() == [1]
    assert query(table, B).serials.tolist() == [[0, -1, -1]]


def test_the_highest_similarity_is_chosen(make_table):
    """At A: fine mean cos(Y, X) = 0, wide mean the same 0: a tie. Two entries at B, alike, raise the wide one only."""
    table = two_grids(make_table, similarity_decay=0.5, queue_length=2)
    append(table, A, A, features=[X, Y])
    assert query(table, A).grid.tolist() == [0]
    append(table, B, B, features=[Y, Y])
    (fine, wide) = similarity(table, A)[0]
    assert fine == 0.0 and wide == pytest.approx(0.5 * (0.5 * 0.0 + 0.5 * 0.5) + 0.5 * 1.0, abs=FEW)
    result = query(table, A)
    assert result.grid.tolist() == [1] and result.serials.tolist() == [[3, 2]]


def test_a_lower_coarse_grid_is_not_chosen(make_table):
    table = two_grids(make_table)
    append(table, B, A, features=[X, Y])
    assert similarity(table, A) == [[1.0, 0.0]]
    assert query(table, A).grid.tolist() == [0]


def test_min_similarity(make_table):
    """0 after X meets Y: below 0.5 is a miss, at the limit a hit."""
    for limit, hit in [(0.5, False), (0.0, True), (-1.0, True), (1e-30, False)]:
        table = small(make_table, min_similarity=limit)
        append(table, A, A, features=[X, Y])
        result = query(table, A)
        assert result.hit.tolist() == [hit] and result.grid.tolist() == [0 if hit else -1]
        assert table.lookup(keys(table, A)).tolist() == [[[1, 0, -1]]]


def test_min_similarity_is_rounded_to_float32(make_table):
    """0.1 in float32 is above 0.1 in float64; as limit and as start value it is one number."""
    table = small(make_table, min_similarity=0.7, initial_similarity=0.7)
    append(table, A)
    assert query(table, A).hit.tolist() == [True]


def test_min_similarity_looks_at_the_chosen_grid(make_table):
    table = two_grids(make_table, min_similarity=0.5)
    append(table, B, A, features=[X, Y])
    assert query(table, A, ORIGIN, (2.5, 0.5, 0.5, 0.5)).grid.tolist() == [0, 0, -1]
