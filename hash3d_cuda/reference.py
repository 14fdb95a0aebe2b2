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

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference_rules as rules
from . import storage
from .keys import PAPER_GRIDS, Grid
from .options import TableOptions
from .reference_chains import Chains
from .reference_quantise import dequantise, quantise
from .reference_rules import Entry, Place
from .results import QueryResult, TableStats


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
        self._held = Chains(self.options, self.capacity)
        self._next_serial = self._rejected = self._queries = self._hits = 0

    def append(self, keys: Tensor, latents: Tensor, features: Tensor, skip: Tensor | None = None) -> Tensor:
        """Stores items: ``[B, 4]``, ``[B, *latent_shape]``, ``[B, *feature_shape]`` -> serials, int64 ``[B]``.

        Latents are cast to float32 and features to the stored dtype first, or to float16 where that has 8 bits
        (:mod:`hash3d_cuda.reference_quantise`); finiteness is judged after that (rule 10).
        Items where ``skip``, bool ``[B]``, is True are left out, as if they were not in the batch; their serial is -1.
        """
        keys, latents = self._check_items(keys, latents)
        rows = len(keys)
        given = self.options.check_features(features, rows).to(self.options.answer_dtype)
        given = given.reshape(rows, self.options.feature_size)
        finite = rules.rows_finite(keys) & rules.rows_finite(latents) & rules.rows_finite(given)
        stored, scales = quantise(self.options, given) if self.options.quantised else (given, given.new_empty(rows, 0))
        places = rules.places_of(keys, self.options)
        skipped = [False] * rows if skip is None else self.options.check_skip(skip, rows).tolist()
        serials = []
        for row, storable in enumerate(finite.tolist()):
            if skipped[row]:
                serials.append(-1)
                continue
            serial = self._next_serial
            self._next_serial += 1
            self._held.leave(serial % self.capacity)
            if storable:
                copies = keys[row].clone(), latents[row].clone(), stored[row].clone(), scales[row].clone()
                self._held.join(self._entry(serial, *copies, places[row]))
            else:
                self._rejected += 1
            serials.append(serial if storable else -1)
        return torch.tensor(serials, dtype=torch.int64, device=self.device)

    def query(self, keys: Tensor, latents: Tensor, out: Tensor | None = None) -> QueryResult:
        """Looks up items: ``[B, 4]``, ``[B, *latent_shape]`` -> :class:`QueryResult`. Only rows of ``out`` that hit
        are written."""
        keys, latents = self._check_items(keys, latents)
        rows, queue = len(keys), self.options.queue_length
        if out is None:
            shape, dtype = (rows, *self.options.feature_shape), self.options.answer_dtype
            out = torch.zeros(shape, dtype=dtype, device=self.device)
        features = self.options.check_out(out, rows)
        grid = [-1] * rows
        serials = [[-1] * queue for _ in range(rows)]
        weights = [[0.0] * queue for _ in range(rows)]
        finite = (rules.rows_finite(keys) & rules.rows_finite(latents)).tolist()
        places = rules.places_of(keys, self.options)
        for row in range(rows):
            chosen = self._held.choose(places[row]) if finite[row] else None
            if chosen is None:
                continue
            others = self._held.candidates(chosen, places[row][chosen])
            weight = rules.weigh(self.options, chosen, others, keys[row], latents[row])
            features[row] = rules.blend(self.options, others, weight).view(self.options.feature_shape)
            grid[row] = chosen
            serials[row][: len(others)] = [other.serial for other in others]
            weights[row][: len(others)] = weight
        self._queries += rows
        self._hits += sum(chosen >= 0 for chosen in grid)
        return QueryResult(
            features=out,
            hit=torch.tensor([chosen >= 0 for chosen in grid], dtype=torch.bool, device=self.device),
            grid=torch.tensor(grid, dtype=torch.int32, device=self.device),
            serials=torch.tensor(serials, dtype=torch.int64, device=self.device).reshape(rows, queue),
            weights=torch.tensor(weights, dtype=torch.float32, device=self.device).reshape(rows, queue),
        )

    def lookup(self, keys: Tensor) -> Tensor:
        """Serials of every grid's candidates (rules 4-6): ``[N, 4]`` -> int64 ``[N, M, Q]``, newest first, -1 = none
        (and everywhere for a key that is not finite)."""
        keys = self.options.check_keys(keys)
        shape = len(keys), len(self.options.grids), self.options.queue_length
        found = torch.full(shape, -1, dtype=torch.int64)
        for row, places in enumerate(rules.places_of(keys, self.options)):
            for grid, place in enumerate(places):
                serials = [entry.serial for entry in self._held.candidates(grid, place)]
                if serials:
                    found[row, grid, : len(serials)] = torch.tensor(serials)
        return found.to(self.device)

    def similarity(self, keys: Tensor) -> Tensor:
        """The running average of each key's buckets: ``[N, 4]`` -> float32 ``[N, M]``; NaN for a key not finite."""
        keys = self.options.check_keys(keys)
        result = torch.full((len(keys), len(self.options.grids)), float("nan"))
        for row, places in enumerate(rules.places_of(keys, self.options)):
            for grid, place in enumerate(places):
                result[row, grid] = self._held.similarity(grid, place.bucket)
        return result.to(self.device)

    def __len__(self) -> int:
        """Live entries: those still in at least one chain."""
        return len(self._held.live())

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

    def _check_items(self, keys: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Keys ``[B, 4]`` and latents as float32 ``[B, latent_size]``."""
        keys = self.options.check_keys(keys)
        latents = self.options.check_latents(latents, len(keys)).to(torch.float32)
        return keys, latents.reshape(len(keys), self.options.latent_size)

    def _entry(
        self, serial: int, key: Tensor, latent: Tensor, feature: Tensor, scales: Tensor, places: list[Place]
    ) -> Entry:
        """An entry with the numbers that its stored feature stands for."""
        numbers = dequantise(self.options, feature, scales)
        return Entry(serial, key, latent, feature, scales, numbers, places)

    def _state_dict(self) -> dict[str, Tensor]:
        """The content as CPU tensors, in the form :mod:`hash3d_cuda.storage` describes."""
        options = self.options
        entries = [entry for _, entry in sorted(self._held.live().items())]
        member = [
            [entry in self._held.chains[grid].get(place.bucket, []) for grid, place in enumerate(entry.places)]
            for entry in entries
        ]
        similarity = torch.full((len(options.grids), options.num_buckets), float("nan"))
        for grid, means in enumerate(self._held.means):
            for bucket, mean in means.items():
                similarity[grid, bucket] = mean

        def stack(rows: list[Tensor], size: int, dtype: torch.dtype) -> Tensor:
            return torch.stack(rows).cpu() if rows else torch.zeros(0, size, dtype=dtype)

        state = {
            "serials": torch.tensor([entry.serial for entry in entries], dtype=torch.int64),
            "keys": stack([entry.key for entry in entries], 4, torch.float32),
            "latents": stack([entry.latent for entry in entries], options.latent_size, torch.float32),
            "features": stack([entry.feature for entry in entries], options.feature_size, options.feature_dtype),
            "member": torch.tensor(member, dtype=torch.bool).reshape(len(entries), len(options.grids)),
            "similarity": similarity,
            "counters": torch.tensor([self._next_serial, self._rejected, self._queries, self._hits]),
        }
        if options.quantised:
            state["scales"] = stack([entry.scales for entry in entries], options.channels, torch.float32)
        return state

    def _load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a state that ``storage`` has checked; raises ValueError for a chain longer than Q."""
        self.clear()
        self._next_serial, self._rejected, self._queries, self._hits = state["counters"].tolist()
        for grid, means in enumerate(state["similarity"]):
            for bucket in means.isfinite().nonzero().flatten().tolist():
                self._held.means[grid][bucket] = means[bucket].item()
        keys, latents, features = (state[name].to(self.device) for name in ("keys", "latents", "features"))
        scales = state.get("scales", torch.empty(len(keys), 0)).to(self.device)
        places = rules.places_of(keys, self.options)
        for row, serial in enumerate(state["serials"].tolist()):
            entry = self._entry(serial, keys[row], latents[row], features[row], scales[row], places[row])
            self._held.slots[serial % self.capacity] = entry
            for grid, joined in enumerate(state["member"][row].tolist()):
                chain = self._held.chains[grid].setdefault(places[row][grid].bucket, [])
                if joined:
                    chain.append(entry)
                if len(chain) > self.options.queue_length:
                    raise ValueError(f"a chain holds more than {self.options.queue_length} entries")
