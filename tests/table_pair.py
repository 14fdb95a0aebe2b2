"""An engine and an oracle driven by the same calls, every answer compared.

Integers and booleans must be equal. Floats must agree to the tolerances below; they are kept here and nowhere else.
Where a decision hangs on floats that lie within those tolerances of each other (two grids' similarities, a similarity
and ``min_similarity``, two keys' distances), either decision is right: the pair counts it in ``near_ties`` and checks
the rest of the answer against the decision taken. Appends do not depend on such decisions, so the two never drift.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hash3d_cuda as h3d
from hash3d_cuda import reference_rules as rules

EPS = torch.finfo(torch.float32).eps

# One unit in the last place of the dtype of answers: the blended sums differ by float32 roundings, so they round to the
# same number or to neighbours. For float32 itself the sum of a few products may be off by a few units.
FEATURE_ULPS = {torch.float32: 8 * EPS, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
SMALLEST = {
    torch.float32: 1e-38,
    torch.float16: 2.0**-24,
    torch.bfloat16: 1e-38,
}  # spacing near zero, or below


def similarity_tolerance(options: Any) -> float:
    """Running averages: the cosines' roundings grow with the root of the feature's size when summed in another order;
    the average adds a rounding a step and forgets at the rate 1 - decay."""
    forget = 1.0 - options.similarity_decay
    return EPS * (4.0 + math.sqrt(options.feature_size) + (2.0 / forget if forget > 0 else 0.0))


def weight_tolerance(distances: Tensor, weights: Tensor) -> Tensor:
    """Softmax: a squared distance d is off by a few d * eps when summed in another order, which exp turns into a
    relative error of the weight; 1e-6 covers exp and the division."""
    near = distances[distances - distances.min() < 100 + 16 * EPS * distances.min()]  # the others weigh nothing
    return weights * torch.expm1((4 * EPS * near.max()).clamp(max=1.0)) + 1e-6


class Pair:
    """An engine's and an oracle's table with the same options; each method calls both and compares."""

    def __init__(self, device: str, feature_shape: tuple[int, ...], latent_shape: tuple[int, ...], **options: Any):
        self.engine = h3d.HashTable(feature_shape, latent_shape, device=device, **options)
        self.oracle = h3d.reference.HashTable(feature_shape, latent_shape, **options)
        self.options = self.oracle.options
        self.near_ties = 0
        assert self.engine.capacity == self.oracle.capacity and self.engine.nbytes == self.oracle.nbytes

    def append(self, keys: Tensor, latents: Tensor, features: Tensor, skip: Tensor | None = None) -> Tensor:
        there = None if skip is None else skip.to(self.engine.device)
        serials = self.engine.append(*self._there(keys, latents, features), skip=there)
        assert serials.dtype == torch.int64
        assert serials.tolist() == self.oracle.append(keys, latents, features, skip=skip).tolist()
        return serials

    def lookup(self, keys: Tensor) -> None:
        assert torch.equal(self.engine.lookup(*self._there(keys)).cpu(), self.oracle.lookup(keys))

    def similarity(self, keys: Tensor) -> None:
        actual, expected = self.engine.similarity(*self._there(keys)).cpu(), self.oracle.similarity(keys)
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        assert torch.allclose(actual, expected, rtol=0, atol=similarity_tolerance(self.options), equal_nan=True), (
            f"similarity {actual.tolist()}, oracle {expected.tolist()}"
        )

    def query(self, keys: Tensor, latents: Tensor, out: Tensor | None = None) -> None:
        """With ``out``, each writes into a copy of it that has the same strides and a guarded storage."""
        mine, theirs = (None, None) if out is None else (Guarded(out, "cpu"), Guarded(out, self.engine.device))
        actual = self.engine.query(*self._there(keys, latents), out=theirs and theirs.view)
        expected = self.oracle.query(keys, latents, out=mine and mine.view)
        if theirs is not None:
            assert actual.features is theirs.view
            theirs.check_gaps()
        actual = h3d.QueryResult(*(getattr(actual, field.name).cpu() for field in dataclasses.fields(actual)))
        for field in dataclasses.fields(actual):
            a, e = getattr(actual, field.name), getattr(expected, field.name)
            assert a.dtype == e.dtype and a.shape == e.shape, field.name
        assert torch.equal(actual.hit, actual.grid >= 0)
        if self._equal_at_a_glance(actual, expected):
            return
        for row in range(len(keys)):
            untouched = torch.zeros(self.options.feature_shape) if out is None else out[row]
            self._compare_row(actual, expected, row, keys[row], latents[row], untouched)

    def clear(self) -> None:
        self.check_counters()
        self.engine.clear()
        self.oracle.clear()
        self.near_ties = 0

    def check_counters(self) -> None:
        actual, expected = self.engine.stats(), self.oracle.stats()
        if self.near_ties:  # hits may differ where a similarity is near min_similarity
            actual, expected = (dataclasses.replace(s, hits=0, misses=0) for s in (actual, expected))
        assert actual == expected and len(self.engine) == len(self.oracle)

    def swap_files(self, folder: Path) -> None:
        """Saves both; the engine continues from its own file, the oracle from its own, after each has read the
        other's."""
        engine, oracle = folder / "engine.safetensors", folder / "oracle.safetensors"
        self.engine.save(engine)
        self.oracle.save(oracle)
        device = self.engine.device
        crossed = Pair.__new__(Pair)
        crossed.engine = h3d.HashTable.load(oracle, device=device)
        crossed.oracle = h3d.reference.HashTable.load(engine, device="cpu")
        crossed.options, crossed.near_ties = self.options, self.near_ties
        crossed.compare_states()
        crossed.check_counters()
        self.engine = h3d.HashTable.load(engine, device=device)
        self.oracle = h3d.reference.HashTable.load(oracle, device="cpu")
        self.compare_states()

    def compare_states(self) -> None:
        """The whole content, bit for bit but for the running averages."""
        actual, expected = self.engine._state_dict(), self.oracle._state_dict()
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            if name == "similarity":
                atol = similarity_tolerance(self.options)
                assert torch.allclose(actual[name], tensor, rtol=0, atol=atol, equal_nan=True)
            elif name == "counters" and self.near_ties:
                assert torch.equal(actual[name][:3], tensor[:3])
            else:
                bits = torch.uint8 if tensor.dtype is torch.float8_e4m3fn else tensor.dtype  # torch compares no such
                same = actual[name].dtype is tensor.dtype and torch.equal(actual[name].view(bits), tensor.view(bits))
                assert same, f"{name}: {actual[name]}, oracle {tensor}"

    def _there(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors on the engine's device."""
        return tuple(tensor.to(self.engine.device) for tensor in tensors)

    def _equal_at_a_glance(self, actual: Any, expected: Any) -> bool:
        """Whether all rows agree more tightly than the row by row comparison asks for."""
        dtype = self.options.answer_dtype
        same = torch.equal(actual.grid, expected.grid) and torch.equal(actual.serials, expected.serials)
        weights = 1e-6 if self.options.weighting == "softmax" else 0.0
        return (
            same
            and torch.allclose(actual.weights, expected.weights, rtol=0, atol=weights)
            and torch.allclose(actual.features, expected.features, rtol=FEATURE_ULPS[dtype], atol=SMALLEST[dtype])
        )

    def _compare_row(
        self, actual: Any, expected: Any, row: int, key: Tensor, latent: Tensor, untouched: Tensor
    ) -> None:
        """One row of a query; ``untouched`` is what its features must be on a miss."""
        grid = int(actual.grid[row])
        if grid != int(expected.grid[row]):
            self._accept_grid(grid, int(expected.grid[row]), key)
        if grid < 0:
            assert actual.serials[row].eq(-1).all() and actual.weights[row].eq(0).all()
            assert torch.equal(actual.features[row], untouched.to(actual.features.dtype))
            return
        ((places),) = rules.places_of(key[None], self.options)
        others = self.oracle._held.candidates(grid, places[grid])
        serials = [other.serial for other in others]
        assert actual.serials[row].tolist() == serials + [-1] * (self.options.queue_length - len(serials))
        weights = actual.weights[row]
        assert weights[len(others) :].eq(0).all()
        weights = weights[: len(others)]
        self._compare_weights(weights, others, grid, key, latent.float().reshape(-1))
        self._compare_features(actual.features[row].reshape(-1), others, weights)

    def _accept_grid(self, actual: int, expected: int, key: Tensor) -> None:
        """Another grid, or a hit for a miss, is right only where similarities are near each other or the limit."""
        scores = self.oracle.similarity(key[None])[0].tolist()
        limit, near = self.options.min_similarity, 2 * similarity_tolerance(self.options)
        if actual >= 0 and expected >= 0:
            gap = abs(scores[actual] - scores[expected])
        else:
            ((places),) = rules.places_of(key[None], self.options)
            held = [s for g, s in enumerate(scores) if places and self.oracle._held.candidates(g, places[g])]
            gap = abs(max(held) - limit) if held and limit is not None else math.inf
        assert gap <= near, f"grid {actual}, oracle {expected}, similarities {scores}, limit {limit}"
        self.near_ties += 1

    def _compare_weights(self, actual: Tensor, others: list[Any], grid: int, key: Tensor, latent: Tensor) -> None:
        expected = torch.tensor(rules.weigh(self.options, grid, others, key, latent))
        if self.options.weighting == "softmax":
            distances = rules.latent_distances(others, latent)
            allowed = weight_tolerance(distances, expected)
        elif self.options.weighting == "uniform":
            allowed = torch.full_like(expected, EPS)
        else:
            allowed = torch.zeros_like(expected)
            if not torch.equal(actual, expected):
                self._accept_nearest(actual, others, grid, key)
                return
        assert ((actual - expected).abs() <= allowed).all(), f"weights {actual.tolist()}, oracle {expected.tolist()}"

    def _accept_nearest(self, actual: Tensor, others: list[Any], grid: int, key: Tensor) -> None:
        """Another nearest key is right only where its distance is as good as the best."""
        assert sorted(actual.tolist()) == [0.0] * (len(others) - 1) + [1.0]
        distances = rules.key_distances(self.options, grid, others, key)
        taken, best = distances[int(actual.argmax())], min(distances)
        assert taken != best and taken - best <= 8 * EPS * taken, f"nearest {actual.tolist()}, distances {distances}"
        self.near_ties += 1

    def _compare_features(self, actual: Tensor, others: list[Any], weights: Tensor) -> None:
        """Against the blend of the oracle's features by the engine's own weights, already compared."""
        dtype = self.options.answer_dtype
        expected = rules.blend(self.options, others, weights.tolist())
        if torch.equal(actual, expected):
            return
        stored = torch.stack([other.numbers for other in others])
        largest = (weights[:, None] * stored.abs()).sum(dim=0)
        allowed = FEATURE_ULPS[dtype] * expected.float().abs() + 8 * EPS * largest + SMALLEST[dtype]
        wrong = (actual.float() - expected.float()).abs() > allowed
        assert not wrong.any(), f"features {actual[wrong].tolist()}, oracle {expected[wrong].tolist()}"


class Guarded:
    """A copy of a tensor with the same strides, in a storage whose gaps must stay as they are."""

    def __init__(self, tensor: Tensor, device: torch.device | str):
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in sizes) if tensor.numel() else 0
        self.storage = torch.full((extent,), 7.0, dtype=tensor.dtype, device=device)
        self.view = self.storage.as_strided(tensor.shape, tensor.stride())
        self.view.copy_(tensor)

    def check_gaps(self) -> None:
        """Asserts that nothing outside the view was written."""
        inside = torch.zeros(len(self.storage), dtype=torch.bool, device=self.storage.device)
        inside.as_strided(self.view.shape, self.view.stride()).fill_(True)
        assert self.storage[~inside].eq(7.0).all()
