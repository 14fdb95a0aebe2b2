"""What only a GPU can show: streams, graphs, no waiting, no memory; the rules themselves are tested on every device by
the other files. Tables here take the same calls on the CPU and on the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import hash3d_cuda as h3d
from hash3d_cuda.checks import STORED_DTYPES

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not h3d.HashTable.supports("cuda"), reason="this build has no CUDA code (nvcc was not found)"),
]
Items = tuple[Tensor, Tensor, Tensor]


def poses(count: int, seed: int, wide: float = 1.0) -> Tensor:
    """Keys from all around, on the CPU."""
    random = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([-30.0, -720.0, 1.0, 0.0]), torch.tensor([90.0, 720.0, 2.5, 1000.0])
    return (low + (high - low) * torch.rand(count, 4, generator=random)) * wide


def items(count: int, seed: int, feature: tuple[int, ...] = (2, 3, 8), cells: int = 3) -> Items:
    """Keys in a few cells, latents [count, 5], features, on the CPU."""
    random = torch.Generator().manual_seed(seed)
    keys = poses(cells, seed=99)[torch.randint(cells, (count,), generator=random)]
    return keys, torch.randn(count, 5, generator=random), torch.randn(count, *feature, generator=random)


def there(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies on the GPU."""
    return tuple(tensor.cuda() for tensor in tensors)


def pair(feature: tuple[int, ...] = (2, 3, 8), **options) -> tuple[h3d.HashTable, h3d.HashTable]:
    """The same table on the CPU and on the GPU."""
    options = {"capacity": 16, "num_buckets": 997, "feature_dtype": torch.float32, **options}
    return tuple(h3d.HashTable(feature, (5,), device=device, **options) for device in ("cpu", "cuda"))


def assert_same(cpu: h3d.HashTable, gpu: h3d.HashTable) -> None:
    """The whole content; whole numbers bit for bit."""
    mine, theirs = cpu._state_dict(), gpu._state_dict()
    for name, tensor in mine.items():
        if name == "similarity":
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-5, equal_nan=True)
        else:
            both = (one.reshape(-1).view(torch.uint8) for one in (theirs[name], tensor))  # torch compares no float8
            assert torch.equal(*both), name


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, whatever waits for the GPU raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("match", ["cell", "bucket"])
@pytest.mark.parametrize("queue_length", [1, 3, 5])
@pytest.mark.parametrize("count", [1, 19, 256, 989, 50_000])
def test_lookups_of_many_keys_equal_the_cpu(match, queue_length, count):
    cpu, gpu = pair((2,), capacity=1000, match=match, queue_length=queue_length)
    entries = poses(3000, seed=1), torch.zeros(3000, 5), torch.ones(3000, 2)
    cpu.append(*entries)
    gpu.append(*there(*entries))
    keys = poses(count, seed=2)
    found = gpu.lookup(keys.cuda()).cpu()
    assert torch.equal(found, cpu.lookup(keys))
    assert count < 50_000 or (found >= 0).any()


def test_cell_borders_and_huge_keys_fall_alike():
    """Whole multiples of the cell sizes, and cells beyond 32 and 64 bits."""
    grid = torch.arange(-40, 40, dtype=torch.float32)
    borders = torch.stack([grid * 10, grid * 30, grid * 0.1, grid * 10], dim=1)
    keys = torch.cat([borders, poses(2000, seed=4, wide=1e6), poses(2000, seed=5, wide=1e17)])
    cpu, gpu = pair((2,), capacity=len(keys))
    entries = keys, torch.zeros(len(keys), 5), torch.ones(len(keys), 2)
    cpu.append(*entries)
    gpu.append(*there(*entries))
    found = gpu.lookup(keys.cuda()).cpu()
    assert torch.equal(found, cpu.lookup(keys))
    assert (found >= 0).any(dim=2).any(dim=1).float().mean() > 0.5


@pytest.mark.parametrize("dtype", STORED_DTYPES, ids=str)
@pytest.mark.parametrize("feature", [(2, 320, 16, 16), (7, 11, 13)], ids=["wide", "odd"])
def test_large_features_equal_the_cpu(dtype, feature):
    """Many blocks to a feature, with rows that 16 bytes divide and rows that they don't."""
    cpu, gpu = pair(feature, feature_dtype=dtype, weighting="uniform")
    batch = items(6, seed=1, feature=feature, cells=1)
    cpu.append(*batch)
    gpu.append(*there(*batch))
    assert_same(cpu, gpu)
    mine, theirs = cpu.query(*batch[:2]), gpu.query(*there(*batch[:2]))
    assert torch.equal(theirs.serials.cpu(), mine.serials) and mine.hit.all()
    eps = torch.finfo(mine.features.dtype).eps
    torch.testing.assert_close(theirs.features.cpu().float(), mine.features.float(), rtol=eps, atol=eps)


def test_nothing_waits_for_the_gpu():
    _, gpu = pair()
    batch, keys = there(*items(4, seed=1)), poses(100, seed=2).cuda()
    out = torch.zeros(4, 2, 3, 8, device="cuda")
    with no_waiting():
        gpu.append(*batch)
        gpu.query(*batch[:2], out=out)
        gpu.query(*batch[:2])
        gpu.lookup(keys)
        gpu.similarity(keys)
        gpu.clear()
    assert len(gpu) == 0


def test_with_out_a_query_allocates_nothing_of_a_features_size():
    _, gpu = pair((2, 320, 64, 64), capacity=3)
    key, latent, feature = there(*items(1, seed=1, feature=(2, 320, 64, 64)))
    gpu.append(key, latent, feature)
    out = torch.empty_like(feature)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gpu.query(key, latent, out=out)
    gpu.append(key, latent, feature)
    assert torch.cuda.max_memory_allocated() - before < out.nbytes // 10
    assert torch.equal(out, feature)


def test_calls_follow_the_current_stream():
    cpu, gpu = pair()
    batch = items(4, seed=1)
    cpu.append(*batch)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what is queued now has to come before
        on_gpu = there(*batch)
        gpu.append(*on_gpu)
        found = gpu.query(*on_gpu[:2])
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_answer(found, cpu.query(*batch[:2]))
    assert_same(cpu, gpu)


def assert_same_answer(theirs: h3d.QueryResult, mine: h3d.QueryResult) -> None:
    """Candidates equal, floats near."""
    assert torch.equal(theirs.hit.cpu(), mine.hit) and torch.equal(theirs.serials.cpu(), mine.serials)
    torch.testing.assert_close(theirs.features.cpu(), mine.features, rtol=1e-4, atol=1e-4)


def test_query_and_append_replay_in_a_graph():
    """Captured once, replayed with other inputs: each replay sees what the one before it appended."""
    cpu, gpu = pair(capacity=5)
    keys, latents, features = there(*items(2, seed=0))
    out = torch.zeros_like(features)
    serials = gpu.append(keys, latents, features)  # outside the graph first: lazy loading is not capturable
    gpu.query(keys, latents, out=out)
    gpu.clear()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gpu.query(keys, latents, out=out)
        serials = gpu.append(keys, latents, features)
    for seed in range(1, 7):
        batch = items(2, seed)
        for place, value in zip((keys, latents, features), batch, strict=True):
            place.copy_(value)
        out.zero_()
        graph.replay()
        expected = cpu.query(*batch[:2])
        assert_same_answer(found, expected)
        assert serials.tolist() == cpu.append(*batch).tolist()
    assert_same(cpu, gpu)


def test_lookup_replays_in_a_graph():
    cpu, gpu = pair()
    batch = items(8, seed=1, cells=8)
    cpu.append(*batch)
    gpu.append(*there(*batch))
    keys = poses(8, seed=3).cuda()
    gpu.lookup(keys), gpu.similarity(keys)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        serials, averages = gpu.lookup(keys), gpu.similarity(keys)
    keys.copy_(batch[0])
    graph.replay()
    assert torch.equal(serials.cpu(), cpu.lookup(batch[0])) and (serials >= 0).any()
    torch.testing.assert_close(averages.cpu(), cpu.similarity(batch[0]), rtol=0, atol=1e-5)


def test_a_file_goes_from_one_device_to_the_other(tmp_path):
    cpu, gpu = pair()
    batch = items(20, seed=1)
    cpu.append(*batch)
    gpu.append(*there(*batch))
    gpu.save(tmp_path / "gpu.safetensors")
    cpu.save(tmp_path / "cpu.safetensors")
    assert_same(h3d.HashTable.load(tmp_path / "gpu.safetensors", device="cpu"), gpu)
    assert_same(cpu, h3d.HashTable.load(tmp_path / "cpu.safetensors", device="cuda"))
