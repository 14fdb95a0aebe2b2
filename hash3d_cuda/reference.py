"""The table in plain torch and Python lists: slow and obvious, the oracle the engine is compared with.

Everything is computed one item at a time, in the order and with the roundings the rules give; nothing is shared with
the engine but the checks of the arguments and the file format. "Rule n" below means:

1. cell: azimuth reduced to [0, period), then floor(key / size), float32 division.
2. bucket: (i + N1*j + N2*k + N3*l) floor-mod num_buckets in 64 bits (Teschner et al. 2003; Eq. 6 of the paper).
3. an append puts one entry in the bucket of each grid; a batch goes in order, as if one by one.
4. a chain holds at most Q entries; the oldest leaves.
5. entry s lies in slot s mod capacity and is gone once entry s + capacity has been appended.
6. candidates: entries of the chain in the same cell (match="cell"), or all of them ("bucket").
7. similarity: running average per grid and bucket of the mean cosine similarity (Eq. 9).
8. choice of grid: the highest similarity among grids with a candidate, ties to the lowest index (Eq. 8).
9. weights: softmax(-||x - x_i||^2) (Eq. 7), or the nearest key alone, or equal ones.
10. what is not finite is never stored and never hits, but uses up a serial and a slot.

Where the paper leaves a detail open, the function that decides it says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import storage
from .keys import AZIMUTH, PAPER_GRIDS, Grid
from .options import TableOptions
from .results import QueryResult, TableStats

# Teschner et al. 2003, the multipliers of the azimuth, radius and timestep cells; elevation's is 1.
_MULTIPLIERS = (1, 73856093, 19349663, 83492791)
_FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(eq=False)
class _Entry:
    """One appended item; chains refer to it."""

    serial: int
    key: Tensor  # [4] float32
    latent: Tensor  # [latent_size] float32
    feature: Tensor  # [feature_size], stored dtype
    cells: list[tuple[int, ...]]  # one per grid


class HashTable:
    """The oracle of :class:`hash3d_cuda.HashTable`: same constructor, methods and answers.

    It allocates as it goes, so ``nbytes`` and the capacity of a ``memory_budget`` state what the engine would hold.
    """

    def __init__(
        self,
        feature_shape: Sequence[int],
        latent_shape: Sequence[int],
        *,
        grids: Sequence[Grid] = PAPER_GRIDS,
        num_buckets: int = 100_003,
        queue_length: int = 3,
        capacity: int | None = None,
        memory_budget: int | str | None = None,
        match: str = "cell",
        weighting: str = "softmax",
        similarity_decay: float = 0.9,
        initial_similarity: float = 1.0,
        min_similarity: float | None = None,
        azimuth_period: float | None = 360.0,
        feature_dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.options = TableOptions.build(
            feature_shape,
            latent_shape,
            grids=grids,
            num_buckets=num_buckets,
            queue_length=queue_length,
            capacity=capacity,
            memory_budget=memory_budget,
            match=match,
            weighting=weighting,
            similarity_decay=similarity_decay,
            initial_similarity=initial_similarity,
            min_similarity=min_similarity,
            azimuth_period=azimuth_period,
            feature_dtype=feature_dtype,
            device=device,
        )
        self.capacity = self.options.resolve_capacity()
        self.nbytes = self.options.fixed_bytes + self.capacity * self.options.slot_bytes
        self.device = self.options.device
        self.clear()

    def clear(self) -> None:
        """Makes the table as just constructed: empty, serials from 0, similarities and counters reset."""
        self._chains: list[dict[int, list[_Entry]]] = [{} for _ in self.options.grids]  # bucket -> oldest first
        self._means: list[dict[int, float]] = [{} for _ in self.options.grids]  # bucket -> running average (Eq. 9)
        self._slots: dict[int, _Entry] = {}
        self._next_serial = self._rejected = self._queries = self._hits = 0

    def append(self, keys: Tensor, latents: Tensor, features: Tensor) -> Tensor:
        """Stores items: ``[B, 4]``, ``[B, *latent_shape]``, ``[B, *feature_shape]`` -> serials, int64 ``[B]``.

        Latents are cast to float32 and features to the stored dtype first; finiteness is judged after that (rule 10).
        """
        keys = self.options.check_keys(keys)
        latents = _flat(self.options.check_latents(latents, len(keys)), self.options.latent_size, torch.float32)
        features = _flat(
            self.options.check_features(features, len(keys)), self.options.feature_size, self.options.feature_dtype
        )
        finite = _finite(keys) & _finite(latents) & _finite(features)
        cells = self._cells(keys)
        serials = []
        for row, stored in enumerate(finite.tolist()):
            serial = self._next_serial
            self._next_serial += 1
            self._leave(serial % self.capacity)
            if stored:
                copies = keys[row].clone(), latents[row].clone(), features[row].clone()
                self._join(_Entry(serial, *copies, cells[row]))
            else:
                self._rejected += 1
            serials.append(serial if stored else -1)
        return torch.tensor(serials, dtype=torch.int64, device=self.device)

    def query(self, keys: Tensor, latents: Tensor, out: Tensor | None = None) -> QueryResult:
        """Looks up items: ``[B, 4]``, ``[B, *latent_shape]`` -> :class:`QueryResult`. Only rows of ``out`` that hit
        are written."""
        keys = self.options.check_keys(keys)
        rows = len(keys)
        latents = _flat(self.options.check_latents(latents, rows), self.options.latent_size, torch.float32)
        if out is None:
            dtype = self.options.feature_dtype
            features = torch.zeros(rows, *self.options.feature_shape, dtype=dtype, device=self.device)
        else:
            features = self.options.check_out(out, rows)
        hit = torch.zeros(rows, dtype=torch.bool)
        grid = torch.full((rows,), -1, dtype=torch.int32)
        serials = torch.full((rows, self.options.queue_length), -1, dtype=torch.int64)
        weights = torch.zeros(rows, self.options.queue_length)
        finite = (_finite(keys) & _finite(latents)).tolist()
        cells = self._cells(keys)
        for row in range(rows):
            chosen = self._choose(cells[row]) if finite[row] else None
            if chosen is None:
                continue
            candidates = self._candidates(chosen, cells[row])
            weight = self._weigh(chosen, candidates, keys[row], latents[row])
            features[row] = self._blend(candidates, weight).view(self.options.feature_shape)
            hit[row] = True
            grid[row] = chosen
            serials[row, : len(candidates)] = torch.tensor([entry.serial for entry in candidates])
            weights[row, : len(candidates)] = weight.cpu()
        self._queries += rows
        self._hits += int(hit.sum())
        host = (hit, grid, serials, weights)
        return QueryResult(features if out is None else out, *(result.to(self.device) for result in host))

    def lookup(self, keys: Tensor) -> Tensor:
        """Serials of every grid's candidates (rules 4-6): ``[N, 4]`` -> int64 ``[N, M, Q]``, newest first, -1 = none
        (and everywhere for a key that is not finite)."""
        keys = self.options.check_keys(keys)
        grids = range(len(self.options.grids))
        found = torch.full((len(keys), len(grids), self.options.queue_length), -1, dtype=torch.int64)
        for row, cells in enumerate(self._cells(keys)):
            for grid in grids if cells else ():
                for place, entry in enumerate(self._candidates(grid, cells)):
                    found[row, grid, place] = entry.serial
        return found.to(self.device)

    def similarity(self, keys: Tensor) -> Tensor:
        """The running average of each key's buckets: ``[N, 4]`` -> float32 ``[N, M]``; NaN for a key not finite."""
        keys = self.options.check_keys(keys)
        grids = range(len(self.options.grids))
        rows = [
            [self._similarity(grid, cells[grid]) if cells else float("nan") for grid in grids]
            for cells in self._cells(keys)
        ]
        return torch.tensor(rows, dtype=torch.float32, device=self.device).reshape(len(keys), len(grids))

    def __len__(self) -> int:
        """Live entries: those still in at least one chain."""
        return len(self._live())

    def stats(self) -> TableStats:
        """The counters since construction or ``clear()``."""
        return TableStats(
            appended=self._next_serial,
            rejected=self._rejected,
            live=len(self),
            capacity=self.capacity,
            nbytes=self.nbytes,
            queries=self._queries,
            hits=self._hits,
            misses=self._queries - self._hits,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to ``path``; see :func:`hash3d_cuda.storage.save`."""
        storage.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> HashTable:
        """Reads a table from ``path``; see :func:`hash3d_cuda.storage.load`."""
        return storage.load(cls, path, device)

    # Cells and buckets

    def _cells(self, keys: Tensor) -> list[list[tuple[int, ...]]]:
        """Rule 1 for ``[N, 4]`` keys: the cell in every grid; an empty list for a key that is not finite."""
        quotients = self._reduced(keys)[:, None, :] / self.options.grid_sizes.to(keys.device)
        finite = _finite(keys).tolist()
        rows = torch.floor(quotients).tolist()
        return [
            [tuple(_saturate(value) for value in cell) for cell in cells] if ok else []
            for cells, ok in zip(rows, finite, strict=True)
        ]

    def _reduced(self, keys: Tensor) -> Tensor:
        """Keys whose azimuth lies in [0, period): float32 fmod, plus the period when negative; the period itself,
        which that sum may round to, is 0."""
        if self.options.azimuth_period is None:
            return keys
        period = torch.tensor(self.options.azimuth_period, dtype=torch.float32, device=keys.device)
        azimuth = torch.fmod(keys[:, AZIMUTH], period)
        azimuth = torch.where(azimuth < 0, azimuth + period, azimuth)
        azimuth = torch.where(azimuth == period, torch.zeros_like(azimuth), azimuth)
        keys = keys.clone()
        keys[:, AZIMUTH] = azimuth
        return keys

    def _bucket(self, cell: tuple[int, ...]) -> int:
        """Rule 2. The sum wraps around in signed 64 bits; Python's % is the floored one."""
        total = sum(part * multiplier for part, multiplier in zip(cell, _MULTIPLIERS, strict=True))
        return ((total + 2**63) % 2**64 - 2**63) % self.options.num_buckets

    # Chains

    def _leave(self, slot: int) -> None:
        """Rule 5: whatever lies in ``slot`` leaves all its chains. The paper leaves open when; here it is before the
        similarity of the entry that takes the slot is computed, and for a rejected entry as well."""
        entry = self._slots.pop(slot, None)
        if entry is None:
            return
        for grid, cell in enumerate(entry.cells):
            chain = self._chains[grid].get(self._bucket(cell), [])
            if entry in chain:
                chain.remove(entry)

    def _join(self, entry: _Entry) -> None:
        """Rules 3, 4 and 7."""
        self._slots[entry.serial % self.capacity] = entry
        for grid, cell in enumerate(entry.cells):
            bucket = self._bucket(cell)
            candidates = self._candidates(grid, entry.cells)
            if candidates:
                cosines = [_cosine(entry.feature, candidate.feature) for candidate in candidates]
                self._update_mean(grid, bucket, sum(cosines) / len(cosines))
            chain = self._chains[grid].setdefault(bucket, [])
            chain.append(entry)
            if len(chain) > self.options.queue_length:
                chain.pop(0)

    def _candidates(self, grid: int, cells: list[tuple[int, ...]]) -> list[_Entry]:
        """Rule 6, newest first."""
        chain = self._chains[grid].get(self._bucket(cells[grid]), [])
        if self.options.match == "cell":
            chain = [entry for entry in chain if entry.cells[grid] == cells[grid]]
        return chain[::-1]

    def _live(self) -> dict[int, _Entry]:
        """Entries in at least one chain, by serial."""
        return {entry.serial: entry for chains in self._chains for chain in chains.values() for entry in chain}

    # Similarity and choice of grid

    def _update_mean(self, grid: int, bucket: int, mean: float) -> None:
        """Eq. 9 in float32. The first mean replaces ``initial_similarity`` (the paper gives no start value)."""
        means = self._means[grid]
        if bucket in means:
            decay = torch.tensor(self.options.similarity_decay, dtype=torch.float32)
            mean = (decay * means[bucket] + (1 - decay) * mean).item()
        means[bucket] = _float32(mean)

    def _similarity(self, grid: int, cell: tuple[int, ...]) -> float:
        return self._means[grid].get(self._bucket(cell), _float32(self.options.initial_similarity))

    def _choose(self, cells: list[tuple[int, ...]]) -> int | None:
        """Rule 8: the grid to use, or None for a miss."""
        best, chosen = 0.0, None
        for grid, cell in enumerate(cells):
            score = self._similarity(grid, cell)
            if self._candidates(grid, cells) and (chosen is None or score > best):
                best, chosen = score, grid
        limit = self.options.min_similarity
        if chosen is None or (limit is not None and best < _float32(limit)):
            return None
        return chosen

    # Weights and features

    def _weigh(self, grid: int, candidates: list[_Entry], key: Tensor, latent: Tensor) -> Tensor:
        """Rule 9: float32 weights of the candidates."""
        if self.options.weighting == "uniform":
            return torch.full((len(candidates),), 1.0 / len(candidates), device=self.device)
        if self.options.weighting == "nearest_key":
            distances = self._key_distances(grid, key, candidates)
            weights = torch.zeros(len(candidates), device=self.device)
            weights[distances.index(min(distances))] = 1.0
            return weights
        # A sum beyond float32 counts as its largest number, so that the softmax stays defined.
        stored = torch.stack([entry.latent for entry in candidates])
        distances = (stored - latent).square().sum(dim=1).clamp(max=_FLOAT32_MAX)
        return torch.softmax(-distances, dim=0)

    def _key_distances(self, grid: int, key: Tensor, candidates: list[_Entry]) -> list[float]:
        """Squared Euclidean distances of keys in cells of ``grid``, the azimuth the shorter way around. The first
        minimum is the newest entry's."""
        keys = self._reduced(torch.stack([key] + [entry.key for entry in candidates]))
        difference = (keys[1:] - keys[0]).abs()
        if self.options.azimuth_period is not None:
            period = _float32(self.options.azimuth_period)
            azimuth = difference[:, AZIMUTH]
            difference[:, AZIMUTH] = torch.minimum(azimuth, period - azimuth)
        return (difference / self.options.grid_sizes[grid].to(key.device)).square().sum(dim=1).tolist()

    def _blend(self, candidates: list[_Entry], weights: Tensor) -> Tensor:
        """Eq. 7: the weighted sum in float32, rounded once to the stored dtype; weights of 0 are left out."""
        total = torch.zeros(self.options.feature_size, device=self.device)
        for entry, weight in zip(candidates, weights.tolist(), strict=True):
            if weight > 0:
                total += weight * entry.feature.float()
        return total.to(self.options.feature_dtype)

    # State, in a form that does not depend on how a class lays out its memory; see storage.py

    def _state_dict(self) -> dict[str, Tensor]:
        """The content as CPU tensors, as :mod:`hash3d_cuda.storage` describes them."""
        options = self.options
        entries = [entry for _, entry in sorted(self._live().items())]
        member = [
            [entry in self._chains[grid].get(self._bucket(cell), []) for grid, cell in enumerate(entry.cells)]
            for entry in entries
        ]
        similarity = torch.full((len(options.grids), options.num_buckets), float("nan"))
        for grid, means in enumerate(self._means):
            for bucket, mean in means.items():
                similarity[grid, bucket] = mean
        return {
            "serials": torch.tensor([entry.serial for entry in entries], dtype=torch.int64),
            "keys": _stack([entry.key for entry in entries], 4, torch.float32),
            "latents": _stack([entry.latent for entry in entries], options.latent_size, torch.float32),
            "features": _stack([entry.feature for entry in entries], options.feature_size, options.feature_dtype),
            "member": torch.tensor(member, dtype=torch.bool).reshape(len(entries), len(options.grids)),
            "similarity": similarity,
            "counters": torch.tensor([self._next_serial, self._rejected, self._queries, self._hits]),
        }

    def _load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a state that ``storage`` has validated."""
        self.clear()
        self._next_serial, self._rejected, self._queries, self._hits = state["counters"].tolist()
        for grid, means in enumerate(state["similarity"]):
            for bucket in means.isfinite().nonzero().flatten().tolist():
                self._means[grid][bucket] = means[bucket].item()
        keys = state["keys"].to(self.device)
        for row, (serial, cells) in enumerate(zip(state["serials"].tolist(), self._cells(keys), strict=True)):
            latent, feature = (state[name][row].to(self.device) for name in ("latents", "features"))
            entry = _Entry(serial, keys[row], latent, feature, cells)
            self._slots[serial % self.capacity] = entry
            for grid, joined in enumerate(state["member"][row].tolist()):
                if joined:
                    chain = self._chains[grid].setdefault(self._bucket(cells[grid]), [])
                    chain.append(entry)
                    if len(chain) > self.options.queue_length:
                        raise ValueError(f"a chain holds more than {self.options.queue_length} entries")


def _flat(batch: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """``[B, ...]`` as ``[B, size]`` of ``dtype``."""
    return batch.to(dtype).reshape(len(batch), size)


def _finite(rows: Tensor) -> Tensor:
    """Rule 10 for ``[B, n]``: bool ``[B]``."""
    return torch.isfinite(rows).all(dim=1)


def _float32(value: float) -> float:
    """``value`` rounded to float32."""
    return torch.tensor(value, dtype=torch.float32).item()


def _saturate(value: float) -> int:
    """A floored quotient as an int64; beyond its range, the nearest end of it."""
    return 2**63 - 1 if value >= 2.0**63 else int(max(value, -(2.0**63)))


def _cosine(a: Tensor, b: Tensor) -> float:
    """Cosine similarity in float32. The paper leaves open what a zero feature has: 0 here, and so for a sum beyond
    float32."""
    a, b = a.float(), b.float()
    cosine = ((a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())).item()
    return cosine if math.isfinite(cosine) else 0.0


def _stack(rows: list[Tensor], size: int, dtype: torch.dtype) -> Tensor:
    """Rows as ``[K, size]`` on the CPU, also when there are none."""
    return torch.stack(rows).cpu() if rows else torch.zeros(0, size, dtype=dtype)
