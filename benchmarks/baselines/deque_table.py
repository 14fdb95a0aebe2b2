"""The kind of table that the paper's released code keeps, written anew from its description: Python deques of tensors.

One grid, n = 200 buckets of at most Q = 3 entries, an index computed in torch and read with ``.item()``, no comparison
of cells, and on a query everything in the bucket is stacked and summed with the weights softmax(-distance).
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

BUCKETS = 200
QUEUE_LENGTH = 3
# The released code orders a key (timestep, elevation, azimuth, distance) and divides it by these, in this order.
CELL_SIZES = (20.0, 20.0, 0.1, 10.0)
MULTIPLIERS = (1, 73856093, 19349663, 83492791)  # Teschner et al. 2003


class DequeTable:
    """``append`` and ``query`` take the keys of :func:`hash3d_cuda.make_keys`, and go through a batch item by item."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._sizes = torch.tensor(CELL_SIZES, device=device)
        self._multipliers = torch.tensor(MULTIPLIERS, device=device)
        self._latents: list[deque[Tensor]] = [deque(maxlen=QUEUE_LENGTH) for _ in range(BUCKETS)]
        self._features: list[deque[Tensor]] = [deque(maxlen=QUEUE_LENGTH) for _ in range(BUCKETS)]

    def append(self, keys: Tensor, latents: Tensor, features: Tensor) -> None:
        """Stores copies: ``[B, 4]``, ``[B, *latent_shape]``, ``[B, *feature_shape]``."""
        for key, latent, feature in zip(keys, latents, features):
            bucket = self._bucket(key)
            self._latents[bucket].append(latent.clone())
            self._features[bucket].append(feature.clone())

    def query(self, keys: Tensor, latents: Tensor) -> list[Tensor | None]:
        """Per item the blended feature, or None when its bucket is empty."""
        return [self._query_one(key, latent) for key, latent in zip(keys, latents)]

    def _bucket(self, key: Tensor) -> int:
        cells = torch.floor(key[[3, 0, 1, 2]] / self._sizes).long()
        return int((cells * self._multipliers).sum().remainder(BUCKETS).item())

    def _query_one(self, key: Tensor, latent: Tensor) -> Tensor | None:
        bucket = self._bucket(key)
        if not self._features[bucket]:
            return None
        distances = torch.stack([torch.norm(latent - other) for other in self._latents[bucket]])
        weights = torch.softmax(-distances, dim=0)
        features = torch.stack(list(self._features[bucket]))
        return (weights.to(features.dtype).view(-1, *(1,) * (features.dim() - 1)) * features).sum(dim=0)
