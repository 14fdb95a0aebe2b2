"""Threads inside a call, calls from several threads, and tables across a fork: the same bits each time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from table_cases import UNIT, append, query, small
from table_random import STORED_DTYPES

import hash3d_cuda as h3d
from hash3d_cuda import _C

SIZE = 200_019  # several spans of the engine's workers, and a tail
A = (0.5, 0.5, 0.5, 0.5)


@contextlib.contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def answers(dtype: torch.dtype = torch.float16) -> list[bytes]:
    """Everything that a table of long features says, and look-ups of many keys."""
    rng = np.random.default_rng(3)
    table = h3d.HashTable((SIZE,), (3,), capacity=4, num_buckets=7, grids=[UNIT], feature_dtype=dtype)
    said = []
    for _ in range(5):
        keys = torch.from_numpy(rng.integers(0, 2, (2, 4)).astype(np.float32))
        latents = torch.from_numpy(rng.standard_normal((2, 3)).astype(np.float32))
        features = torch.from_numpy(rng.standard_normal((2, SIZE)).astype(np.float32))
        result = table.query(keys, latents)
        said += [table.append(keys, latents, features), result.features, result.weights, table.similarity(keys)]
        many = torch.from_numpy(rng.integers(0, 3, (20_000, 4)).astype(np.float32))
        said.append(table.lookup(many))
    return [tensor.view(torch.uint8).numpy().tobytes() for tensor in said]


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_any_number_of_threads(dtype):
    with threads(1):
        expected = answers(dtype)
    with threads(4):
        assert answers(dtype) == expected


def test_tables_of_several_threads_at_once():
    """Each of the tables wants the engine's workers for itself."""
    with threads(4), ThreadPoolExecutor(3) as pool:
        found = [future.result() for future in [pool.submit(answers) for _ in range(3)]]
    assert found[0] == found[1] == found[2]


def test_one_table_for_several_threads(make_table):
    """Calls wait for each other, so every answer is that of a table in a state between calls."""
    table = small(make_table, capacity=16)
    append(table, A)

    def work(_: int) -> None:
        for _ in range(40):
            append(table, A)
            result = query(table, A)
            assert result.hit.item() and result.features.tolist() == [[1.0, 0.0]]
            stats = table.stats()
            assert stats.live == 3 or stats.appended < 3
            assert stats.hits == stats.queries

    if isinstance(table, h3d.reference.HashTable):
        work(0)  # the oracle has no lock
        return
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert table.stats().appended == 161 and table.stats().queries == 160


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(_C.build_info()["cuda_architectures"] == "emulated", reason="no GPU survives a fork either")
def test_a_forked_child_has_workers_of_its_own():
    """Long tensors are made and compared by NumPy: torch's own threads, OpenMP's, do not survive a fork."""
    table = h3d.HashTable((SIZE,), (1,), capacity=2, num_buckets=7, grids=[UNIT])
    key, latent = torch.zeros(1, 4), torch.zeros(1, 1)
    feature, out = (np.arange(SIZE) % 2048).astype(np.float16)[None], np.zeros((1, SIZE), np.float16)

    def right() -> bool:
        serial = table.append(key, latent, torch.from_numpy(feature)).item()
        hit = table.query(key, latent, out=torch.from_numpy(out)).hit.item()
        many = table.lookup(torch.from_numpy(np.zeros((20_000, 4), np.float32))).numpy()
        return hit and bool((out == feature).all()) and bool((many[:, 0, 0] == serial).all())

    with threads(4):
        assert right()
        child = os.fork()
        if child == 0:
            os._exit(0 if right() else 1)
        status = ended_within(child, 60.0)
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        assert right()


def ended_within(child: int, seconds: float) -> int:
    """Waits for a child, or ends it and fails."""
    for _ in range(int(seconds * 10)):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")
