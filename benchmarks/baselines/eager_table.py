"""The product's own rules in eager torch, over tensors allocated once: what a careful user would write without C++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import hash3d_cuda as h3d

MULTIPLIERS = (1, 73856093, 19349663, 83492791)  # Teschner et al. 2003


class EagerTable:
    """Three grids, cells verified, the grid chosen by similarity, softmax of negative squared distances.

    Keys must be finite. Constructed and called like :class:`hash3d_cuda.HashTable`, with fewer options.
    """

    def __init__(
        self,
        feature_shape: Sequence[int],
        latent_shape: Sequence[int],
        *,
        capacity: int,
        feature_dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
        num_buckets: int = 100_003,
        queue_length: int = 3,
        decay: float = 0.9,
        azimuth_period: float = 360.0,
    ) -> None:
        grids = h3d.PAPER_GRIDS
        self._sizes = torch.tensor([[g.elevation, g.azimuth, g.radius, g.timestep] for g in grids], device=device)
        self._multipliers = torch.tensor(MULTIPLIERS, device=device)
        self._grids = torch.arange(len(grids), device=device)
        self._buckets, self._queue, self._capacity = num_buckets, queue_length, capacity
        self._decay, self._period, self._next = decay, azimuth_period, 0
        self._chains = torch.full((len(grids), num_buckets, queue_length), -1, dtype=torch.int64, device=device)
        self._similarity = torch.full((len(grids), num_buckets), torch.nan, device=device)
        self._cells = torch.empty(capacity, len(grids), 4, device=device)
        self._latents = torch.empty(capacity, *latent_shape, device=device)
        self._features = torch.empty(capacity, *feature_shape, dtype=feature_dtype, device=device)

    def append(self, keys: Tensor, latents: Tensor, features: Tensor) -> None:
        """Stores items one by one."""
        for key, latent, feature in zip(keys, latents, features):
            cells, buckets = self._place(key)
            chains, found = self._candidates(cells, buckets)
            self._update_similarity(buckets, chains, found, feature)
            slot = self._next % self._capacity
            self._cells[slot], self._latents[slot], self._features[slot] = cells, latent, feature
            self._chains[self._grids, buckets] = torch.cat(
                [chains.new_full((len(chains), 1), self._next), chains[:, :-1]], 1
            )
            self._next += 1

    def query(self, keys: Tensor, latents: Tensor, out: Tensor) -> list[bool]:
        """Which items hit; their rows of ``out`` are written."""
        return [self._query_one(key, latent, row) for key, latent, row in zip(keys, latents, out)]

    def _query_one(self, key: Tensor, latent: Tensor, out: Tensor) -> bool:
        cells, buckets = self._place(key)
        chains, found = self._candidates(cells, buckets)
        usable = found.any(dim=1)
        if not usable.any():
            return False
        similarity = self._similarity[self._grids, buckets].nan_to_num(1.0).masked_fill(~usable, -torch.inf)
        grid = int(similarity.argmax())
        slots = chains[grid][found[grid]] % self._capacity
        distances = (self._latents[slots] - latent).square().flatten(1).sum(dim=1)
        weights = torch.softmax(-distances, dim=0).view(-1, *(1,) * out.dim())
        out.copy_((weights * self._features[slots].float()).sum(dim=0))
        return True

    def _place(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Cells ``[M, 4]`` and buckets ``[M]`` of a key."""
        reduced = key.clone()
        reduced[1] = key[1].remainder(self._period)
        cells = torch.floor(reduced / self._sizes)
        return cells, (cells.long() * self._multipliers).sum(dim=1).remainder(self._buckets)

    def _candidates(self, cells: Tensor, buckets: Tensor) -> tuple[Tensor, Tensor]:
        """The chains' serials ``[M, Q]``, newest first, and which of them are live entries of the cell."""
        chains = self._chains[self._grids, buckets]
        live = (chains >= 0) & (chains + self._capacity >= self._next)
        own = self._cells[chains % self._capacity, self._grids[:, None]]
        return chains, live & (own == cells[:, None]).all(dim=-1)

    def _update_similarity(self, buckets: Tensor, chains: Tensor, found: Tensor, feature: Tensor) -> None:
        for grid in range(len(chains)):
            slots = chains[grid][found[grid]] % self._capacity
            if len(slots) == 0:
                continue
            others = self._features[slots].float().flatten(1)
            mean = torch.cosine_similarity(others, feature.float().flatten()[None], dim=1).mean()
            old = self._similarity[grid, buckets[grid]]
            new = torch.where(old.isnan(), mean, self._decay * old + (1 - self._decay) * mean)
            self._similarity[grid, buckets[grid]] = new
