"""Grid, PAPER_GRIDS and make_keys."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import hash3d_cuda as h3d
from hash3d_cuda.keys import KEY_ORDER


def test_key_order():
    assert KEY_ORDER == ("elevation", "azimuth", "radius", "timestep")
    assert h3d.make_keys(1.0, 2.0, 3.0, 4.0).tolist() == [[1.0, 2.0, 3.0, 4.0]]
    named = h3d.make_keys(timestep=4, radius=3, azimuth=2, elevation=1)
    assert named.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_paper_grids_are_the_papers_finest_first():
    assert [grid.sizes for grid in h3d.PAPER_GRIDS] == [
        (10, 10, 0.1, 10),
        (20, 20, 0.15, 20),
        (30, 30, 0.2, 30),
    ]
    assert h3d.Grid() == h3d.PAPER_GRIDS[0]


def test_grid_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        h3d.Grid().radius = 2.0


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan, math.inf, 1e-60, 1e39])
@pytest.mark.parametrize("name", KEY_ORDER)
def test_grid_refuses_sizes_that_are_no_size(name, size):
    with pytest.raises(ValueError, match=rf"Grid.{name}: expected .*, got "):
        h3d.Grid(**{name: size})


@pytest.mark.parametrize("size", ["10", None, True, torch.tensor(1.0), 1j])
def test_grid_refuses_other_types(size):
    with pytest.raises(TypeError, match=r"Grid.azimuth: expected .*, got "):
        h3d.Grid(azimuth=size)


@pytest.mark.parametrize(
    "azimuth",
    [
        [10, 20, 30],
        (10.0, 20.0, 30.0),
        range(10, 40, 10),
        np.array([10, 20, 30], dtype=np.int16),
        np.array([10, 20, 30], dtype=np.float16),
        np.array([30, 20, 10])[::-1],
        np.array([10, 20, 30], dtype=">u2"),
        torch.tensor([10, 20, 30]),
        torch.tensor([10, 20, 30], dtype=torch.bfloat16),
        torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64, requires_grad=True),
        [torch.tensor(10), torch.tensor(20.0), np.float64(30)],
    ],
)
def test_make_keys_takes_what_callers_have_and_broadcasts(azimuth):
    keys = h3d.make_keys(5, azimuth, np.float32(1.5), torch.tensor([500]))
    assert keys.dtype == torch.float32 and keys.device.type == "cpu" and not keys.requires_grad
    assert keys.tolist() == [[5, 10, 1.5, 500], [5, 20, 1.5, 500], [5, 30, 1.5, 500]]


def test_make_keys_of_nothing_is_empty():
    assert h3d.make_keys([], 0.0, 1.0, []).shape == (0, 4)


def test_make_keys_does_not_share_memory():
    elevation = torch.zeros(2)
    keys = h3d.make_keys(elevation, 0.0, 1.0, 10)
    elevation += 1
    keys[0, 3] = 7
    assert keys.tolist() == [[0, 0, 1, 7], [0, 0, 1, 10]]


def test_make_keys_keeps_what_is_not_finite_for_the_table_to_refuse():
    assert h3d.make_keys(math.nan, math.inf, 1, 10).isfinite().tolist() == [[False, False, True, True]]


def test_make_keys_moves_to_the_device():
    assert h3d.make_keys([1, 2], 0, 1, 10, device="cpu").device == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device: expected .*, got 'meta'"):
        h3d.make_keys(0, 0, 0, 0, device="meta")


def test_make_keys_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match=r"expected one length.*got elevation 2, azimuth 3, radius 1, timestep 1"):
        h3d.make_keys([1, 2], [1, 2, 3], 1, 1)


def test_make_keys_refuses_two_dimensions():
    with pytest.raises(ValueError, match=r"radius: expected at most one dimension, got .*\[2, 1\].*flatten"):
        h3d.make_keys(0, 0, torch.ones(2, 1), 0)


@pytest.mark.parametrize("wrong", ["ten", ["a", "b"], None, [None], 1j, True, [True], torch.tensor([True]), object()])
def test_make_keys_refuses_what_is_no_number(wrong):
    with pytest.raises(TypeError, match=r"timestep: expected .*, got "):
        h3d.make_keys(0, 0, 1, wrong)


@pytest.mark.parametrize("wrong", [{1, 2}, frozenset([1]), {1: 2}, {1: 2}.values(), (n for n in (1, 2))])
def test_make_keys_refuses_what_has_no_order_or_is_no_sequence(wrong):
    with pytest.raises(TypeError, match=r"elevation: expected .*sequence.*, got "):
        h3d.make_keys(wrong, 0, 1, 10)


def test_make_keys_refuses_ragged_lists():
    with pytest.raises(TypeError, match=r"elevation: expected .*, got "):
        h3d.make_keys([[1], [1, 2]], 0, 1, 0)
