"""Random tables and items, for the property tests and the long fuzz run: awkward on purpose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hash3d_cuda import PAPER_GRIDS, Grid
from hash3d_cuda.checks import FEATURE_DTYPES as DTYPES
from hash3d_cuda.checks import QUANTISED_DTYPES, STORED_DTYPES

WEIGHTINGS = ("softmax", "nearest_key", "uniform")
_AZIMUTHS = (-0.0, 360.0, -360.0, -1e-9, 725.0, -5.0, 359.99997, 1e30)
_ELSEWHERE = (-0.0, -1e-9, 1e30, -3e38, 2.0**41, -(2.0**55), 1e-40)
_NOT_FINITE = (math.nan, math.inf, -math.inf)


def random_options(rng: np.random.Generator) -> dict[str, Any]:
    """The constructor's arguments for a small table in which collisions, evictions and ties are common."""
    pick = rng.choice
    grids = PAPER_GRIDS if rng.random() < 0.4 else tuple(_random_grid(rng) for _ in range(rng.integers(1, 9)))
    return {
        "feature_shape": _random_shape(rng),
        "latent_shape": _random_shape(rng),
        "grids": grids,
        "num_buckets": int(pick([1, 2, 3, 7, 101, 1009])),
        "queue_length": int(pick([1, 2, 3, 8, 17, 65, 1024], p=[0.15, 0.2, 0.35, 0.15, 0.08, 0.04, 0.03])),
        "capacity": int(pick([1, 2, 5, 16, 64, 300])),
        "match": str(pick(["cell", "bucket"])),
        "weighting": str(pick(WEIGHTINGS, p=[0.5, 0.3, 0.2])),
        "similarity_decay": float(pick([0.0, 0.5, 0.9, 1.0])),
        "initial_similarity": float(pick([1.0, 0.25, -1.0])),
        "min_similarity": None if rng.random() < 0.7 else float(rng.uniform(-0.2, 0.9)),
        "azimuth_period": [360.0, 360.0, 180.0, None][rng.integers(4)],
        "feature_dtype": STORED_DTYPES[rng.integers(len(STORED_DTYPES))],
    }


def _random_grid(rng: np.random.Generator) -> Grid:
    return Grid(*(float(size) for size in (10, 10, 0.1, 10) * rng.uniform(0.5, 4.0, size=4)))


def _random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    shapes = [(1,), (2,), (5,), (2, 2, 2), (19,), (4, 3), (2, 1, 3, 3), (1, 3, 4, 4)]
    return shapes[rng.integers(len(shapes))]


class Items:
    """Keys, latents and features that often meet: drawn around a few anchors, with what is special sprinkled in."""

    def __init__(self, rng: np.random.Generator, options: dict[str, Any], anchors: int = 6):
        self.rng = rng
        self.options = options
        self.anchors = rng.uniform((-60, -180, 0.5, 0), (60, 540, 3.0, 1000), size=(anchors, 4))
        self.latent_anchors = rng.standard_normal((anchors, *options["latent_shape"]))

    def keys(self, rows: int) -> Tensor:
        rng = self.rng
        keys = self.anchors[rng.integers(len(self.anchors), size=rows)]
        sizes = np.array([grid.sizes for grid in self.options["grids"]])
        jitter = rng.uniform(-0.6, 0.6, size=(rows, 4)) * sizes[rng.integers(len(sizes), size=rows)]
        keys = keys + jitter * (rng.random((rows, 1)) < 0.6)
        keys[:, 1] += 360.0 * rng.integers(-2, 3, size=rows)
        for row in np.flatnonzero(rng.random(rows) < 0.06):
            place = rng.integers(4)
            keys[row, place] = rng.choice(_AZIMUTHS if place == 1 else _ELSEWHERE)
        self._spoil(keys)
        return self._maybe_strided(torch.from_numpy(keys.astype(np.float32)))

    def latents(self, rows: int) -> Tensor:
        rng = self.rng
        near = self.latent_anchors[rng.integers(len(self.latent_anchors), size=rows)]
        noise = rng.standard_normal(near.shape) * rng.choice([0.0, 0.1, 1.0, 30.0])
        latents = near + noise
        if rng.random() < 0.02:
            latents *= 1e25
        self._spoil(latents)
        return self._maybe_strided(_cast(latents, rng))

    def features(self, rows: int) -> Tensor:
        rng = self.rng
        features = rng.standard_normal((rows, *self.options["feature_shape"]))
        features[rng.random(rows) < 0.04] = 0.0
        features[rng.random(rows) < 0.02] *= 3e5  # beyond float16
        features[rng.random(rows) < 0.02] *= 1e-6  # subnormal in float16
        self._spoil(features)
        return self._maybe_strided(_cast(features, rng))

    def skip(self, rows: int) -> Tensor | None:
        """Which items an append leaves out; None as often."""
        if self.rng.random() < 0.5:
            return None
        return self._maybe_strided(torch.from_numpy(self.rng.random(rows) < self.rng.choice([0.2, 0.8])))

    def out(self, rows: int) -> Tensor | None:
        """A buffer for ``query`` in the dtype of answers, or None as often."""
        if self.rng.random() < 0.5:
            return None
        shape = (rows, *self.options["feature_shape"])
        dtype = self.options["feature_dtype"]
        dtype = torch.float16 if dtype in QUANTISED_DTYPES else dtype
        return self._maybe_strided(torch.full(shape, 3.0, dtype=dtype), often=0.5)

    def _spoil(self, rows: np.ndarray) -> None:
        """Makes a number in about one row of fifty not finite."""
        for row in np.flatnonzero(self.rng.random(len(rows)) < 0.02):
            rows[row].flat[self.rng.integers(rows[row].size)] = self.rng.choice(_NOT_FINITE)

    def _maybe_strided(self, tensor: Tensor, often: float = 0.25) -> Tensor:
        """The same numbers, sometimes as a view of something wider or with the dimensions stored the other way."""
        if self.rng.random() >= often:
            return tensor
        if self.rng.random() < 0.5:
            order = tuple(reversed(range(tensor.dim())))
            return tensor.permute(order).contiguous().permute(order)
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), math.nan, dtype=tensor.dtype)
        view = wide[..., 1::2] if self.rng.random() < 0.5 else wide[..., 1 : 1 + tensor.shape[-1]]
        view.copy_(tensor)
        return view


def _cast(values: np.ndarray, rng: np.random.Generator) -> Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(values.astype(np.float32)).to(DTYPES[rng.integers(3)])


def random_rows(rng: np.random.Generator) -> int:
    """A batch size: 0 to 7 half of the time, else up to 64."""
    return int(rng.integers(0, 8) if rng.random() < 0.5 else rng.integers(8, 65))


def random_step(pair: Any, items: Items, rng: np.random.Generator, rows: int) -> str:
    """One call of both tables with ``rows`` items, or a clear; returns which."""
    chance = rng.random()
    if chance < 0.3:
        pair.append(items.keys(rows), items.latents(rows), items.features(rows), items.skip(rows))
        return "append"
    if chance < 0.6:
        pair.query(items.keys(rows), items.latents(rows), items.out(rows))
        return "query"
    if chance < 0.8:
        pair.lookup(items.keys(rows))
        return "lookup"
    if chance < 0.998:
        pair.similarity(items.keys(rows))
        return "similarity"
    pair.clear()
    return "clear"
