"""The engine's calls as operators of torch: ``hash3d::append``, ``query``, ``query.out``, ``lookup``, ``similarity``.

:class:`HashTable` is what people use; its methods come here. In plain eager code they call the engine directly, because
torch's dispatcher would cost about as much again as the rest of a call. Compiled code, fake tensors and dispatch modes
get the operators, which say what they write to, so that a call which writes keeps its place among a table's others.

An operator is told its table by an integer, and works on the memory that it is handed: the table's own, or the copies
of it that compilers make where they turn writing into returning.
"""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _C, calls
from .results import QueryResult

if TYPE_CHECKING:
    from .table import HashTable

_Answers = tuple[Tensor, Tensor, Tensor, Tensor]  # hit, grid, serials, weights: see QueryResult
_Memory = Sequence[Tensor]

_tables: weakref.WeakValueDictionary[int, HashTable] = weakref.WeakValueDictionary()
_handles = itertools.count(1)


def register(table: HashTable) -> int:
    """Returns the integer by which operators find ``table``, for as long as it lives."""
    handle = next(_handles)
    _tables[handle] = table
    return handle


def find(handle: int) -> HashTable:
    """The table of a handle; raises RuntimeError when it is gone."""
    table = _tables.get(handle)
    if table is None:
        raise RuntimeError(
            f"hash3d: expected the handle of a living HashTable, got {handle}; keep a reference to the table for as "
            "long as code that was traced with it runs"
        )
    return table


def direct_engine(table: HashTable, keys: Any) -> _C.Engine | None:
    """The engine to call directly; None where torch must see the call, because it is being compiled, something
    listens, or the tensors are not real."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return None
    return table._engine if type(keys) is Tensor or not isinstance(keys, Tensor) else None


# The operators. ``content`` is everything but the counters, ``written`` what a query writes too: HashTable._content and
# HashTable._written, in that order.


def _engine(table: HashTable, content: _Memory, written: _Memory) -> _C.Engine:
    """An engine on the memory that was handed in; raises ValueError when it is not this table's or like it."""
    own, memory = (*table._content, *table._written), (*content, *written)
    if len(own) == len(memory) and table._engine is not None:
        if all(map(operator.is_, own, memory)):
            return table._engine
        if all(map(_alike, own, memory)):
            return table._make_engine(memory)
    raise ValueError(
        f"content, written: expected the memory of table {table._handle} or copies of it, got something else; "
        "pass its own, or call the table's methods"
    )


def _alike(one: Tensor, other: Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.device == other.device
    return same_kind and one.shape == other.shape and other.is_contiguous()


def _append(
    handle: int,
    keys: Tensor,
    latents: Tensor,
    features: Tensor,
    content: _Memory,
    written: _Memory,
    skip: Tensor | None = None,
) -> Tensor:
    table = find(handle)
    keys, latents = table._check_items(keys, latents)
    features = table.options.check_features(features, keys.shape[0])
    if skip is not None:
        skip = table.options.check_skip(skip, keys.shape[0])
    return calls.run_append(table, _engine(table, content, written), keys, latents, features, skip)


def _query(handle: int, keys: Tensor, latents: Tensor, content: _Memory, written: _Memory) -> tuple[Tensor, ...]:
    table = find(handle)
    keys, latents = table._check_items(keys, latents)
    found = calls.run_query(table, _engine(table, content, written), keys, latents, None)
    return found.features, *_answers(found)


def _query_out(
    handle: int, keys: Tensor, latents: Tensor, content: _Memory, written: _Memory, out: Tensor
) -> tuple[Tensor, ...]:
    table = find(handle)
    keys, latents = table._check_items(keys, latents)
    table.options.check_out(out, keys.shape[0])
    return _answers(calls.run_query(table, _engine(table, content, written), keys, latents, out))


def _answers(found: QueryResult) -> _Answers:
    """Tensors with memory of their own, as operators must return them."""
    return found.hit.clone(), found.grid.clone(), found.serials.clone(), found.weights.clone()


def _lookup(handle: int, keys: Tensor, content: _Memory, written: _Memory) -> Tensor:
    table = find(handle)
    return calls.run_lookup(table, _engine(table, content, written), table.options.check_keys(keys))


def _similarity(handle: int, keys: Tensor, content: _Memory, written: _Memory) -> Tensor:
    table = find(handle)
    return calls.run_similarity(table, _engine(table, content, written), table.options.check_keys(keys))


# What they return, for tensors without content. The checks are the same, so compiling finds the same mistakes.


def _fake_append(
    handle: int,
    keys: Tensor,
    latents: Tensor,
    features: Tensor,
    content: _Memory,
    written: _Memory,
    skip: Tensor | None = None,
) -> Tensor:
    table = find(handle)
    keys, _ = table._check_items(keys, latents)
    table.options.check_features(features, keys.shape[0])
    if skip is not None:
        table.options.check_skip(skip, keys.shape[0])
    return keys.new_empty(keys.shape[0], dtype=torch.int64)


def _fake_query(handle: int, keys: Tensor, latents: Tensor, content: _Memory, written: _Memory) -> tuple[Tensor, ...]:
    options = find(handle).options
    answers = _fake_answers(handle, keys, latents)
    return keys.new_empty((keys.shape[0], *options.feature_shape), dtype=options.answer_dtype), *answers


def _fake_query_out(
    handle: int, keys: Tensor, latents: Tensor, content: _Memory, written: _Memory, out: Tensor
) -> _Answers:
    find(handle).options.check_out(out, keys.shape[0])
    return _fake_answers(handle, keys, latents)


def _fake_answers(handle: int, keys: Tensor, latents: Tensor) -> _Answers:
    table = find(handle)
    keys, _ = table._check_items(keys, latents)
    rows, queue = keys.shape[0], table.options.queue_length
    return (
        keys.new_empty(rows, dtype=torch.bool),
        keys.new_empty(rows, dtype=torch.int32),
        keys.new_empty((rows, queue), dtype=torch.int64),
        keys.new_empty((rows, queue)),
    )


def _fake_lookup(handle: int, keys: Tensor, content: _Memory, written: _Memory) -> Tensor:
    options = find(handle).options
    rows = options.check_keys(keys).shape[0]
    return keys.new_empty((rows, len(options.grids), options.queue_length), dtype=torch.int64)


def _fake_similarity(handle: int, keys: Tensor, content: _Memory, written: _Memory) -> Tensor:
    options = find(handle).options
    return keys.new_empty((options.check_keys(keys).shape[0], len(options.grids)))


_ANSWERS = "Tensor hit, Tensor grid, Tensor serials, Tensor weights"
_OPERATORS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any]]] = {
    "append": (
        "(int table, Tensor keys, Tensor latents, Tensor features, Tensor(a!)[] content, Tensor(b!)[] written,"
        " Tensor? skip=None) -> Tensor",
        _append,
        _fake_append,
    ),
    "query": (
        "(int table, Tensor keys, Tensor latents, Tensor[] content, Tensor(a!)[] written)"
        f" -> (Tensor features, {_ANSWERS})",
        _query,
        _fake_query,
    ),
    "query.out": (
        "(int table, Tensor keys, Tensor latents, Tensor[] content, Tensor(a!)[] written, Tensor(b!) out)"
        f" -> ({_ANSWERS})",
        _query_out,
        _fake_query_out,
    ),
    "lookup": ("(int table, Tensor keys, Tensor[] content, Tensor[] written) -> Tensor", _lookup, _fake_lookup),
    "similarity": (
        "(int table, Tensor keys, Tensor[] content, Tensor[] written) -> Tensor",
        _similarity,
        _fake_similarity,
    ),
}

# Library.define is the cheaper of torch's two ways: 3 us a call where torch.library.custom_op takes about 15.
_library = torch.library.Library("hash3d", "DEF")
for _name, (_schema, _run, _fake) in _OPERATORS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    for _backend in ("CPU", "CUDA"):
        _library.impl(_name, _run, _backend)
    # Tensors to be read negated come as they are, and calls.py resolves them: torch's own way cannot write to one.
    _library.impl(_name, torch.library.fallthrough_kernel, "Negative")
    torch.library.register_fake(f"hash3d::{_name}", _fake, lib=_library)
