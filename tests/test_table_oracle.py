"""Rule 12: the engine and the oracle, driven by the same random calls, give the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_table import fuzz_pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_pair import Pair
from table_random import STORED_DTYPES, WEIGHTINGS, Items

import hash3d_cuda as h3d

GRIDS = st.lists(
    st.builds(
        h3d.Grid,
        elevation=st.sampled_from([0.5, 10.0, 37.0]),
        azimuth=st.sampled_from([7.5, 30.0, 360.0]),
        radius=st.sampled_from([0.1, 5.0]),
        timestep=st.sampled_from([1.0, 30.0, 1e6]),
    ),
    min_size=1,
    max_size=8,
)
OPTIONS = st.fixed_dictionaries(
    {
        "feature_shape": st.sampled_from([(1,), (3, 2), (19,), (99,), (989,)]),
        "latent_shape": st.sampled_from([(1,), (2, 3), (19,), (99,), (989,)]),
        "grids": GRIDS | st.just(h3d.PAPER_GRIDS),
        "num_buckets": st.sampled_from([1, 2, 5, 1009]),
        "queue_length": st.sampled_from([1, 2, 3, 9, 64, 1024]),
        "capacity": st.sampled_from([1, 2, 3, 10, 100]),
        "match": st.sampled_from(["cell", "bucket"]),
        "weighting": st.sampled_from(WEIGHTINGS),
        "similarity_decay": st.sampled_from([0.0, 0.3, 0.9, 1.0]),
        "initial_similarity": st.sampled_from([1.0, 0.0]),
        "min_similarity": st.none() | st.sampled_from([-1.0, 0.1, 0.5]),
        "azimuth_period": st.sampled_from([360.0, 90.0, None]),
        "feature_dtype": st.sampled_from(STORED_DTYPES),
    }
)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "query", "query", "lookup", "similarity", "save", "clear"]),
        st.integers(0, 7),
    ),
    max_size=25,
)


def run(device: str, options: dict, calls: list[tuple[str, int]], seed: int, folder: Path) -> None:
    """Makes the calls, each with that many random items, then asks for everything."""
    rng = np.random.default_rng(seed)
    items = Items(rng, options, anchors=3)
    pair = Pair(device, **options)
    for name, rows in [*calls, ("append", 5), ("query", 5), ("lookup", 5), ("similarity", 5)]:
        keys = items.keys(rows)
        if name == "append":
            pair.append(keys, items.latents(rows), items.features(rows))
        elif name == "query":
            pair.query(keys, items.latents(rows), items.out(rows))
        elif name == "lookup":
            pair.lookup(keys)
        elif name == "similarity":
            pair.similarity(keys)
        elif name == "save":
            pair.swap_files(folder)
        elif name == "clear":
            pair.engine.clear()
            pair.oracle.clear()
    pair.check_counters()
    pair.compare_states()


@given(options=OPTIONS, calls=CALLS, seed=st.integers(0, 2**32 - 1))
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_calls(device, tmp_path_factory, options, calls, seed):
    run(device, options, calls, seed, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("seed", range(4))
def test_a_short_fuzz_run(device, seed):
    """The long one is ``python tests/fuzz_table.py --operations 1000000``."""
    done, happened = fuzz_pair(seed=1000 + seed, number=0, operations=2000, device=device)
    assert done >= 2000 and happened["append"] > 0 and happened["query"] > 0


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_sizes_of_a_unet(device, dtype):
    """Features and latents of a small U-Net, where vectorised loops run at full width."""
    options = {"feature_shape": (2, 20, 16, 16), "latent_shape": (4, 16, 16), "feature_dtype": dtype}
    pair = Pair(device, capacity=20, num_buckets=101, **options)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 4, 16, 16, generator=generator)
    near = latents + 0.02 * torch.randn(latents.shape, generator=generator)
    keys = h3d.make_keys([1, 2, 3, 4, 5, 15, 25, 35], 0.0, 1.0, 500)
    features = torch.randn(8, *options["feature_shape"], generator=generator)
    for scale in (1.0, 0.5):
        pair.append(keys, latents * scale, features * scale)
        pair.query(keys, near)
        pair.similarity(keys)
    pair.query(keys.flip(0), near * 0.9)


def test_a_million_look_ups(device):
    """One call with very many keys answers as many calls with few do."""
    rng = np.random.default_rng(0)
    options = {"feature_shape": (1,), "latent_shape": (1,), "grids": h3d.PAPER_GRIDS}
    items = Items(rng, options, anchors=200)
    table = h3d.HashTable(**options, capacity=1000, num_buckets=1009, device=device)
    for _ in range(10):
        table.append(*(t.to(device) for t in (items.keys(100), items.latents(100), items.features(100))))
    keys = items.keys(2000).to(device)
    few = torch.cat([table.lookup(part) for part in keys.split(7)])
    assert few.ge(0).any()
    many = table.lookup(keys.repeat(500, 1))
    assert many.shape == (1_000_000, 3, 3)
    assert torch.equal(many.view(500, 2000, 3, 3), few.expand(500, -1, -1, -1))


def test_same_calls_same_results(device):
    """Bit for bit, run after run, whatever the number of threads."""

    def results() -> list[torch.Tensor]:
        rng = np.random.default_rng(5)
        options = {"feature_shape": (989,), "latent_shape": (989,), "grids": h3d.PAPER_GRIDS}
        items = Items(rng, options)
        table = h3d.HashTable(**options, capacity=50, num_buckets=7, device=device)
        answers = []
        for _ in range(20):
            rows = items.keys(6).to(device), items.latents(6).to(device), items.features(6).to(device)
            result = table.query(rows[0], rows[1])
            answers += [table.append(*rows), result.features, result.weights, result.grid, result.serials]
        return [*answers, table.similarity(rows[0]).nan_to_num(nan=9.0)]

    threads = torch.get_num_threads()
    first = results()
    try:
        torch.set_num_threads(1)
        second = results()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_comparison_notices():
    """A pair whose oracle is led astray must differ: the comparison is no rubber stamp."""
    options = {"feature_shape": (3,), "latent_shape": (2,), "capacity": 9, "feature_dtype": torch.float16}
    pair = Pair("cpu", **options)
    keys = h3d.make_keys([1, 2], 0, 1, 10)
    latents, features = (
        torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 0.0]]),
    )
    pair.append(keys, latents, features)
    pair.query(keys, latents)
    entry = pair.oracle._held.chains[0][next(iter(pair.oracle._held.chains[0]))][0]
    for damage in (
        lambda: entry.numbers.add_(0.01),
        lambda: entry.latent.add_(0.01),
        lambda: pair.oracle._held.means[0].update(dict.fromkeys(pair.oracle._held.means[0], 0.0)),
        lambda: pair.oracle._held.chains[0].clear(),
    ):
        damage()
        with pytest.raises(AssertionError):
            pair.query(keys, latents)
            pair.similarity(keys)
