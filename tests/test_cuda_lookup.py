"""The look-up kernel against the CPU's answers: a table filled on the CPU, its memory copied to the GPU.

The table class does not serve CUDA before all kernels exist, so the engine is built on the copies by hand.
"""

from __future__ import annotations

import pytest
import torch

import hash3d_cuda as h3d
from hash3d_cuda import _C

_BUILD = _C.build_info()
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not _BUILD["cuda"], reason="this build has no CUDA code (nvcc was not found)"),
]
MEMORY = ("chains", "similarity", "keys", "cells", "norms", "joined", "latents", "features", "counters")


class DeviceCopy:
    """A CPU table's memory on the GPU, and the engine on it."""

    def __init__(self, table: h3d.HashTable) -> None:
        self._memory = {name: getattr(table, f"_{name}").cuda() for name in MEMORY}
        addresses = {name: memory.data_ptr() for name, memory in self._memory.items()}
        self._engine = _C.Engine(table._config(), torch.cuda.current_device(), **addresses)
        self._shape = (len(table.options.grids), table.options.queue_length)

    def lookup(self, keys: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Serials ``[N, M, Q]`` on the GPU, on the current stream; ``keys`` ``[N, 4]`` lie there."""
        serials = torch.full((len(keys), *self._shape), -7, device="cuda") if out is None else out
        stream = torch.cuda.current_stream().cuda_stream
        self._engine.lookup(len(keys), keys.data_ptr(), serials.data_ptr(), stream, 1)
        return serials


def poses(count: int, seed: int, wide: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([-30.0, -720.0, 1.0, 0.0]), torch.tensor([90.0, 720.0, 2.5, 1000.0])
    return (low + (high - low) * torch.rand(count, 4, generator=random)) * wide


def filled(entries: int = 3000, **options) -> h3d.HashTable:
    table = h3d.HashTable((2,), (2,), **{"capacity": 1000, "num_buckets": 997, **options})
    table.append(poses(entries, seed=1), torch.zeros(entries, 2), torch.ones(entries, 2))
    return table


@pytest.mark.parametrize("match", ["cell", "bucket"])
@pytest.mark.parametrize("queue_length", [1, 3, 5])
@pytest.mark.parametrize("count", [1, 19, 256, 989, 50_000])
def test_serials_equal_the_cpu(match, queue_length, count):
    table = filled(match=match, queue_length=queue_length)
    keys = poses(count, seed=2)
    found = DeviceCopy(table).lookup(keys.cuda()).cpu()
    assert torch.equal(found, table.lookup(keys))
    assert count < 50_000 or (found >= 0).any()


@pytest.mark.parametrize("period", [360.0, 90.0, None])
def test_azimuths_are_reduced_alike(period):
    table = filled(azimuth_period=period)
    keys = poses(20_000, seed=3)
    keys[:8, 1] = torch.tensor([0.0, -0.0, 360.0, -360.0, -1e-30, 719.99994, 1e30, -1e30])
    assert torch.equal(DeviceCopy(table).lookup(keys.cuda()).cpu(), table.lookup(keys))


def test_cell_borders_and_huge_keys_fall_alike():
    """Whole multiples of the cell sizes, and cells beyond 32 and 64 bits."""
    grid = torch.arange(-40, 40, dtype=torch.float32)
    borders = torch.stack([grid * 10, grid * 30, grid * 0.1, grid * 10], dim=1)
    keys = torch.cat([borders, poses(2000, seed=4, wide=1e6), poses(2000, seed=5, wide=1e17)])
    table = h3d.HashTable((2,), (2,), capacity=len(keys), num_buckets=997)
    table.append(keys, torch.zeros(len(keys), 2), torch.ones(len(keys), 2))
    found = DeviceCopy(table).lookup(keys.cuda()).cpu()
    assert torch.equal(found, table.lookup(keys))
    assert (found >= 0).any(dim=2).any(dim=1).float().mean() > 0.5


def test_keys_that_are_not_finite_find_nothing():
    keys = poses(64, seed=1)
    keys[::4, 0], keys[1::4, 1], keys[2::4, 3] = float("nan"), float("inf"), float("-inf")
    table = filled()
    found = DeviceCopy(table).lookup(keys.cuda()).cpu()
    assert torch.equal(found, table.lookup(keys))
    finite = torch.isfinite(keys).all(dim=1)
    assert (found[~finite] == -1).all()


def test_no_keys():
    assert DeviceCopy(filled()).lookup(torch.empty(0, 4, device="cuda")).shape == (0, 3, 3)


def test_runs_on_the_current_stream_and_in_a_graph():
    table = filled()
    copy, keys = DeviceCopy(table), poses(5000, seed=6).cuda()
    serials = torch.full((5000, 3, 3), -7, device="cuda")
    copy.lookup(keys, serials)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy.lookup(keys, serials)
    keys.copy_(poses(5000, seed=7))
    serials.fill_(-7)
    graph.replay()
    assert torch.equal(serials.cpu(), table.lookup(keys.cpu()))
