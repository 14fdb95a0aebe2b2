"""Rule 9: weights (Eq. 7) and the features they blend."""

from __future__ import annotations

import math

import pytest
import torch
from table_cases import UNIT, append, keys, query, small

from hash3d_cuda import Grid

A = (0.5, 0.5, 0.5, 0.5)
FEW = 4e-7  # a few roundings of float32 around 1
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def test_softmax_of_minus_the_squared_distance(make_table):
    """Newest first: latents 3, 1, 0 queried at 1: squared distances 4, 0, 1."""
    table = small(make_table)
    append(table, A, A, A, latents=[0.0, 1.0, 3.0], features=[(1.0, 0.0), (0.0, 1.0), (10.0, 10.0)])
    result = query(table, A, latents=[1.0])
    total = 1 + math.exp(-1) + math.exp(-4)
    w = [math.exp(-4) / total, 1 / total, math.exp(-1) / total]
    assert result.serials.tolist() == [[2, 1, 0]]
    assert result.weights[0].tolist() == pytest.approx(w, abs=FEW)
    assert result.features[0].tolist() == pytest.approx([w[2] + 10 * w[0], w[1] + 10 * w[0]], rel=1e-6)


def test_the_distance_is_summed_over_the_latent(make_table):
    """Latents (0, 0) and (1, 2), queried at (1, 0): squared distances 1 and 4."""
    table = make_table((1,), (2,), grids=[UNIT], num_buckets=7, capacity=2, feature_dtype=torch.float32)
    latents = torch.tensor([[0.0, 0.0], [1.0, 2.0]], device=table.device)
    table.append(keys(table, A, A), latents, torch.tensor([[0.0], [1.0]], device=table.device))
    result = table.query(keys(table, A), torch.tensor([[1.0, 0.0]], device=table.device))
    w = 1 / (1 + math.exp(-3))
    assert result.weights[0].tolist() == pytest.approx([1 - w, w, 0.0], abs=FEW)
    assert result.features.item() == pytest.approx(1 - w, abs=FEW)


def test_fewer_candidates_than_the_queue(make_table):
    table = small(make_table, queue_length=5)
    append(table, A, A)
    result = query(table, A)
    assert result.serials.tolist() == [[1, 0, -1, -1, -1]]
    assert result.weights.tolist() == [[0.5, 0.5, 0.0, 0.0, 0.0]]
    assert result.weights.dtype == torch.float32 and result.serials.dtype == torch.int64


def test_far_candidates_weigh_exactly_nothing(make_table):
    """At SD's size the squared distances are near 28,000; only differences count, and a difference of 128 underflows
    float32 to 0, so the nearest feature comes back bit for bit."""
    table = small(make_table, feature_dtype=torch.float16)
    append(table, A, A, latents=[0.0, 168.0], features=[(65504.0, 1.0), (0.1, 6e-8)])
    result = query(table, A, latents=[167.0])
    assert result.weights.tolist() == [[1.0, 0.0, 0.0]]
    assert torch.equal(result.features.cpu(), torch.tensor([[0.1, 6e-8]], dtype=torch.float16))


def test_all_far_away_is_still_a_softmax(make_table):
    """Squared distances 10,000 and 10,001 from 100 and sqrt(10001): exp of either alone is 0."""
    table = small(make_table)
    append(table, A, A, latents=[100.0, math.sqrt(10001.0)])
    weights = query(table, A, latents=[0.0]).weights[0].tolist()
    w = 1 / (1 + math.exp(-1))
    # Near 10,000 float32 resolves squared distances to 0.001.
    assert weights == pytest.approx([1 - w, w, 0.0], abs=2e-3)
    assert sum(weights) == pytest.approx(1.0, abs=FEW)


def test_distances_beyond_float32_share_equally(make_table):
    table = small(make_table)
    append(table, A, A, latents=[1e30, -3e38], features=[(1.0, 0.0), (0.0, 1.0)])
    result = query(table, A, latents=[0.0])
    assert result.weights.tolist() == [[0.5, 0.5, 0.0]]
    assert result.features.tolist() == [[0.5, 0.5]]
    assert query(table, A, latents=[1e30]).weights.tolist() == [[0.0, 1.0, 0.0]]


def test_uniform(make_table):
    table = small(make_table, weighting="uniform")
    append(table, A, A, A, latents=[0.0, 5.0, 9.0], features=[(1.0, 0.0), (0.0, 1.0), (5.0, 2.0)])
    result = query(table, A, latents=[9.0])
    assert result.weights[0].tolist() == pytest.approx([1 / 3] * 3, abs=1e-7)
    assert result.features[0].tolist() == pytest.approx([2.0, 1.0], rel=1e-6)


WIDE = Grid(100.0, 100.0, 1.0, 100.0)


def nearest(make_table, stored, asked, **options):
    """Serial of the candidate with weight 1 on one wide grid; its feature must come back exactly."""
    table = small(make_table, grids=[WIDE], weighting="nearest_key", queue_length=8, **options)
    append(table, *stored, features=[(float(i), -float(i)) for i in range(len(stored))])
    result = query(table, asked)
    weights, serials = result.weights[0].tolist(), result.serials[0].tolist()
    assert sorted(weights) == [0.0] * 7 + [1.0]
    serial = serials[weights.index(1.0)]
    assert result.features.tolist() == [[float(serial), -float(serial)]]
    return serial


def test_nearest_key(make_table):
    stored = [(10.0, 50.0, 0.5, 50.0), (40.0, 50.0, 0.5, 50.0), (90.0, 50.0, 0.5, 50.0)]
    assert nearest(make_table, stored, (42.0, 50.0, 0.5, 50.0)) == 1
    assert nearest(make_table, stored, (11.0, 50.0, 0.5, 50.0)) == 0


def test_nearest_key_measures_in_cells(make_table):
    """0.5 of radius is half a cell; 40 degrees of elevation are 0.4 of one."""
    stored = [(50.0, 50.0, 0.9, 50.0), (90.0, 50.0, 0.4, 50.0)]
    assert nearest(make_table, stored, (50.0, 50.0, 0.4, 50.0)) == 1


def test_nearest_key_is_euclidean(make_table):
    """0.4 in one direction (0.16) is nearer than 0.3 in two (0.18), which the sum of differences would prefer not,
    and the largest difference would."""
    stored = [(30.0, 30.0, 0.0, 0.0), (40.0, 0.0, 0.0, 0.0)]
    assert nearest(make_table, stored, (0.0, 0.0, 0.0, 0.0)) == 1
    # 0.5 in one direction (0.25) is farther than 0.3 and 0.3 (0.18), though their sum is larger.
    stored = [(30.0, 30.0, 0.0, 0.0), (50.0, 0.0, 0.0, 0.0)]
    assert nearest(make_table, stored, (0.0, 0.0, 0.0, 0.0)) == 0


def test_nearest_key_goes_around_the_period(make_table):
    """From azimuth 1: 359 is 2 degrees away, 90 is 89. One bucket and no cells, so that both are candidates."""
    stored = [(0.0, 90.0, 0.0, 0.0), (0.0, 359.0, 0.0, 0.0)]
    options = {"match": "bucket", "num_buckets": 1}
    assert nearest(make_table, stored, (0.0, 1.0, 0.0, 0.0), **options) == 1
    assert nearest(make_table, stored, (0.0, 361.0, 0.0, 0.0), **options) == 1
    assert nearest(make_table, stored, (0.0, 1.0, 0.0, 0.0), azimuth_period=None, **options) == 0
    assert nearest(make_table, [(0.0, 725.0, 0.0, 0.0), stored[0]], (0.0, -1.0, 0.0, 0.0), **options) == 0


def test_nearest_key_ties_go_to_the_newest(make_table):
    stored = [(10.0, 0.0, 0.0, 0.0), (30.0, 0.0, 0.0, 0.0), (30.0, 0.0, 0.0, 0.0), (60.0, 0.0, 0.0, 0.0)]
    assert nearest(make_table, stored, (20.0, 0.0, 0.0, 0.0)) == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_candidate_comes_back_bit_for_bit(make_table, dtype):
    table = make_table((989,), (19,), grids=[UNIT], num_buckets=7, capacity=3, feature_dtype=dtype)
    feature = torch.randn(1, 989, generator=torch.Generator().manual_seed(0)).mul(100).to(dtype).to(table.device)
    latent = torch.ones(1, 19, device=table.device)
    table.append(keys(table, A), latent, feature)
    assert torch.equal(table.query(keys(table, A), latent * 7).features, feature)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_features_are_rounded_to_the_stored_dtype(make_table, dtype, given):
    """Every kind of number each dtype has: halves to be rounded to even, subnormals, both zeros, the largest."""
    values = [
        1.00048828125,
        1.00146484375,
        1.001953125,
        2049.0,
        6e-8,
        2e-8,
        1e-40,
        65504.0,
        65519.0,
        -0.0,
        1 / 3,
    ]
    feature = torch.tensor([values]).to(given)
    table = make_table((len(values),), (1,), grids=[UNIT], num_buckets=7, capacity=3, feature_dtype=dtype)
    (serial,) = table.append(keys(table, A), torch.zeros(1, 1, device=table.device), feature.to(table.device)).tolist()
    if not feature.to(dtype).isfinite().all():  # 65519 rounded up to 65536 in bfloat16, which float16 lacks
        assert (given, dtype, serial) == (torch.bfloat16, torch.float16, -1)
        return
    result = query(table, A).features.cpu()
    assert result.dtype == dtype
    assert torch.equal(result, feature.to(dtype))


def test_latents_are_compared_in_float32(make_table):
    """A bfloat16 latent of 256 is stored as 256; queried with 257 in float32 the distance is 1, not 0."""
    table = small(make_table)
    for value in (256.0, 255.0):
        latent = torch.tensor([[value]], dtype=torch.bfloat16, device=table.device)
        table.append(keys(table, A), latent, torch.ones(1, 2, device=table.device))
    weights = query(table, A, latents=[257.0]).weights[0].tolist()
    w = 1 / (1 + math.exp(-3))
    assert weights == pytest.approx([1 - w, w, 0.0], abs=FEW)


def test_misses_are_zero_or_untouched(make_table):
    table = small(make_table)
    append(table, A, features=[(3.0, 4.0)])
    far = (5.0, 5.0, 5.0, 5.0)
    result = query(table, far, A)
    assert result.features.tolist() == [[0.0, 0.0], [3.0, 4.0]]
    assert result.hit.tolist() == [False, True] and result.grid.tolist() == [-1, 0]
    assert result.serials.tolist() == [[-1] * 3, [0, -1, -1]] and result.weights.tolist() == [
        [0.0] * 3,
        [1.0, 0, 0],
    ]
    out = torch.full((2, 2), 7.0, device=table.device)
    zeros = torch.zeros(2, 1, device=table.device)
    assert table.query(keys(table, far, A), zeros, out=out).features is out
    assert out.tolist() == [[7.0, 7.0], [3.0, 4.0]]


def test_out_may_be_a_view(make_table):
    """Every other row of a wider buffer; nothing around it is written."""
    table = small(make_table)
    append(table, A, features=[(3.0, 4.0)])
    buffer = torch.full((4, 5), 7.0, device=table.device)
    zeros = torch.zeros(2, 1, device=table.device)
    table.query(keys(table, A, (5.0, 5.0, 5.0, 5.0)), zeros, out=buffer[::2, 1:4:2])
    expected = torch.full((4, 5), 7.0)
    expected[0, 1], expected[0, 3] = 3.0, 4.0
    assert torch.equal(buffer.cpu(), expected)


def test_inputs_may_be_views(make_table):
    table = small(make_table)
    wide = torch.arange(24.0, device=table.device).reshape(3, 8)
    keys_view = keys(table, A, A, A).t().contiguous().t()
    assert not keys_view.is_contiguous()
    serials = table.append(keys_view, wide[:, 3:4], wide[:, ::5])
    assert serials.tolist() == [0, 1, 2]
    result = table.query(keys_view, wide[:, 3:4])
    # The others' latents are 8 or 16 away, so they weigh less than 2e-28.
    assert torch.allclose(result.features, wide[:, ::5], rtol=0, atol=1e-25)


def test_channels_last_features_keep_their_numbers(make_table):
    table = make_table((3, 4, 5), (1,), grids=[UNIT], num_buckets=7, capacity=3, feature_dtype=torch.float32)
    feature = torch.arange(60.0, device=table.device).reshape(1, 3, 4, 5)
    zeros = torch.zeros(1, 1, device=table.device)
    table.append(keys(table, A), zeros, feature.contiguous(memory_format=torch.channels_last))
    assert torch.equal(table.query(keys(table, A), zeros).features, feature)
    out = torch.empty(1, 3, 4, 5, device=table.device).contiguous(memory_format=torch.channels_last)
    assert torch.equal(table.query(keys(table, A), zeros, out=out).features, feature)
