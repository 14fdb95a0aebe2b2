"""Tensors that torch says are to be read negated (its negative bit): whatever takes a table's memory resolves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rank_processes import run_ranks
from table_cases import keys, small
from torch import Tensor

from hash3d_cuda import PAPER_GRIDS, HashTable
from hash3d_cuda.checks import dense

KEY = (1.5, 2.5, 3.5, 4.5)


def negated(value: Tensor) -> Tensor:
    """The same numbers, by a view of memory that holds their negatives."""
    return torch._neg_view(-value)  # type: ignore[attr-defined]


def fill_and_ask(table: Any, turned: str, call: Any = None) -> list[Tensor]:
    """Two entries and a query between them, with one of the arguments ``turned``; all that the table says."""
    given = {
        "keys": keys(table, KEY, KEY), "latents": torch.tensor([[0.25], [0.5]], device=table.device),
        "features": torch.tensor([[1.0, -2.0], [3.0, 5.0]], device=table.device),
        "out": torch.full((2, 2), 7.0, device=table.device),
    }  # fmt: skip
    if turned:
        given[turned] = negated(given[turned])
    append, query, lookup, similarity = (getattr(table if call is None else call, name) for name in CALLS)
    serials = append(*(given[name] for name in ("keys", "latents", "features")))
    found = query(given["keys"], given["latents"] / 2, out=given["out"])
    answers = [found.hit, found.weights] if call is None else [found[0], found[3]]
    asked = [lookup(given["keys"]), lookup(keys(table, KEY)), similarity(given["keys"])]
    return [serials, *answers, given["out"].clone(), *asked]


CALLS = ("append", "query", "lookup", "similarity")
ARGUMENTS = ("keys", "latents", "features", "out")


@pytest.mark.parametrize("turned", ARGUMENTS)
def test_a_negative_bit_is_resolved(make_table, turned):
    expected = fill_and_ask(small(make_table), "")
    assert expected[1].all() and expected[3][0, 0] not in (7.0, 1.0)
    for one, other in zip(fill_and_ask(small(make_table), turned), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("turned", ARGUMENTS)
def test_operators_resolve_it_too(device, turned):
    class Operators:
        """The registered operators, called as the table's methods are."""

        def __init__(self, table):
            self.own, self.memory = table._handle, (table._content, table._written)

        def __getattr__(self, name):
            operator = getattr(torch.ops.hash3d, name)
            if name != "query":
                return lambda *given: operator(self.own, *given, *self.memory)
            return lambda *given, out: operator.out(self.own, *given, *self.memory, out)

    tables = [HashTable((2,), (1,), capacity=8, feature_dtype=torch.float32, device=device) for _ in range(2)]
    expected = fill_and_ask(tables[0], "")
    for one, other in zip(fill_and_ask(tables[1], turned, Operators(tables[1])), expected, strict=True):
        assert torch.equal(one, other)


def test_numbers_come_one_after_the_other():
    whole = torch.arange(6.0).view(2, 3)
    assert dense(whole) is whole and dense(whole, torch.float32) is whole
    turned = dense(torch.complex(whole, whole).conj().imag)
    assert not turned.is_neg() and turned.is_contiguous() and torch.equal(turned, -whole)
    assert dense(whole.T, torch.float16).is_contiguous() and dense(negated(whole)).data_ptr() != whole.data_ptr()


def append_on_ranks() -> list[Any]:
    import torch.distributed as dist

    from hash3d_cuda.distributed import ReplicatedTable

    table = ReplicatedTable(HashTable((2,), (1,), grids=PAPER_GRIDS, capacity=8), dist.group.WORLD)
    ones = torch.ones(1, 2)
    serials = table.append(*map(negated, (keys(table.table, KEY), ones[:, :1], ones.half())))
    return [serials.tolist(), table.query(keys(table.table, KEY), ones[:, :1]).features.tolist()]


def test_ranks_send_what_is_to_be_read():
    assert run_ranks(1, append_on_ranks) == [[[0], [[1.0, 1.0]]]]
