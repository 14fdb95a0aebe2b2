"""Rule 11: each wrong argument is named, with what came, what was expected and how to mend it."""

from __future__ import annotations

import math

import pytest
import torch
from table_cases import keys, small

from hash3d_cuda import Grid, HashTable

MESSAGE = r": expected .+, got .+; .+"


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (TypeError, {"feature_shape": "big"}),
        (TypeError, {"feature_shape": (4, 1.5)}),
        (ValueError, {"feature_shape": (4, 0)}),
        (ValueError, {"latent_shape": (-4, 64)}),
        (TypeError, {"latent_shape": None}),
        (TypeError, {"grids": Grid()}),
        (TypeError, {"grids": "paper"}),
        (ValueError, {"grids": []}),
        (ValueError, {"grids": [Grid()] * 17}),
        (TypeError, {"grids": [10.0, 10.0, 0.1, 10.0]}),
        (ValueError, {"grids": [(10.0, 10.0, 0.1)]}),
        (ValueError, {"num_buckets": 0}),
        (ValueError, {"num_buckets": -3}),
        (TypeError, {"num_buckets": 3.0}),
        (TypeError, {"num_buckets": True}),
        (ValueError, {"queue_length": 0}),
        (TypeError, {"queue_length": "3"}),
        (ValueError, {"capacity": 0}),
        (TypeError, {"capacity": 1.5}),
        (ValueError, {"capacity": None, "memory_budget": "2 bananas"}),
        (ValueError, {"capacity": None, "memory_budget": "-2GiB"}),
        (ValueError, {"capacity": None, "memory_budget": -5}),
        (ValueError, {"capacity": None, "memory_budget": ""}),
        (TypeError, {"capacity": None, "memory_budget": 2.5}),
        (ValueError, {"match": "near"}),
        (TypeError, {"match": None}),
        (ValueError, {"weighting": "softmin"}),
        (TypeError, {"weighting": 3}),
        (ValueError, {"similarity_decay": 1.5}),
        (ValueError, {"similarity_decay": -0.1}),
        (ValueError, {"similarity_decay": math.nan}),
        (TypeError, {"similarity_decay": "0.9"}),
        (ValueError, {"initial_similarity": math.inf}),
        (TypeError, {"initial_similarity": None}),
        (ValueError, {"min_similarity": math.nan}),
        (TypeError, {"min_similarity": "high"}),
        (ValueError, {"azimuth_period": 0.0}),
        (ValueError, {"azimuth_period": -360.0}),
        (ValueError, {"azimuth_period": 1e-60}),
        (TypeError, {"azimuth_period": "360"}),
        (ValueError, {"feature_dtype": torch.float64}),
        (ValueError, {"feature_dtype": torch.int16}),
        (ValueError, {"feature_dtype": torch.float8_e5m2}),
        (TypeError, {"feature_dtype": "float16"}),
    ],
    ids=str,
)
def test_constructor(make_table, error, options):
    name = list(options)[-1]
    arguments = {"feature_shape": (2,), "latent_shape": (1,), "capacity": 4, "num_buckets": 7} | options
    with pytest.raises(error, match=name + r"(\[\d\])?" + MESSAGE):
        make_table(**arguments)


@pytest.mark.parametrize("device", ["meta", "gpu", "cuda:99", 1.5, None])
def test_device(make_table, device):
    with pytest.raises((ValueError, TypeError), match="device" + MESSAGE):
        make_table.func((2,), (1,), capacity=4, num_buckets=7, device=device)


def test_capacity_and_budget_exclude_each_other(make_table):
    with pytest.raises(ValueError, match="capacity, memory_budget: expected exactly one of the two, got both; pass"):
        make_table((2,), (1,), capacity=4, memory_budget="1GiB")
    with pytest.raises(ValueError, match="capacity, memory_budget: expected exactly one of the two, got neither; pass"):
        make_table((2,), (1,))


def test_options_go_by_name(make_table):
    with pytest.raises(TypeError):
        make_table((2,), (1,), [Grid()], capacity=4)


WRONG_KEYS = [
    (TypeError, lambda t: [[0.0] * 4]),
    (TypeError, lambda t: keys(t, (0, 0, 0, 0)).double()),
    (TypeError, lambda t: keys(t, (0, 0, 0, 0)).half()),
    (ValueError, lambda t: keys(t, (0, 0, 0, 0))[0]),
    (ValueError, lambda t: keys(t, (0, 0, 0, 0))[:, :3]),
    (ValueError, lambda t: keys(t, (0, 0, 0, 0)).to("meta")),
    (TypeError, lambda t: keys(t, (0, 0, 0, 0)).to_sparse()),
]
WRONG_LATENTS = [
    (TypeError, lambda t: [[0.0]]),
    (TypeError, lambda t: torch.zeros(1, 1, dtype=torch.float64, device=t.device)),
    (TypeError, lambda t: torch.zeros(1, 1, dtype=torch.int32, device=t.device)),
    (ValueError, lambda t: torch.zeros(2, 1, device=t.device)),
    (ValueError, lambda t: torch.zeros(1, 2, device=t.device)),
    (ValueError, lambda t: torch.zeros(1, device=t.device)),
    (ValueError, lambda t: torch.zeros(1, 1, device="meta")),
]
WRONG_FEATURES = [
    (TypeError, lambda t: None),
    (TypeError, lambda t: torch.zeros(1, 2, dtype=torch.float64, device=t.device)),
    (ValueError, lambda t: torch.zeros(2, 2, device=t.device)),
    (ValueError, lambda t: torch.zeros(1, 3, device=t.device)),
    (ValueError, lambda t: torch.zeros(1, 2, 1, device=t.device)),
    (ValueError, lambda t: torch.zeros(1, 2, device="meta")),
]


def good(table):
    return (
        keys(table, (0, 0, 0, 0)),
        torch.zeros(1, 1, device=table.device),
        torch.zeros(1, 2, device=table.device),
    )


@pytest.mark.parametrize(("error", "wrong"), WRONG_KEYS)
def test_keys(make_table, error, wrong):
    table = small(make_table)
    _, latents, features = good(table)
    for call in (
        lambda: table.append(wrong(table), latents, features),
        lambda: table.query(wrong(table), latents),
        lambda: table.lookup(wrong(table)),
        lambda: table.similarity(wrong(table)),
    ):
        with pytest.raises(error, match="keys" + MESSAGE):
            call()
    assert table.stats().appended == table.stats().queries == 0


@pytest.mark.parametrize(("error", "wrong"), WRONG_LATENTS)
def test_latents(make_table, error, wrong):
    table = small(make_table)
    key, _, features = good(table)
    with pytest.raises(error, match="latents" + MESSAGE):
        table.append(key, wrong(table), features)
    with pytest.raises(error, match="latents" + MESSAGE):
        table.query(key, wrong(table))
    assert table.stats().appended == table.stats().queries == 0


@pytest.mark.parametrize(("error", "wrong"), WRONG_FEATURES)
def test_features(make_table, error, wrong):
    table = small(make_table)
    key, latents, _ = good(table)
    with pytest.raises(error, match="features" + MESSAGE):
        table.append(key, latents, wrong(table))
    assert table.stats().appended == 0 and len(table) == 0


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (TypeError, lambda t: [[0.0, 0.0]]),
        (TypeError, lambda t: torch.zeros(1, 2, dtype=torch.float16, device=t.device)),
        (ValueError, lambda t: torch.zeros(2, 2, device=t.device)),
        (ValueError, lambda t: torch.zeros(1, 3, device=t.device)),
        (ValueError, lambda t: torch.zeros(1, 2, device="meta")),
        (ValueError, lambda t: torch.zeros(1, 1, device=t.device).expand(1, 2)),
    ],
)
def test_out(make_table, error, wrong):
    table = small(make_table)
    key, latents, features = good(table)
    table.append(key, latents, features)
    with pytest.raises(error, match="out" + MESSAGE):
        table.query(key, latents, out=wrong(table))
    assert table.stats().queries == 0


@pytest.mark.parametrize(
    ("shape", "strides", "overlaps"),
    [
        ((2, 2), (1, 1), True),
        ((3, 2), (1, 2), True),
        ((2, 2), (0, 1), True),
        ((3, 2), (2, 4), True),
        ((3, 2), (2, 3), False),  # interleaved: 0 3, 2 5, 4 7
        ((3, 2), (1, 3), False),
        ((2, 2), (8, 3), False),
        ((1, 2), (0, 1), False),
        ((0, 2), (1, 1), False),
    ],
)
def test_out_with_strides(make_table, shape, strides, overlaps):
    """What shares places with itself is refused before a number is written; all else is filled."""
    table = small(make_table)
    table.append(*good(table))
    key, latents, _ = good(table)
    memory = torch.full((64,), 7.0, device=table.device)
    out = memory.as_strided(shape, strides)
    arguments = key.expand(shape[0], 4), latents.expand(shape[0], 1)
    if overlaps:
        with pytest.raises(ValueError, match="out" + MESSAGE):
            table.query(*arguments, out=out)
        assert (memory == 7).all() and table.stats().queries == 0
    else:
        assert table.query(*arguments, out=out).hit.all() and (out == 0).all()
        assert int((memory == 0).sum()) == out.numel()


def test_supports_takes_the_two_names_alone():
    assert HashTable.supports("cpu")
    assert not any(HashTable.supports(name) for name in ("mps", "", "CPU", "cpu:0", "meta"))


def test_gradients_do_not_reach_the_table(make_table):
    table = small(make_table)
    key, latents, features = good(table)
    table.append(key, latents.requires_grad_(), features.requires_grad_())
    result = table.query(key, latents)
    assert result.hit.item() and not result.features.requires_grad
