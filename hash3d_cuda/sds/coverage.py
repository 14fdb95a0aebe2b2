"""How evenly a run looks at its object: over windows of views, not only on the whole.

A sampler that returns to where entries are could stare at one side. So the circle is cut into sectors, the range of
elevations into bands, the range of timesteps into bins, and every window of the run is compared with equal shares.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hash3d_cuda.sds.sampler import ViewSampler

SECTORS, BANDS, BINS = 8, 2, 8
WINDOW = 128  # views; of so many drawn uniformly, 16 regions get 8 each, give or take 3


def coverage(sampler: ViewSampler, steps: int, window: int = WINDOW) -> dict[str, Any]:
    """Coverage of the first ``steps`` steps of a sampler, as JSON values.

    Returns:
        ``window``, views of one (fewer in a shorter run); ``regions``, sectors times bands; ``seen``, the mean over
        windows of the share of regions that were looked at, and ``seen_least``; ``distance``, the mean of the total
        variation distance of a window's regions from equal shares (0 equal, 1 all in one), and ``distance_most``;
        ``timestep_distance``, the same of the whole run's timesteps over their range, 0 where all are one. Empty for
        no steps.
    """
    if steps < 1:
        return {}
    views = [sampler.views(step) for step in range(steps)]
    regions = _regions(sampler, views)
    window = min(window, len(regions))
    starts = range(0, len(regions) - window + 1, window)
    shares = [np.bincount(regions[i : i + window], minlength=SECTORS * BANDS) / window for i in starts]
    distances = [_distance(share) for share in shares]
    seen = [float((share > 0).mean()) for share in shares]
    return {
        "window": window,
        "regions": SECTORS * BANDS,
        "seen": float(np.mean(seen)),
        "seen_least": min(seen),
        "distance": float(np.mean(distances)),
        "distance_most": max(distances),
        "timestep_distance": _timestep_distance([t for step in views for t in step.timestep]),
    }


def _regions(sampler: ViewSampler, views: list[Any]) -> np.ndarray:
    """The number of every view's region, int64 [N]."""
    azimuth = np.array([value for step in views for value in step.azimuth])
    elevation = np.array([value for step in views for value in step.elevation])
    low, high = sampler.elevation_range
    sector = np.minimum((azimuth % 360) / 360 * SECTORS, SECTORS - 1).astype(np.int64)
    share = (elevation - low) / (high - low) if high > low else np.zeros_like(elevation)
    return sector * BANDS + np.clip(share * BANDS, 0, BANDS - 1).astype(np.int64)


def _timestep_distance(timesteps: list[int]) -> float:
    """Total variation distance of timesteps from equal shares of their range."""
    low, high = min(timesteps), max(timesteps)
    if high == low:
        return 0.0
    bins = np.minimum((np.array(timesteps) - low) / (high - low) * BINS, BINS - 1).astype(np.int64)
    return _distance(np.bincount(bins, minlength=BINS) / len(timesteps))


def _distance(shares: np.ndarray) -> float:
    return float(np.abs(shares - 1 / len(shares)).sum() / 2)
