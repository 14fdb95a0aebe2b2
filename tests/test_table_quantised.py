"""Features in 8 bits: what they are rounded to, their channels' scales, what comes back, and what that costs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_cases import UNIT, append, found, keys, query, small
from table_pair import Pair

import hash3d_cuda as h3d
from hash3d_cuda import _C
from hash3d_cuda.checks import STORED_DTYPES
from hash3d_cuda.host_index import HostIndex

INT8, FLOAT8 = torch.int8, torch.float8_e4m3fn
TOPS = {INT8: 127.0, FLOAT8: 448.0}
DTYPES = list(TOPS)
A = (0.0, 0.0, 0.0, 0.0)


def stored_alone(make_table, feature, dtype):
    """A table with ``feature`` ``[*shape]`` as its only entry, and what a query for it answers."""
    table = make_table(feature.shape, (1,), grids=[UNIT], num_buckets=7, capacity=2, feature_dtype=dtype)
    latent = torch.zeros(1, 1, device=table.device)
    assert table.append(keys(table, A), latent, feature[None].to(table.device)).tolist() == [0]
    return table, table.query(keys(table, A), latent).features[0].cpu()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_float_is_rounded_as_torch_rounds_it(dtype):
    """All float16 numbers, all halves between two stored ones, on every instruction set; and all codes back."""
    top = TOPS[dtype]
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).float()
    codes = codes[codes.abs() <= top].sort().values
    halves = (codes[1:] + codes[:-1]) / 2
    near = [torch.nextafter(halves, torch.tensor(far)) for far in (-math.inf, math.inf)]
    numbers = torch.cat([numbers, codes, halves, *near])
    numbers = numbers[numbers.abs() <= top].contiguous()
    expected = (numbers.round() if dtype is INT8 else numbers).to(dtype)
    try:
        for path in _C.build_info()["simd_paths"]:
            assert _C.use_simd(path)
            bits, back = torch.empty(len(numbers), dtype=torch.uint8), torch.empty_like(numbers)
            _C.from_float(STORED_DTYPES.index(dtype), numbers.data_ptr(), bits.data_ptr(), len(numbers))
            assert torch.equal(bits.view(dtype).float(), expected.float()), path
            _C.to_float(STORED_DTYPES.index(dtype), bits.data_ptr(), back.data_ptr(), len(numbers))
            assert torch.equal(back, expected.float()), path
    finally:
        _C.use_simd(_C.build_info()["simd_paths"][0])


def test_worked_numbers(make_table):
    """Peak 254: the scale is 2, halves go to even, the other channel's scale is its own; zeros stay zeros."""
    feature = torch.zeros(3, 5)
    feature[0] = torch.tensor([254.0, -254.0, 3.0, 5.0, -0.9])
    feature[1] = torch.tensor([127.0, 1.5, 2.5, -0.5, 100.4])
    _, back = stored_alone(make_table, feature, INT8)
    assert back.dtype == torch.float16
    assert back.tolist() == [[254, -254, 4, 4, 0], [127, 2, 2, 0, 100], [0] * 5]
    feature[0] = torch.tensor([448.0, -17.0, 0.001, 0.0009, 300.0])  # of 3 bits: 16 or 18; 2^-9 is the smallest
    _, back = stored_alone(make_table, feature, FLOAT8)
    assert back[0].tolist() == [448.0, -16.0, 2**-9, 0.0, 288.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "channels"), [((6,), 1), ((4, 6), 4), ((2, 4, 6), 8), ((2, 3, 4, 6), 6), ((2, 3, 2, 4, 6), 12)]
)
def test_the_channels_of_a_shape(make_table, shape, channels, dtype):
    """Up to three axes: the last is a channel. Four or more: the last two. An outlier harms no other channel."""
    feature = torch.linspace(-1, 1, math.prod(shape)).reshape(channels, -1)
    feature[0, 0] = 60_000.0
    table, back = stored_alone(make_table, feature.reshape(shape), dtype)
    assert table.options.channels == channels
    error = (back.reshape(channels, -1).float() - feature).abs().amax(dim=1)
    assert error[0] > 0.04 and (error[1:] < 0.04).all() and (channels == 1 or error[1:].any())


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from([(1,), (17,), (3, 19), (2, 3, 8), (1, 3, 5, 7), (2, 2, 4, 4), (1, 2, 64, 40), (9000,)]),
    st.sampled_from([1e-7, 1e-3, 1.0, 3e4]),
    st.integers(0, 2**31),
)
def test_the_error_is_half_a_step(dtype, shape, size, seed):
    """int8: half of peak / 127. float8: 2^-4 of the number, or half of its smallest step."""
    feature = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).clamp(-65504, 65504).half()
    table, back = stored_alone(h3d.HashTable, feature, dtype)
    channel = feature.float().reshape(table.options.channels, -1)
    peak = channel.abs().amax(dim=1, keepdim=True)
    allowed = 0.5 * peak / 127 if dtype is INT8 else torch.maximum(channel.abs() / 16, peak / 448 * 2**-10)
    rounding = channel.abs() * 2**-10 + 2**-24  # the answer's own, in float16
    assert ((back.float().reshape(channel.shape) - channel).abs() <= allowed * 1.0001 + rounding).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finiteness_is_judged_in_float16(make_table, dtype):
    table = small(make_table, feature_dtype=dtype)
    rows = [(65520.0, 0.0), (65519.0, 0.0), (math.nan, 1.0), (0.0, -math.inf), (0.0, 0.0), (1e-9, -0.0)]
    assert append(table, *[A] * 6, features=rows) == [-1, 1, -1, -1, 4, 5]
    assert found(table, A) == [[[5, 4, 1]]] and table.stats().rejected == 3
    assert query(table, A).features.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_similarity_is_that_of_the_stored_features(make_table, dtype):
    """One number of the second feature is too small to be kept, so the two are stored alike but for a factor."""
    table = small(make_table, feature_dtype=dtype)
    append(table, A, A, features=[(1.0, 0.0), (8.0, 0.0005)])
    assert table.similarity(keys(table, A)).item() == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entries_are_blended_with_their_own_scales(make_table, dtype):
    table = small(make_table, feature_dtype=dtype, weighting="uniform", queue_length=4)
    append(table, *[A] * 4, features=[(1000.0, 500.0), (1.0, 0.5), (0.0, 0.0), (-8.0, 8.0)])
    answer = query(table, A).features[0].float()
    expected = torch.tensor([993.0, 508.5]) / 4
    assert ((answer.cpu() - expected).abs() <= expected / 16).all()
    out = torch.full((2, 2), 7.0, dtype=torch.float16, device=table.device)
    table.query(keys(table, A, (5.0, 0.0, 0.0, 0.0)), torch.zeros(2, 1, device=table.device), out=out)
    assert torch.equal(out[0].float(), answer) and out[1].tolist() == [7.0, 7.0]


def test_answers_are_float16(make_table):
    table = small(make_table, feature_dtype=INT8)
    append(table, A)
    with pytest.raises(TypeError, match="out: expected a float16 tensor"):
        table.query(keys(table, A), torch.zeros(1, 1, device=table.device), out=torch.zeros(1, 2, dtype=INT8))
    with pytest.raises(TypeError, match="features: expected a float32 or float16 or bfloat16 tensor"):
        latent = torch.zeros(1, 1, device=table.device)
        table.append(keys(table, A), latent, torch.zeros(1, 2, dtype=INT8, device=table.device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 20, 16, 16), (2, 7, 3, 5), (3, 70_001), (1, 2, 300, 300)], ids=str)
def test_engine_and_oracle_store_the_same_bits(device, shape, dtype):
    """Long channels and short ones, those that vectors divide and others; channels across the borders of tasks."""
    pair = Pair(device, shape, (4,), capacity=5, num_buckets=101, weighting="uniform", feature_dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    latents, keys = torch.randn(4, 4, generator=generator), h3d.make_keys([1, 2, 3, 4], 0.0, 1.0, 500)
    features = torch.randn(4, *shape, generator=generator)
    for feature, size in zip(features, (1e-3, 1.0, 50.0, 9e3)):
        feature.mul_(size)
    pair.append(keys, latents, features)
    pair.compare_states()
    pair.query(keys, latents)
    pair.similarity(keys)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_and_likeness_at_the_size_of_stable_diffusion(dtype):
    """Scales included, an entry takes at most 0.55 of what it takes in float16, and is at most 0.001 off in cosine."""
    shape, latent = (2, 320, 64, 64), (4, 64, 64)
    table = h3d.HashTable(shape, latent, capacity=1, num_buckets=7, feature_dtype=dtype)
    half = h3d.HashTable(shape, latent, capacity=1, num_buckets=7)
    assert table.nbytes == sum(memory.nbytes for memory in (*table._content, *table._written))
    assert table.options.slot_bytes <= 0.55 * half.options.slot_bytes
    feature = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    table.append(h3d.make_keys(0, 0, 1, 1), torch.zeros(1, *latent), feature)
    back = table.query(h3d.make_keys(0, 0, 1, 1), torch.zeros(1, *latent)).features.float()
    assert torch.cosine_similarity(back.flatten(), feature.flatten(), dim=0) >= 0.999


@pytest.mark.parametrize("stored", [torch.int8, torch.float16])
def test_a_hosts_index_takes_over_a_tables_keys_alone(stored):
    """What a cache on a GPU does when it is loaded; scales are none of its business."""
    options = dict(
        grids=((30, 45, 1, 100),), num_buckets=11, queue_length=2, capacity=5, memory_budget=None, feature_dtype=stored,
        match="cell", weighting="softmax", similarity_decay=0.9, initial_similarity=1.0, min_similarity=None,
        azimuth_period=360.0,
    )  # fmt: skip
    table, index = h3d.HashTable((2, 4), (3,), **options), HostIndex(5, options)
    keys = torch.tensor([[10.0, 20.0, 0.5, 50.0], [10.0, 200.0, 0.5, 50.0]])
    table.append(keys[:1], torch.ones(1, 3), torch.ones(1, 2, 4))
    index.load(table._state_dict())
    assert index.find(keys) == [True, False]
