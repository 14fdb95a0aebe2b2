"""Tables that are the same on every rank: serials, uneven and empty parts, what is not finite, ranks that go."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from rank_processes import outcome, run_ranks, start_ranks

import hash3d_cuda as h3d
from hash3d_cuda.distributed import Ranks, ReplicatedTable, check_group
from hash3d_cuda.distributed.ranks import split

SHAPES = (3, 2), (5,)
OPTIONS = dict(capacity=19, num_buckets=11, grids=(h3d.Grid(30, 45, 1, 100), h3d.Grid(90, 90, 2, 500)))
ROUNDS = [[2, 2, 1], [0, 3, 0], [1, 0, 4], [0, 0, 0], [7, 1, 2], [1, 1, 1]]  # items that each rank appends


def make_table(**options):
    return h3d.HashTable(*SHAPES, **OPTIONS, **options)


def items(round_number, count, spoiled=False):
    generator = torch.Generator().manual_seed(round_number)
    keys = torch.rand(count, 4, generator=generator) * torch.tensor([60.0, 360.0, 2.0, 1000.0])
    features = torch.randn(count, *SHAPES[0], generator=generator)
    if spoiled and count:
        features[0, 0, 0] = math.nan
    return keys, torch.randn(count, *SHAPES[1], generator=generator), features


def counts_of(ranks):
    """Per round each rank's number of items; the last rank takes what is left for the others that are not there."""
    return [[*line[: ranks - 1], sum(line[ranks - 1 :])] for line in ROUNDS]


def append_in_parts():
    """Every rank appends its part of each round; what came back, and what a look at the table shows."""
    table = ReplicatedTable(make_table(), dist.group.WORLD)
    own = []
    for number, counts in enumerate(counts_of(dist.get_world_size())):
        start = sum(counts[: table.rank])
        mine = slice(start, start + counts[table.rank])
        own.append(table.append(*(part[mine] for part in items(number, sum(counts), spoiled=number % 2 == 0))).tolist())
    table.verify()
    keys, latents, _ = items(99, 50)
    answer = table.query(keys, latents)
    return own, table.lookup(keys), answer.hit, answer.serials, answer.features, table.similarity(keys), len(table)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_together_store_what_one_would(size):
    whole = make_table()
    expected = [whole.append(*items(n, sum(line), spoiled=n % 2 == 0)).tolist() for n, line in enumerate(ROUNDS)]
    assert any(serial == -1 for line in expected for serial in line), "something is not finite"
    keys, latents, _ = items(99, 50)
    answer = whole.query(keys, latents)
    told = run_ranks(size, append_in_parts)
    joined = [[serial for rank in told for serial in rank[0][number]] for number in range(len(ROUNDS))]
    assert joined == expected
    assert answer.hit.any() and not answer.hit.all()
    for _, lookup, hit, serials, features, similarity, live in told:
        assert torch.equal(lookup, whole.lookup(keys)) and torch.equal(hit, answer.hit)
        assert torch.equal(serials, answer.serials) and torch.equal(features, answer.features)
        assert torch.equal(similarity.nan_to_num(9.0), whole.similarity(keys).nan_to_num(9.0)) and live == len(whole)


def append_quantised(stored):
    table = ReplicatedTable(make_table(feature_dtype=stored), dist.group.WORLD)
    keys, latents, features = items(0, 4)
    table.append(*(part[2 * table.rank : 2 * table.rank + 2] for part in (keys, latents, features)))
    table.verify()
    return table.query(keys, latents).features


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_features_in_8_bits_are_scaled_alike(stored):
    whole = make_table(feature_dtype=stored)
    keys, latents, features = items(0, 4)
    whole.append(keys, latents, features)
    expected = whole.query(keys, latents).features
    assert expected.any()
    for answer in run_ranks(2, append_quantised, stored):
        assert torch.equal(answer, expected)


def append_badly(how):
    table = ReplicatedTable(make_table(), dist.group.WORLD)
    keys, latents, features = items(0, 2)
    table.append(keys, latents, features)
    if table.rank == 1:
        if how == "shape":
            features = features[:, :2]
        elif how == "dtype":
            latents = latents.half()
        elif how == "cleared":
            table.clear()
    table.append(keys, latents, features)


@pytest.mark.parametrize(
    "how, expected",
    [
        ("shape", [("RankLost", "rank 1 failed"), ("ValueError", "features: expected")]),
        ("dtype", [("ValueError", "different shapes or dtypes")] * 2),
        (
            "cleared",
            [("ValueError", "come apart; clear(), load and change weights on all or none (serial: [4, 0])")] * 2,
        ),
    ],
)
def test_a_rank_that_differs_is_an_error_on_all(how, expected):
    for (kind, message), (name, words) in zip(run_ranks(2, append_badly, how), expected, strict=True):
        assert kind == name and words in message, message


def differ_in_content():
    table = ReplicatedTable(make_table(), dist.group.WORLD)
    table.append(*items(0, 2))
    table.table._features[0, 0] += dist.get_rank()
    table.verify()


def test_verify_names_what_differs():
    for kind, message in run_ranks(2, differ_in_content):
        assert kind == "RuntimeError" and "features" in message and "keys" not in message


def append_until_killed(victim, how):
    table = ReplicatedTable(make_table(), dist.group.WORLD)
    for number in range(10_000):
        table.append(*items(number, 1))
        if number == 3 and table.rank == victim:
            os.kill(os.getpid(), how)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_or_stands_still_is_a_clear_error(how):
    """``outcome`` waits some minutes at most: far from gloo's half an hour."""
    ranks = start_ranks(3, append_until_killed, 1, how, timeout=3.0)
    try:
        for kind, message in [outcome(*ranks[rank]) for rank in (0, 2)]:
            assert kind == "RankLost", message
            assert "another rank ended or stood still" in message and "start all ranks again" in message
    finally:
        ranks[1][0].kill()


@given(st.integers(0, 40), st.integers(1, 9))
def test_parts_are_neighbours_and_as_equal_as_can_be(count, parts):
    slices = split(count, parts)
    assert [place for part in slices for place in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in slices]
    assert len(sizes) == parts and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def sum_up():
    ranks = Ranks(dist.group.WORLD)
    used, unused = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    used.grad = torch.tensor([1.0, 2.0]) * (ranks.rank + 1)
    if ranks.rank == 0:
        unused.grad = torch.ones(3)
    ranks.sum_gradients([used, unused], 0.5)
    return used.grad.tolist(), unused.grad.tolist(), ranks.total([ranks.rank, 1]), ranks.any(ranks.rank == 1)


def test_sums_are_the_same_on_all_ranks():
    assert run_ranks(2, sum_up) == [([1.5, 3.0], [0.5] * 3, [1, 2], True)] * 2


def disagree(same):
    ranks = Ranks(dist.group.WORLD)
    ranks.agree({"seed": 3, "eta": 0.5 if same else 0.5 + ranks.rank, **({"mesh": 1} if ranks.rank == 0 else {})})


def test_ranks_with_other_options_are_told_so():
    for kind, message in run_ranks(2, disagree, False):
        assert kind == "ValueError" and "got eta: 0.5, 1.5; mesh: 1, -; start all with one" in message
    assert "got mesh: 1, -;" in run_ranks(2, disagree, True)[1][1]


def fail_first():
    ranks = Ranks(dist.group.WORLD)
    assert ranks.first(lambda: "made") == ("made" if ranks.writes else None)

    def refuse():
        raise OSError("disk full")

    ranks.first(refuse)


def test_what_rank_0_fails_at_ends_the_others_too():
    assert run_ranks(2, fail_first) == [("OSError", "disk full"), ("RankLost", "rank 0 failed: disk full")]


@pytest.mark.parametrize("group", [None, "world", 0])
def test_no_group(group):
    with pytest.raises(TypeError, match=r"process_group: expected a torch\.distributed\.ProcessGroup.*init_process"):
        check_group("process_group", group)
