"""Rule 5's other half: what a table allocates, and what a budget buys."""

from __future__ import annotations

import math

import pytest
import torch
from table_cases import UNIT, keys, small

import hash3d_cuda as h3d


def test_a_budget_is_used_up_to_less_than_one_slot(make_table):
    budget = 300_000
    table = small(make_table, capacity=None, memory_budget=budget)
    slot = small(make_table, capacity=2).nbytes - small(make_table, capacity=1).nbytes
    assert slot >= 2 * 4 + 1 * 4 + 4 * 4  # the feature, the latent, the key
    assert budget - slot < table.nbytes <= budget
    assert small(make_table, capacity=table.capacity).nbytes == table.nbytes
    assert small(make_table, capacity=table.capacity + 1).nbytes > budget


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("300000", 300_000),
        ("300KB", 300_000),
        ("300 kb", 300_000),
        ("0.5MiB", 2**19),
        ("1GiB", 2**30),
        ("1 GB", 10**9),
    ],
)
def test_budgets_are_written_with_units(text, number):
    options = {"num_buckets": 101, "capacity": None}
    table = h3d.reference.HashTable((64, 64), (4,), memory_budget=text, **options)
    assert table.capacity == h3d.reference.HashTable((64, 64), (4,), memory_budget=number, **options).capacity


def test_a_budget_too_small_for_one_entry(make_table):
    with pytest.raises(
        ValueError, match=r"memory_budget: expected at least (\d+) bytes .*, got 1000; raise it"
    ) as error:
        make_table((4, 64, 64), (4, 64, 64), memory_budget=1000)
    least = int(str(error.value).split("at least ")[1].split()[0])
    assert make_table((4, 64, 64), (4, 64, 64), memory_budget=least).capacity == 1
    with pytest.raises(ValueError, match="memory_budget: expected at least"):
        make_table((4, 64, 64), (4, 64, 64), memory_budget=least - 1)


def test_nbytes_is_what_the_tensors_hold(device):
    """The engine's memory, tensor by tensor; its state for save is not counted, being made on demand."""
    table = small(h3d.HashTable, device=device, queue_length=5, grids=[UNIT, UNIT], capacity=77)
    tensors = {t.data_ptr(): t for t in vars(table).values() if isinstance(t, torch.Tensor)}
    assert sum(t.untyped_storage().nbytes() for t in tensors.values()) == table.nbytes


def test_memory_is_constant(device):
    table = small(h3d.HashTable, device=device, capacity=4)
    before = {name: t.data_ptr() for name, t in vars(table).items() if isinstance(t, torch.Tensor)}
    nbytes = table.nbytes
    for _ in range(10):
        table.append(keys(table, *[(0.0,) * 4] * 3), torch.zeros(3, 1, device=device), torch.zeros(3, 2, device=device))
    table.clear()
    assert table.nbytes == nbytes
    assert before == {name: t.data_ptr() for name, t in vars(table).items() if isinstance(t, torch.Tensor)}


def test_query_into_out_allocates_nothing_of_a_features_size(device):
    size = 1 << 20
    table = h3d.HashTable((size,), (1,), capacity=2, num_buckets=7, device=device)
    key, latent = keys(table, (0.0,) * 4), torch.zeros(1, 1, device=device)
    table.append(key, latent, torch.ones(1, size, dtype=torch.float16, device=device))
    out = torch.empty(1, size, dtype=torch.float16, device=device)
    usage = "cpu_memory_usage" if device == "cpu" else "device_memory_usage"
    with torch.profiler.profile(profile_memory=True) as profile:
        table.query(key, latent, out=out)
        canary = torch.empty(3, device=device)  # so that the profile is known to see allocations
    sizes = [getattr(event, usage) for event in profile.events()]
    assert canary.nbytes <= max(sizes) < out.nbytes


def test_capacity_beyond_the_budgets_reach():
    with pytest.raises(ValueError, match="memory_budget"):
        h3d.HashTable((math.prod((320, 64, 64)),), (4,), memory_budget="1MiB")


@pytest.mark.parametrize("shape", [(2**62, 4), (2**62,), (2**40,)])
def test_more_than_there_is(device, shape):
    with pytest.raises(MemoryError, match=r"capacity, memory_budget: [0-9,]+ bytes for 2 slots are not to be had"):
        h3d.HashTable(shape, (1,), capacity=2, num_buckets=7, device=device)


def test_beyond_two_to_the_31_numbers(device):
    """Slots whose features begin beyond 2^31 numbers and 2^32 bytes. The count starts there, as if all entries before
    had been rejected, so that little of the memory is really used."""
    size, capacity = 2**20, 2050
    table = h3d.HashTable((size,), (1,), capacity=capacity, num_buckets=7, device=device)
    latent, feature = torch.zeros(1, 1, device=device), torch.full((1, size), 2.0, device=device)
    table._counters[:2] = capacity - 2
    key = keys(table, (0.5,) * 4)
    serials = [table.append(key, latent, feature * scale).item() for scale in (1, 3, 5)]
    assert serials == [capacity - 2, capacity - 1, capacity]  # the last one is in slot 0 again
    result = table.query(key, latent)
    assert result.serials.tolist() == [serials[::-1]]
    assert result.features.eq(6.0).all()  # (2 + 6 + 10) / 3: three equal distances
