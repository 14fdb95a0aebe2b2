"""The table: a fixed-size hash table of U-Net features, its memory held in tensors, its work done by the engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import _C, storage
from .checks import FEATURE_DTYPES
from .keys import PAPER_GRIDS, Grid
from .options import COUNTERS, MATCHES, WEIGHTINGS, TableOptions
from .results import QueryResult, TableStats


class HashTable:
    """A hash table with separate chaining over (elevation, azimuth, radius, timestep), one per grid (section 3.2).

    Memory is constant from construction on and allocated with torch on ``device``. One table serves one thread at a
    time; calls from several threads wait for each other.

    Args:
        feature_shape: shape of one cached feature, such as ``(2, 320, 64, 64)``.
        latent_shape: shape of the noisy latent that distances are taken on, such as ``(4, 64, 64)``; kept in float32.
        grids: cell sizes, finest first (section 4.1); at most 16.
        num_buckets: buckets per grid, n of Eq. 6. The paper names no number; a large one keeps collisions rare.
        queue_length: Q, entries a chain holds at most.
        capacity: slots; or
        memory_budget: bytes as an int or such as ``"2GiB"``, for everything the table allocates.
        match: ``"cell"`` compares the cell of a candidate with the query's, ``"bucket"`` takes the whole chain, as the
            paper's text has it.
        weighting: ``"softmax"`` of negative squared latent distances (Eq. 7), ``"nearest_key"`` or ``"uniform"``.
        similarity_decay: gamma of Eq. 9 (the paper names no number).
        initial_similarity: of a bucket before its first mean.
        min_similarity: a chosen grid with less is a miss; None accepts all.
        azimuth_period: degrees after which the azimuth repeats; None for never.
        feature_dtype: float32, float16 or bfloat16, how features are stored.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        MemoryError: the device does not have that much memory.
        NotImplementedError: this build has no kernels for the device.
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
        self.device = self.options.device
        if not self.supports(self.device.type):
            raise NotImplementedError(
                f'device: expected "cpu", got "{self.device}"; this build has no CUDA kernels (nvcc was not found)'
            )
        self.capacity = self.options.resolve_capacity()
        self._lock = threading.Lock()
        self._allocate()
        self.clear()

    @staticmethod
    def supports(device_type: str) -> bool:
        """Whether this build can keep a table on ``"cpu"`` or ``"cuda"``."""
        return _C.supports(device_type)

    def _allocate(self) -> None:
        options, slots = self.options, self.capacity
        grids, buckets = len(options.grids), options.num_buckets

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self.device)

        try:
            self._chains = empty(grids, buckets, 1 + options.queue_length, dtype=torch.int64)
            self._similarity = empty(grids, buckets)
            self._keys = empty(slots, 4)
            self._cells = empty(slots, grids, 4)
            self._norms = empty(slots)
            self._joined = empty(slots, dtype=torch.int32)
            self._latents = empty(slots, options.latent_size)
            self._features = empty(slots, options.feature_size, dtype=options.feature_dtype)
            self._counters = empty(COUNTERS, dtype=torch.int64)
        except (RuntimeError, TypeError) as error:  # a TypeError where a size is beyond 64 bits
            wanted = options.fixed_bytes + slots * options.slot_bytes
            raise MemoryError(
                f"capacity, memory_budget: {wanted:,} bytes for {slots:,} slots are not to be had on {self.device}; "
                "lower capacity, memory_budget or num_buckets"
            ) from error
        per_bucket = self._chains, self._similarity
        per_slot = self._keys, self._cells, self._norms, self._joined, self._latents, self._features
        addresses = [memory.data_ptr() for memory in (*per_bucket, *per_slot, self._counters)]
        index = self._device_index()
        self._on_gpu = index >= 0
        self._engine = _C.Engine(self._config(), index, *addresses)

    def _config(self) -> _C.Config:
        options = self.options
        return _C.Config(
            sizes=options.grid_sizes.tolist(),
            queue_length=options.queue_length,
            num_buckets=options.num_buckets,
            capacity=self.capacity,
            feature_size=options.feature_size,
            latent_size=options.latent_size,
            feature_dtype=FEATURE_DTYPES.index(options.feature_dtype),
            match=MATCHES.index(options.match),
            weighting=WEIGHTINGS.index(options.weighting),
            decay=options.similarity_decay,
            initial_similarity=options.initial_similarity,
            min_similarity=float("-inf") if options.min_similarity is None else options.min_similarity,
            azimuth_period=options.azimuth_period or 0.0,
        )

    def _device_index(self) -> int:
        return -1 if self.device.type == "cpu" else self.device.index

    def _stream(self) -> int:
        """The current stream's address; 0 on the CPU."""
        return 0 if self.device.type == "cpu" else torch.cuda.current_stream(self.device).cuda_stream

    def _scratch(self, size: Callable[..., int], *arguments: int) -> Tensor | None:
        """Memory for one call's kernels, from torch's pool for the current stream; None for an engine without any."""
        if not self._on_gpu:
            return None
        return torch.empty(size(*arguments), dtype=torch.uint8, device=self.device)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, constant from construction on."""
        return self.options.fixed_bytes + self.capacity * self.options.slot_bytes

    def clear(self) -> None:
        """Makes the table as just constructed: empty, serials from 0, similarities and counters reset."""
        with self._lock:
            self._engine.clear(self._stream())

    def append(self, keys: Tensor, latents: Tensor, features: Tensor) -> Tensor:
        """Stores items in order, as if one by one.

        Args:
            keys: float32 ``[B, 4]`` from :func:`make_keys`.
            latents: ``[B, *latent_shape]``, float32, float16 or bfloat16.
            features: ``[B, *feature_shape]``, likewise; converted to the stored dtype.

        Returns:
            serials int64 ``[B]``; -1 for an item with something not finite in it (in the stored dtype), which uses up a
            serial and a slot all the same.
        """
        keys, latents = self._check_items(keys, latents)
        rows = len(keys)
        features = self.options.check_features(features, rows).to(self.options.feature_dtype).contiguous()
        serials = torch.empty(rows, dtype=torch.int64, device=self.device)
        scratch = self._scratch(self._engine.append_scratch)
        with self._lock:
            self._engine.append(
                rows,
                keys.data_ptr(),
                latents.data_ptr(),
                features.data_ptr(),
                serials.data_ptr(),
                self._stream(),
                torch.get_num_threads(),
                0 if scratch is None else scratch.data_ptr(),
            )
        return serials

    def query(self, keys: Tensor, latents: Tensor, out: Tensor | None = None) -> QueryResult:
        """Finds entries in the query's cell and blends their features (Eq. 7 and 8).

        Args:
            keys: float32 ``[B, 4]``.
            latents: ``[B, *latent_shape]``, float32, float16 or bfloat16.
            out: ``[B, *feature_shape]`` in the stored dtype, written where a row hits and left alone where it misses.
                Rows that are dense are written in place; batch strides are free.

        Returns:
            :class:`QueryResult`.
        """
        keys, latents = self._check_items(keys, latents)
        rows, queue = keys.shape[0], self.options.queue_length
        if out is not None:
            self.options.check_out(out, rows)
        if out is not None and _rows_are_dense(out):
            target = out
        else:
            shape = (rows, *self.options.feature_shape)
            target = torch.empty(shape, dtype=self.options.feature_dtype, device=self.device)
        hit = torch.empty(rows, dtype=torch.bool, device=self.device)
        grid = torch.empty(rows, dtype=torch.int32, device=self.device)
        serials = torch.empty(rows, queue, dtype=torch.int64, device=self.device)
        weights = torch.empty(rows, queue, device=self.device)
        scratch = self._scratch(self._engine.query_scratch, rows)
        with self._lock:
            self._engine.query(
                rows,
                keys.data_ptr(),
                latents.data_ptr(),
                target.data_ptr(),
                target.stride(0),
                hit.data_ptr(),
                grid.data_ptr(),
                serials.data_ptr(),
                weights.data_ptr(),
                self._stream(),
                torch.get_num_threads(),
                0 if scratch is None else scratch.data_ptr(),
            )
        if out is None:
            _blank(target, hit)
        elif target is not out:
            out.detach()[hit] = target[hit]
        return QueryResult(target if out is None else out, hit, grid, serials, weights)

    def lookup(self, keys: Tensor) -> Tensor:
        """The bare look-up: serials of every grid's candidates, int64 ``[N, M, Q]``, newest first, -1 for none.

        Args:
            keys: float32 ``[N, 4]``; N up to millions.
        """
        keys = self.options.check_keys(keys).contiguous()
        shape = len(keys), len(self.options.grids), self.options.queue_length
        serials = torch.empty(shape, dtype=torch.int64, device=self.device)
        with self._lock:
            self._engine.lookup(len(keys), keys.data_ptr(), serials.data_ptr(), self._stream(), torch.get_num_threads())
        return serials

    def similarity(self, keys: Tensor) -> Tensor:
        """The running average (Eq. 9) of each key's buckets, float32 ``[N, M]``; NaN for a key that is not finite."""
        keys = self.options.check_keys(keys).contiguous()
        averages = torch.empty(len(keys), len(self.options.grids), device=self.device)
        with self._lock:
            self._engine.similarity(len(keys), keys.data_ptr(), averages.data_ptr(), self._stream())
        return averages

    def __len__(self) -> int:
        """Live entries: those still in at least one chain."""
        return self.stats().live

    def stats(self) -> TableStats:
        """The counters since construction or :meth:`clear`. A CUDA table synchronises."""
        with self._lock:
            appended, rejected, queries, hits, live = self._counters.tolist()
        return TableStats(
            appended=appended,
            rejected=rejected,
            live=live,
            capacity=self.capacity,
            nbytes=self.nbytes,
            queries=queries,
            hits=hits,
            misses=queries - hits,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to ``path`` (safetensors, atomically); see :func:`hash3d_cuda.storage.save`."""
        storage.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> HashTable:
        """Reads a table that :meth:`save` wrote; see :func:`hash3d_cuda.storage.load`."""
        return storage.load(cls, path, device)

    def __repr__(self) -> str:
        options = self.options
        return f"HashTable({list(options.feature_shape)} {options.feature_dtype} on {self.device}: {self.stats()})"

    def _check_items(self, keys: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.options.check_keys(keys).contiguous()
        latents = self.options.check_latents(latents, keys.shape[0])
        if latents.dtype is not torch.float32:  # a call of to() that changes nothing is not free
            latents = latents.to(torch.float32)
        return keys, latents.contiguous()

    def _state_dict(self) -> dict[str, Tensor]:
        """The content as CPU tensors, in the form :mod:`hash3d_cuda.storage` describes."""
        with self._lock:
            counters, joined = self._counters.cpu(), self._joined
            following = int(counters[0])
            slots = torch.nonzero(joined > 0).flatten()
            serials = following - 1 - (following - 1 - slots) % self.capacity
            serials, order = serials.sort()
            slots = slots[order]
            chained = self._chains[:, :, 1:].flatten(1)
            member = torch.stack([torch.isin(serials, chain) for chain in chained], dim=1)
            content = {
                "serials": serials,
                "keys": self._keys[slots],
                "latents": self._latents[slots],
                "features": self._features[slots],
                "member": member,
                "similarity": self._similarity.clone(),
                "counters": counters[:4].clone(),
            }
        return {name: tensor.cpu() for name, tensor in content.items()}

    def _load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a state that ``storage`` has checked; raises ValueError for a chain longer than Q."""
        self.clear()
        with self._lock:
            serials, member = state["serials"].contiguous(), state["member"].contiguous()
            slots = (serials % self.capacity).to(self.device)
            for memory, name in ((self._keys, "keys"), (self._latents, "latents"), (self._features, "features")):
                memory[slots] = state[name].to(self.device)
            self._counters[:4] = state["counters"].to(self.device)
            serials, member = serials.to(self.device), member.to(self.device)
            overflow = torch.zeros(1, dtype=torch.int32, device=self.device)
            addresses = serials.data_ptr(), member.data_ptr(), overflow.data_ptr()
            self._engine.restore(len(serials), *addresses, self._stream())
            if overflow.item():
                self._engine.clear(self._stream())
                raise ValueError(f"a chain holds more than {self.options.queue_length} entries")
            self._similarity.copy_(state["similarity"])


def _rows_are_dense(out: Tensor) -> bool:
    """Whether each row of ``out`` lies in one piece and no two rows overlap."""
    if out.is_contiguous() or out.dim() < 2 or len(out) == 0:
        return out.is_contiguous()
    return out[0].is_contiguous() and (len(out) == 1 or out.stride(0) >= out[0].numel())


def _blank(target: Tensor, hit: Tensor) -> None:
    """Zeroes the rows of ``target`` that miss. A GPU is not waited for; on a CPU only those rows are touched."""
    if target.is_cuda:
        target.masked_fill_(~hit.view(-1, *(1,) * (target.dim() - 1)), 0)
        return
    for row, found in enumerate(hit.tolist()):
        if not found:
            target[row].zero_()
