"""The native module: the engine on raw memory. Addresses are ``Tensor.data_ptr()``; a stream of 0 is the CPU."""

from collections.abc import Sequence
from typing import Any

MAX_GRIDS: int
COUNTERS: int

class Config:
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        queue_length: int,
        num_buckets: int,
        capacity: int,
        feature_size: int,
        latent_size: int,
        channel_size: int,
        feature_dtype: int,
        match: int,
        weighting: int,
        decay: float,
        initial_similarity: float,
        min_similarity: float,
        azimuth_period: float,
    ) -> None: ...

class Engine:
    def __init__(
        self,
        config: Config,
        device: int,
        chains: int,
        similarity: int,
        keys: int,
        cells: int,
        norms: int,
        joined: int,
        latents: int,
        features: int,
        scales: int,
        counters: int,
    ) -> None: ...
    def clear(self, stream: int, /) -> None: ...
    def append_scratch(self) -> int: ...
    def query_scratch(self, count: int, /) -> int: ...
    def append(
        self,
        count: int,
        keys: int,
        latents: int,
        features: int,
        skip: int,
        serials: int,
        stream: int,
        threads: int,
        scratch: int,
        /,
    ) -> None: ...
    def query(
        self,
        count: int,
        keys: int,
        latents: int,
        features: int,
        feature_stride: int,
        hit: int,
        grid: int,
        serials: int,
        weights: int,
        stream: int,
        threads: int,
        scratch: int,
        /,
    ) -> None: ...
    def lookup(self, count: int, keys: int, serials: int, stream: int, threads: int, /) -> None: ...
    def similarity(self, count: int, keys: int, averages: int, stream: int, /) -> None: ...
    def restore(self, count: int, serials: int, member: int, overflow: int, stream: int, /) -> None: ...

# Three captured CUDA graphs as one; the second runs where the int32 at `need` is not 0 by then. All but `device` are
# addresses.
class JoinedGraph:
    def __init__(self, device: int, before: int, body: int, after: int, need: int) -> None: ...
    def launch(self, stream: int, /) -> None: ...

def missing_for_joins() -> str: ...
def build_info() -> dict[str, Any]: ...
def items_of(dicts: list[dict[str, Any]], /) -> list[Any]: ...
def are_items_of(dicts: list[dict[str, Any]], items: list[Any], /) -> bool: ...
def sizes_of(dicts: list[dict[str, Any]], /) -> list[int]: ...
def are_sizes_of(dicts: list[dict[str, Any]], sizes: list[int], /) -> bool: ...
def sum_attributes(objects: list[Any], name: str, addresses: int, count: int, /) -> int: ...
def use_simd(name: str, /) -> bool: ...
def supports(type: str, /) -> bool: ...
def to_float(dtype: int, source: int, target: int, count: int, /) -> None: ...
def from_float(dtype: int, source: int, target: int, count: int, /) -> None: ...
