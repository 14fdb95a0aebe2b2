"""The options of a table, validated and normalised once for the engine's class, the oracle and saved files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import (
    FEATURE_DTYPES,
    QUANTISED_DTYPES,
    STORED_DTYPES,
    check_choice,
    check_device,
    check_int,
    check_positive,
    check_real,
    check_shape,
    check_tensor,
    fail,
    parse_bytes,
)
from .keys import KEY_ORDER, Grid

MATCHES = ("cell", "bucket")
MAX_GRIDS = 16  # the engine's kMaxGrids
WEIGHTINGS = ("softmax", "nearest_key", "uniform")
COUNTERS = 5
"""Next serial, rejected, queries, hits, live: int64 each."""
APPENDED, REJECTED = 0, 1  # their places among them


class BudgetTooSmall(ValueError):
    """A memory budget that does not hold one slot. ``problem`` is the message without the remedy."""

    def __init__(self, problem: str, remedy: str):
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem


@dataclass(frozen=True)
class TableOptions:
    """Everything a table is constructed with. Use :meth:`build`, which validates."""

    feature_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    grids: tuple[Grid, ...]
    num_buckets: int
    queue_length: int
    capacity: int | None
    memory_budget: int | None
    match: str
    weighting: str
    similarity_decay: float
    initial_similarity: float
    min_similarity: float | None
    azimuth_period: float | None
    feature_dtype: torch.dtype
    device: torch.device

    @classmethod
    def build(
        cls,
        feature_shape: Sequence[int],
        latent_shape: Sequence[int],
        *,
        grids: Sequence[Grid],
        num_buckets: int,
        queue_length: int,
        capacity: int | None,
        memory_budget: int | str | None,
        match: str,
        weighting: str,
        similarity_decay: float,
        initial_similarity: float,
        min_similarity: float | None,
        azimuth_period: float | None,
        feature_dtype: torch.dtype,
        device: torch.device | str,
    ) -> TableOptions:
        """Validates the constructor's arguments; raises TypeError or ValueError naming the one that is wrong."""
        if (capacity is None) == (memory_budget is None):
            came = "neither" if capacity is None else "both"
            raise ValueError(
                f"capacity, memory_budget: expected exactly one of the two, got {came}; "
                'pass capacity=SLOTS or memory_budget="2GiB"'
            )
        if feature_dtype not in STORED_DTYPES:
            kind = ValueError if isinstance(feature_dtype, torch.dtype) else TypeError
            names = ", ".join(str(dtype) for dtype in STORED_DTYPES)
            fail(kind, "feature_dtype", f"one of {names}", feature_dtype, "choose one of these")
        return cls(
            feature_shape=check_shape("feature_shape", feature_shape),
            latent_shape=check_shape("latent_shape", latent_shape),
            grids=_check_grids(grids),
            num_buckets=check_int("num_buckets", num_buckets, 1, 2**31 - 1),
            queue_length=check_int("queue_length", queue_length, 1, 2**20),
            capacity=None if capacity is None else check_int("capacity", capacity, 1, 2**31 - 1),
            memory_budget=None if memory_budget is None else parse_bytes("memory_budget", memory_budget),
            match=check_choice("match", match, MATCHES),
            weighting=check_choice("weighting", weighting, WEIGHTINGS),
            similarity_decay=check_real("similarity_decay", similarity_decay, 0.0, 1.0),
            initial_similarity=check_real("initial_similarity", initial_similarity),
            min_similarity=None if min_similarity is None else check_real("min_similarity", min_similarity),
            azimuth_period=None if azimuth_period is None else check_positive("azimuth_period", azimuth_period),
            feature_dtype=feature_dtype,
            device=check_device("device", device),
        )

    @property
    def feature_size(self) -> int:
        """Numbers in one feature."""
        return math.prod(self.feature_shape)

    @property
    def latent_size(self) -> int:
        """Numbers in one latent."""
        return math.prod(self.latent_shape)

    @property
    def quantised(self) -> bool:
        """Whether features are stored in 8 bits, with a scale for each channel."""
        return self.feature_dtype in QUANTISED_DTYPES

    @property
    def answer_dtype(self) -> torch.dtype:
        """What a query answers in, and what an append turns features into first: the stored dtype, or float16 where
        that is one of 8 bits, which means nothing without its scales."""
        return torch.float16 if self.quantised else self.feature_dtype

    @property
    def channel_size(self) -> int:
        """Numbers that share a scale: those under the last two axes of a feature map ``[..., H, W]`` of four axes or
        more, else those under the last axis (of ``[G, tokens, D]``, a token); 0 where nothing is scaled."""
        if not self.quantised:
            return 0
        return math.prod(self.feature_shape[-2 if len(self.feature_shape) >= 4 else -1 :])

    @property
    def channels(self) -> int:
        """Scales of one feature."""
        return self.feature_size // self.channel_size if self.quantised else 0

    @property
    def grid_sizes(self) -> Tensor:
        """Cell sizes, ``[M, 4]`` float32 on the CPU, in key order."""
        return torch.tensor([grid.sizes for grid in self.grids], dtype=torch.float32)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the chains, similarities and counters: a head, Q serials and an average per grid and bucket."""
        return len(self.grids) * self.num_buckets * (8 * (1 + self.queue_length) + 4) + 8 * COUNTERS

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: feature and its scales, latent, key, the key's cell in each grid, the feature's norm, a
        chain count."""
        feature = self.feature_size * self.feature_dtype.itemsize + 4 * self.channels
        key = 4 * len(KEY_ORDER)
        return feature + 4 * self.latent_size + key + key * len(self.grids) + 4 + 4

    def resolve_capacity(self) -> int:
        """Returns the slots to allocate: ``capacity``, or what the budget leaves after ``fixed_bytes``.

        Raises:
            BudgetTooSmall: the budget does not hold one slot.
        """
        if self.capacity is not None:
            return self.capacity
        assert self.memory_budget is not None
        fixed_bytes, slot_bytes = self.fixed_bytes, self.slot_bytes
        slots = (self.memory_budget - fixed_bytes) // slot_bytes
        if slots < 1:
            raise BudgetTooSmall(
                f"memory_budget: expected at least {fixed_bytes + slot_bytes} bytes ({fixed_bytes} for the chains of "
                f"{len(self.grids)} grids x {self.num_buckets} buckets, {slot_bytes} for one entry), got "
                f"{self.memory_budget}",
                "raise it, or lower num_buckets, queue_length or the shapes",
            )
        return min(int(slots), 2**31 - 1)

    def check_keys(self, keys: Any, batch: int | None = None) -> Tensor:
        """Returns ``keys`` ``[B, 4]`` float32, detached."""
        return check_tensor("keys", keys, (batch, len(KEY_ORDER)), (torch.float32,), self.device)

    def check_latents(self, latents: Any, batch: int) -> Tensor:
        """Returns ``latents`` ``[B, *latent_shape]`` in any feature dtype, detached."""
        return check_tensor("latents", latents, (batch, *self.latent_shape), FEATURE_DTYPES, self.device)

    def check_features(self, features: Any, batch: int) -> Tensor:
        """Returns ``features`` ``[B, *feature_shape]`` in any feature dtype, detached."""
        return check_tensor("features", features, (batch, *self.feature_shape), FEATURE_DTYPES, self.device)

    def check_skip(self, skip: Any, batch: int) -> Tensor:
        """Returns ``skip`` ``[B]`` bool."""
        return check_tensor("skip", skip, (batch,), (torch.bool,), self.device)

    def check_out(self, out: Any, batch: int) -> Tensor:
        """Returns ``out`` ``[B, *feature_shape]`` in ``answer_dtype``, detached (it still shares memory)."""
        out = check_tensor("out", out, (batch, *self.feature_shape), (self.answer_dtype,), self.device)
        if not out.is_contiguous() and _overlaps(out):
            raise ValueError(
                "out: expected a tensor whose numbers each have a place of their own, got shape "
                f"{list(out.shape)} with strides {list(out.stride())}; pass a copy, out.clone()"
            )
        return out


def _overlaps(tensor: Tensor) -> bool:
    """Whether two numbers of a strided tensor share a place. Reads shape and strides alone."""
    steps = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape) if size > 1)
    if not steps or not tensor.numel():
        return False
    if steps[0][0] == 0:
        return True
    spans = itertools.accumulate(stride * (size - 1) for stride, size in steps)
    if all(stride > span for (stride, _), span in zip(steps[1:], spans)):  # each steps over all that lies below
        return False
    places = np.zeros(1, dtype=np.int64)  # strides that interleave may still miss each other
    for stride, size in steps:
        places = np.add.outer(places, stride * np.arange(size)).ravel()
    return len(np.unique(places)) < len(places)


def _check_grids(grids: Any) -> tuple[Grid, ...]:
    """Returns ``grids`` as a tuple; four numbers stand for a Grid."""
    expected = "one or more Grid, or four cell sizes each, finest first"
    if isinstance(grids, (Grid, str)) or not isinstance(grids, Sequence):
        fail(TypeError, "grids", expected, grids, "pass a sequence such as hash3d_cuda.PAPER_GRIDS")
    if not 1 <= len(grids) <= MAX_GRIDS:
        fail(ValueError, "grids", expected + f", at most {MAX_GRIDS}", grids, "pass as many as that")
    return tuple(_check_grid(f"grids[{i}]", grid) for i, grid in enumerate(grids))


def _check_grid(name: str, grid: Any) -> Grid:
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, (str, Tensor)) or not isinstance(grid, Sequence):
        fail(TypeError, name, "a Grid or four cell sizes", grid, "pass hash3d_cuda.Grid(10, 10, 0.1, 10)")
    if len(grid) != len(KEY_ORDER):
        fail(ValueError, name, "a Grid or four cell sizes", grid, "pass hash3d_cuda.Grid(10, 10, 0.1, 10)")
    return Grid(*grid)
