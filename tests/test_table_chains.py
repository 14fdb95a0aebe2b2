"""Rules 3 to 6: what an append does to the chains, capacity, and who is a candidate."""

from __future__ import annotations

import pytest
import torch
from table_cases import ORIGIN, UNIT, append, found, keys, query, small

from hash3d_cuda import _C, PAPER_GRIDS, Grid

A, B, C = (0.5, 0.5, 0.5, 0.5), (1.5, 0.5, 0.5, 0.5), (2.5, 0.5, 0.5, 0.5)


def test_serials_count_appends(make_table):
    table = small(make_table)
    assert append(table, A, B) == [0, 1]
    assert append(table) == []
    assert append(table, A) == [2]
    assert found(table, A, B, C) == [[[2, 0]], [[1]], [[]]]


def test_an_entry_joins_every_grid(make_table):
    table = small(make_table, grids=PAPER_GRIDS)
    assert append(table, A) == [0]
    assert found(table, A) == [[[0], [0], [0]]]
    assert len(table) == 1


def test_a_chain_keeps_the_newest(make_table):
    table = small(make_table, queue_length=3)
    append(table, *[A] * 5)
    assert found(table, A) == [[[4, 3, 2]]]
    assert len(table) == 3


# Of the last, an append compares with all before it. Emulated that takes over a minute, so there it is as many as a
# block of 256 threads goes over in two passes, the second nearly empty.
LONGEST = 260 if _C.build_info()["cuda_architectures"] == "emulated" else 1024


@pytest.mark.parametrize("queue_length", [1, 2, 7, LONGEST])
def test_queue_lengths(make_table, queue_length):
    table = small(make_table, queue_length=queue_length, capacity=2048)
    append(table, *[A] * (queue_length + 5))
    assert found(table, A) == [[list(range(queue_length + 4, 4, -1))]]
    assert query(table, A).serials.shape == (1, queue_length)
    assert len(table) == queue_length


def test_a_batch_is_appended_as_if_one_by_one(make_table):
    rows = [A, B, A, C, A, B, A, A]
    together, apart = small(make_table), small(make_table)
    assert append(together, *rows) == [serial for row in rows for serial in append(apart, row)]
    assert found(together, A, B, C) == found(apart, A, B, C) == [[[7, 6, 4]], [[5, 1]], [[3]]]


def test_capacity_makes_the_oldest_leave(make_table):
    table = small(make_table, capacity=3)
    append(table, A, B, A)
    assert found(table, A, B) == [[[2, 0]], [[1]]]
    append(table, C)
    assert found(table, A, B, C) == [[[2]], [[1]], [[3]]]
    append(table, C)
    assert found(table, A, B, C) == [[[2]], [[]], [[4, 3]]]
    assert len(table) == 3 and table.capacity == 3


def test_capacity_inside_one_batch(make_table):
    table = small(make_table, capacity=2)
    assert append(table, A, B, C, A, B) == [0, 1, 2, 3, 4]
    assert found(table, A, B, C) == [[[3]], [[4]], [[]]]


def test_an_evicted_entry_no_longer_fills_its_chain(make_table):
    """With 0 gone, the chain 1, 2 has room for 4 beside them."""
    table = small(make_table, capacity=4, queue_length=3)
    append(table, A, A, A, B)
    assert found(table, A) == [[[2, 1, 0]]]
    append(table, A)
    assert found(table, A) == [[[4, 2, 1]]]


def test_capacity_of_one(make_table):
    table = small(make_table, capacity=1)
    append(table, A, B)
    assert found(table, A, B) == [[[]], [[1]]]
    assert len(table) == 1


def test_an_entry_lives_while_any_chain_holds_it(make_table):
    """A and B share a cell of the coarse grid only. Two entries at B push A out of the coarse chain, not out of the
    fine one; two more at A push it out of that as well."""
    table = small(make_table, grids=[UNIT, Grid(10.0, 10.0, 10.0, 10.0)], queue_length=2)
    append(table, A, B, B)
    assert found(table, A) == [[[0], [2, 1]]]
    assert len(table) == 3
    append(table, A, A)
    assert found(table, A, B) == [[[4, 3], [4, 3]], [[2, 1], [4, 3]]]
    assert len(table) == 4


def test_match_cell_ignores_others_in_the_bucket(make_table):
    table = small(make_table, num_buckets=1, queue_length=4)
    append(table, A, B, A)
    assert found(table, A, B, C) == [[[2, 0]], [[1]], [[]]]
    assert query(table, A, B, C).hit.tolist() == [True, True, False]


def test_match_bucket_takes_the_whole_chain(make_table):
    table = small(make_table, num_buckets=1, queue_length=4, match="bucket")
    append(table, A, B, A)
    assert found(table, A, B, C) == [[[2, 1, 0]]] * 3
    assert query(table, A, B, C).hit.tolist() == [True, True, True]


def test_others_in_the_bucket_still_push_out(make_table):
    table = small(make_table, num_buckets=1, queue_length=2)
    append(table, A, B, C)
    assert found(table, A, B, C) == [[[]], [[1]], [[2]]]


def test_lookup_of_many_keys(make_table):
    table = small(make_table, grids=PAPER_GRIDS)
    append(table, A)
    serials = table.lookup(keys(table, A).expand(1000, 4))
    assert serials.shape == (1000, 3, 3) and serials.dtype == torch.int64
    assert (serials == torch.tensor([0, -1, -1], device=serials.device)).all()


def test_empty_batches(make_table):
    table = small(make_table, grids=PAPER_GRIDS)
    assert append(table) == []
    result = query(table)
    assert result.features.shape == (0, 2) and result.hit.shape == (0,) and result.grid.shape == (0,)
    assert result.serials.shape == (0, 3) and result.weights.shape == (0, 3)
    assert table.lookup(keys(table)).shape == (0, 3, 3)
    assert table.similarity(keys(table)).shape == (0, 3)


def test_clear_is_as_constructed(make_table):
    table = small(make_table)
    append(table, A, A, features=[(1.0, 0.0), (0.0, 1.0)])
    query(table, A)
    table.clear()
    assert len(table) == 0 and found(table, A) == [[[]]]
    assert table.similarity(keys(table, A)).tolist() == [[1.0]]
    stats = table.stats()
    assert (stats.appended, stats.rejected, stats.live, stats.queries, stats.hits, stats.misses) == (0,) * 6
    assert append(table, A) == [0]


def test_stats_count(make_table):
    table = small(make_table, queue_length=2)
    append(table, A, A, A, (float("nan"), 0.0, 0.0, 0.0))
    query(table, A, C, A)
    table.lookup(keys(table, A))
    stats = table.stats()
    assert (stats.appended, stats.rejected, stats.live, stats.capacity) == (4, 1, 2, 64)
    assert (stats.queries, stats.hits, stats.misses) == (3, 2, 1)
    assert stats.hit_rate == pytest.approx(2 / 3)
    assert stats.nbytes == table.nbytes
    assert "2 of 64 slots live" in str(stats) and "66.7%" in str(stats)


def test_a_hit_does_not_change_the_table(make_table):
    table = small(make_table)
    append(table, A, A)
    first, second = query(table, A), query(table, A)
    assert first.serials.tolist() == second.serials.tolist()
    assert found(table, A) == [[[1, 0]]]


def test_the_table_keeps_copies(make_table):
    table = small(make_table)
    key, latent, feature = keys(table, ORIGIN), torch.zeros(1, 1), torch.ones(1, 2)
    latent, feature = latent.to(table.device), feature.to(table.device)
    table.append(key, latent, feature)
    for tensor in (key, latent, feature):
        tensor.fill_(9.0)
    result = query(table, ORIGIN)
    assert result.features.tolist() == [[1.0, 1.0]]
    result.features.fill_(5.0)
    assert query(table, ORIGIN).features.tolist() == [[1.0, 1.0]]
