"""The oracle's arithmetic: rules 1, 2, 7 and 9 of :mod:`hash3d_cuda.reference` as functions of plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .keys import AZIMUTH
from .options import TableOptions

# Teschner et al. 2003, in key order; elevation's multiplier is 1 (Eq. 6 of the paper).
_MULTIPLIERS = (1, 73856093, 19349663, 83492791)
_FLOAT32_MAX = torch.finfo(torch.float32).max


class Place(NamedTuple):
    """Where a key falls in one grid."""

    bucket: int
    cell: tuple[float, ...]  # whole numbers, or infinity where the quotient overflows


@dataclass(eq=False)
class Entry:
    """One appended item; chains refer to it."""

    serial: int
    key: Tensor  # [4] float32
    latent: Tensor  # [latent_size] float32
    feature: Tensor  # [feature_size], stored dtype
    scales: Tensor  # [channels] float32; empty unless the stored dtype has 8 bits
    numbers: Tensor  # [feature_size] float32, what feature and scales stand for
    places: list[Place]  # one per grid


def places_of(keys: Tensor, options: TableOptions) -> list[list[Place]]:
    """Rules 1 and 2 for ``[N, 4]`` keys: the place in every grid; an empty list for a key that is not finite."""
    quotients = reduce_azimuth(keys, options.azimuth_period)[:, None, :] / options.grid_sizes.to(keys.device)
    floored = torch.floor(quotients).tolist()
    return [
        [_place(cell, options.num_buckets) for cell in cells] if finite else []
        for cells, finite in zip(floored, rows_finite(keys).tolist(), strict=True)
    ]


def reduce_azimuth(keys: Tensor, azimuth_period: float | None) -> Tensor:
    """Keys whose azimuth lies in [0, period): float32 fmod, plus the period when negative; the period itself, which
    that sum may round to, is 0."""
    if azimuth_period is None:
        return keys
    period = torch.tensor(azimuth_period, dtype=torch.float32, device=keys.device)
    azimuth = torch.fmod(keys[:, AZIMUTH], period)
    azimuth = torch.where(azimuth < 0, azimuth + period, azimuth)
    azimuth = torch.where(azimuth == period, torch.zeros_like(azimuth), azimuth)
    keys = keys.clone()
    keys[:, AZIMUTH] = azimuth
    return keys


def _place(floored: list[float], num_buckets: int) -> Place:
    """The sum wraps around in signed 64 bits; Python's % is the floored one."""
    total = sum(_int64(part) * multiplier for part, multiplier in zip(floored, _MULTIPLIERS, strict=True))
    return Place(((total + 2**63) % 2**64 - 2**63) % num_buckets, tuple(floored))


def _int64(value: float) -> int:
    """A floored quotient as an int64; beyond its range, the nearest end of it."""
    return 2**63 - 1 if value >= 2.0**63 else int(max(value, -(2.0**63)))


def cosines(entry: Entry, others: dict[int, Entry]) -> dict[int, float]:
    """Cosine similarities in float32 of an entry's feature with others', by serial. The paper leaves open what a zero
    feature has: 0 here, and so for a sum beyond float32."""
    if not others:
        return {}
    a, b = entry.numbers, torch.stack([other.numbers for other in others.values()])
    values = (a * b).sum(dim=1) / (a.square().sum().sqrt() * b.square().sum(dim=1).sqrt())
    return {
        serial: value if math.isfinite(value) else 0.0 for serial, value in zip(others, values.tolist(), strict=True)
    }


def running_average(old: float | None, mean: float, decay: float) -> float:
    """Eq. 9 in float32. The first mean is taken as it is (the paper gives no start value)."""
    if old is None:
        return float32(mean)
    weight = np.float32(decay)
    return float32(weight * np.float32(old) + (np.float32(1) - weight) * np.float32(mean))


def weigh(options: TableOptions, grid: int, others: list[Entry], key: Tensor, latent: Tensor) -> list[float]:
    """Rule 9: float32 weights of the candidates ``others``, newest first."""
    if options.weighting == "uniform":
        return [float32(1.0 / len(others))] * len(others)
    if options.weighting == "nearest_key":
        distances = key_distances(options, grid, others, key)
        nearest = distances.index(min(distances))  # the first minimum: ties go to the newest
        return [1.0 if place == nearest else 0.0 for place in range(len(others))]
    return torch.softmax(-latent_distances(others, latent), dim=0).tolist()


def latent_distances(others: list[Entry], latent: Tensor) -> Tensor:
    """Squared distances (Eq. 7), float32 ``[n]``. A sum beyond float32 counts as its largest number, so that the
    softmax stays defined."""
    stored = torch.stack([other.latent for other in others])
    return (stored - latent).square().sum(dim=1).clamp(max=_FLOAT32_MAX)


def key_distances(options: TableOptions, grid: int, others: list[Entry], key: Tensor) -> list[float]:
    """Squared Euclidean distances of keys in cells of ``grid``, the azimuth the shorter way around."""
    keys = reduce_azimuth(torch.stack([key] + [other.key for other in others]), options.azimuth_period)
    difference = (keys[1:] - keys[0]).abs()
    if options.azimuth_period is not None:
        azimuth = difference[:, AZIMUTH]
        difference[:, AZIMUTH] = torch.minimum(azimuth, float32(options.azimuth_period) - azimuth)
    return (difference / options.grid_sizes[grid].to(key.device)).square().sum(dim=1).tolist()


def blend(options: TableOptions, others: list[Entry], weights: list[float]) -> Tensor:
    """Eq. 7: the weighted sum in float32, rounded once to the dtype of answers; weights of 0 are left out."""
    total = torch.zeros(options.feature_size, device=options.device)
    for other, weight in zip(others, weights, strict=True):
        if weight > 0:
            total += weight * other.numbers
    return total.to(options.answer_dtype)


def rows_finite(rows: Tensor) -> Tensor:
    """Rule 10 for ``[B, n]``: bool ``[B]``."""
    return torch.isfinite(rows).all(dim=1)


def float32(value: float) -> float:
    """``value`` rounded to float32."""
    return float(np.float32(value))
