"""The table: a fixed-size hash table of U-Net features, its memory held in tensors, its work done by the engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _C, calls, operators, storage
from .checks import STORED_DTYPES
from .keys import PAPER_GRIDS, Grid
from .options import APPENDED, COUNTERS, MATCHES, REJECTED, WEIGHTINGS, TableOptions
from .results import QueryResult, TableStats


class HashTable:
    """A hash table with separate chaining over (elevation, azimuth, radius, timestep), one per grid (section 3.2).

    Memory is constant from construction on and allocated with torch on ``device``. One table serves one thread at a
    time; calls from several threads wait for each other.

    On CUDA a call queues its work on the current stream and returns. Work on one table must not overlap: who calls it
    from several streams orders them, with ``stream.wait_stream(other)`` or an event between a call and the next one on
    another stream. As everywhere in torch, a tensor that was made on another stream than the one a call runs on is the
    caller's to keep alive (``record_stream``); the table sees to its own memory.

    The methods work under ``torch.compile(fullgraph=True)`` and with fake tensors; see
    :mod:`hash3d_cuda.operators`.

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
        feature_dtype: how features are stored: float32, float16 or bfloat16, or int8 or float8_e4m3fn with a float32
            scale for each channel. These two take features as float16 and answer in float16; see "Features in 8 bits"
            in the docs of the table.
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
        self.capacity, self._spare = self._divide(self.options.resolve_capacity())
        self._lock = threading.Lock()
        self._streams: set[int] = set()
        self._emptied = 0  # times
        self._handle = operators.register(self)
        self._allocate()
        self.clear()

    @staticmethod
    def supports(device_type: str) -> bool:
        """Whether this build can keep a table on ``"cpu"`` or ``"cuda"``."""
        return _C.supports(device_type)

    def _divide(self, slots: int) -> tuple[int, int]:
        """Of all slots the entries' and those behind them, which a host tier has a use for."""
        return slots, 0

    def _allocate(self) -> None:
        options, slots = self.options, self.capacity + self._spare
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
            self._scales = empty(slots, options.channels)
            self._counters = empty(COUNTERS, dtype=torch.int64)
        except (RuntimeError, TypeError) as error:  # a TypeError where a size is beyond 64 bits
            wanted = options.fixed_bytes + slots * options.slot_bytes
            raise MemoryError(
                f"capacity, memory_budget: {wanted:,} bytes for {slots:,} slots are not to be had on {self.device}; "
                "lower capacity, memory_budget or num_buckets"
            ) from error
        per_bucket = self._chains, self._similarity
        per_slot = self._keys, self._cells, self._norms, self._joined, self._latents, self._features, self._scales
        self._content, self._written = (*per_bucket, *per_slot), (self._counters,)
        # A table made of fake tensors can be traced with, but not run.
        real = type(self._counters) is Tensor
        self._engine = self._make_engine((*self._content, *self._written)) if real else None
        self._on_gpu = self._device_index() >= 0

    def _make_engine(self, memory: Sequence[Tensor], **changes: Any) -> _C.Engine:
        """An engine on this table's memory, ``_content`` and ``_written``, or on others like it."""
        return _C.Engine(self._config(**changes), self._device_index(), *(tensor.data_ptr() for tensor in memory))

    def _config(self, **changes: Any) -> _C.Config:
        options = self.options
        values: dict[str, Any] = dict(
            sizes=options.grid_sizes.tolist(),
            queue_length=options.queue_length,
            num_buckets=options.num_buckets,
            capacity=self.capacity,
            feature_size=options.feature_size,
            latent_size=options.latent_size,
            channel_size=options.channel_size,
            feature_dtype=STORED_DTYPES.index(options.feature_dtype),
            match=MATCHES.index(options.match),
            weighting=WEIGHTINGS.index(options.weighting),
            decay=options.similarity_decay,
            initial_similarity=options.initial_similarity,
            min_similarity=float("-inf") if options.min_similarity is None else options.min_similarity,
            azimuth_period=options.azimuth_period or 0.0,
        )
        return _C.Config(**{**values, **changes})

    def _device_index(self) -> int:
        return -1 if self.device.type == "cpu" else self.device.index

    def _stream(self) -> int:
        """The current stream's address; 0 on the CPU."""
        if self.device.type == "cpu":
            return 0
        stream = torch.cuda.current_stream(self.device)
        address = stream.cuda_stream
        if address not in self._streams:  # or the memory of a table that goes might be reused too early
            self._streams.add(address)
            for memory in (*self._content, *self._written):
                memory.record_stream(stream)
        return address

    @property
    def nbytes(self) -> int:
        """Bytes allocated, constant from construction on."""
        return self.options.fixed_bytes + (self.capacity + self._spare) * self.options.slot_bytes

    def clear(self) -> None:
        """Makes the table as just constructed: empty, serials from 0, similarities and counters reset."""
        if self._engine is not None:
            with self._lock:
                self._emptied += 1
                self._engine.clear(self._stream())

    def _stage(self) -> tuple[int, int]:
        """Another one after anything was appended, or the table emptied. A CUDA table synchronises."""
        return self._emptied, self._counters.tolist()[APPENDED]

    def _pass_over(self, count: int) -> None:
        """Uses up the next ``count`` serials, as if their items had come and gone."""
        with self._lock:
            self._counters[APPENDED] += count

    def append(self, keys: Tensor, latents: Tensor, features: Tensor, skip: Tensor | None = None) -> Tensor:
        """Stores items in order, as if one by one.

        Args:
            keys: float32 ``[B, 4]`` from :func:`make_keys`.
            latents: ``[B, *latent_shape]``, float32, float16 or bfloat16.
            features: ``[B, *feature_shape]``, likewise; converted to the stored dtype, by way of float16 where that
                has 8 bits.
            skip: bool ``[B]``, items to leave out: the table is then as if they were not in the batch. On CUDA it is
                read on the device. None: no item.

        Returns:
            serials int64 ``[B]``; -1 for an item with something not finite in it (in the stored dtype, or in float16
            where that has 8 bits), which uses up a serial and a slot all the same, and for a skipped item, which uses
            up none.
        """
        keys, latents = self._check_items(keys, latents)
        features = self.options.check_features(features, keys.shape[0])
        if skip is not None:
            skip = self.options.check_skip(skip, keys.shape[0])
        engine = operators.direct_engine(self, keys)
        if engine is not None:
            return calls.run_append(self, engine, keys, latents, features, skip)
        return torch.ops.hash3d.append(self._handle, keys, latents, features, self._content, self._written, skip)

    def query(self, keys: Tensor, latents: Tensor, out: Tensor | None = None) -> QueryResult:
        """Finds entries in the query's cell and blends their features (Eq. 7 and 8).

        Args:
            keys: float32 ``[B, 4]``.
            latents: ``[B, *latent_shape]``, float32, float16 or bfloat16.
            out: ``[B, *feature_shape]`` in the stored dtype, float16 where that has 8 bits; written where a row hits
                and left alone where it misses. Rows that are dense are written in place, batch strides are free; with
                others, such as ``channels_last`` ones, the answer is made beside them and copied.

        Returns:
            :class:`QueryResult`.
        """
        keys, latents = self._check_items(keys, latents)
        if out is not None:
            self.options.check_out(out, keys.shape[0])
        engine = operators.direct_engine(self, keys)
        if engine is not None:
            return calls.run_query(self, engine, keys, latents, out)
        if out is None:
            return QueryResult(*torch.ops.hash3d.query(self._handle, keys, latents, self._content, self._written))
        answers = torch.ops.hash3d.query.out(self._handle, keys, latents, self._content, self._written, out.detach())
        return QueryResult(out, *answers)

    def lookup(self, keys: Tensor) -> Tensor:
        """The bare look-up: serials of every grid's candidates, int64 ``[N, M, Q]``, newest first, -1 for none.

        Args:
            keys: float32 ``[N, 4]``; N up to millions.
        """
        keys = self.options.check_keys(keys)
        engine = operators.direct_engine(self, keys)
        if engine is not None:
            return calls.run_lookup(self, engine, keys)
        return torch.ops.hash3d.lookup(self._handle, keys, self._content, self._written)

    def similarity(self, keys: Tensor) -> Tensor:
        """The running average (Eq. 9) of each key's buckets, float32 ``[N, M]``; NaN for a key that is not finite."""
        keys = self.options.check_keys(keys)
        engine = operators.direct_engine(self, keys)
        if engine is not None:
            return calls.run_similarity(self, engine, keys)
        return torch.ops.hash3d.similarity(self._handle, keys, self._content, self._written)

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

    def count_rejected(self) -> Tensor:
        """``stats().rejected`` as an int64 scalar on the device; nothing is waited for."""
        with self._lock:
            return self._counters[REJECTED].clone()

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

    @property
    def _bits(self) -> torch.dtype:
        """As what stored features are moved around: torch has no indexing for every type of 8 bits."""
        return torch.uint8 if self.options.quantised else self.options.feature_dtype

    def _check_items(self, keys: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.options.check_keys(keys)
        return keys, self.options.check_latents(latents, keys.shape[0])

    def _state_dict(self) -> dict[str, Tensor]:
        """The content as CPU tensors, in the form :mod:`hash3d_cuda.storage` describes."""
        with self._lock:
            counters, joined = self._counters.cpu(), self._joined[: self.capacity]
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
                "features": self._features.view(self._bits)[slots].view(self._features.dtype),
                "member": member,
                "similarity": self._similarity.clone(),
                "counters": counters[:4].clone(),
            }
            if self.options.quantised:
                content["scales"] = self._scales[slots]
        return {name: tensor.cpu() for name, tensor in content.items()}

    def _load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a state that ``storage`` has checked; raises ValueError for a chain longer than Q."""
        self.clear()
        assert self._engine is not None
        with self._lock:
            serials, member = state["serials"].contiguous(), state["member"].contiguous()
            slots = (serials % self.capacity).to(self.device)
            for memory, name in ((self._keys, "keys"), (self._latents, "latents"), (self._scales, "scales")):
                if name in state:
                    memory[slots] = state[name].to(self.device)
            self._features.view(self._bits)[slots] = state["features"].view(self._bits).to(self.device)
            self._counters[:4] = state["counters"].to(self.device)
            serials, member = serials.to(self.device), member.to(self.device)
            overflow = torch.zeros(1, dtype=torch.int32, device=self.device)
            addresses = serials.data_ptr(), member.data_ptr(), overflow.data_ptr()
            self._engine.restore(len(serials), *addresses, self._stream())
            if overflow.item():
                self._engine.clear(self._stream())
                raise ValueError(f"a chain holds more than {self.options.queue_length} entries")
            self._similarity.copy_(state["similarity"])
