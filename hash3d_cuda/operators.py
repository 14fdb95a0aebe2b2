"""The engine's calls as operators of torch: ``hash3d::append``, ``query``, ``query.out``, ``lookup``, ``similarity``.

:class:`HashTable` is what people use; its methods come here. In plain eager code they call the engine directly, because
torch's dispatcher would cost about as much again as the rest of a call. Compiled code, fake tensors and dispatch modes
get the operators, which say what they write to: the calls of one table are then never reordered, merged or dropped.

An operator is told its table by an integer, and works on the memory that it is handed: the table's own, or the copies
of it that compilers make where they turn writing into returning. Nothing here waits for a GPU, and with ``out`` nothing
as large as a feature is allocated as long as its rows are dense.
"""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _C

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


# The calls themselves. The engine reads memory as it lies, so whatever is not dense or of another type is copied first.


def run_append(table: HashTable, engine: _C.Engine, keys: Tensor, latents: Tensor, features: Tensor) -> Tensor:
    """Serials int64 [B]; the arguments have been checked."""
    keys, latents = keys.contiguous(), _dense(latents, torch.float32)
    features = _dense(features, table.options.feature_dtype)
    rows = keys.shape[0]
    serials = torch.empty(rows, dtype=torch.int64, device=table.device)
    addresses = keys.data_ptr(), latents.data_ptr(), features.data_ptr(), serials.data_ptr()
    with table._lock:
        engine.append(rows, *addresses, table._stream(), torch.get_num_threads())
    return serials


def run_query(
    table: HashTable, engine: _C.Engine, keys: Tensor, latents: Tensor, out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Features (``out`` itself where it is given), hit, grid, serials and weights; the arguments have been checked."""
    keys, latents = keys.contiguous(), _dense(latents, torch.float32)
    rows, options, device = keys.shape[0], table.options, table.device
    if out is not None and rows_are_dense(out):
        target = out
    else:
        target = torch.empty((rows, *options.feature_shape), dtype=options.feature_dtype, device=device)
    hit = torch.empty(rows, dtype=torch.bool, device=device)
    grid = torch.empty(rows, dtype=torch.int32, device=device)
    serials = torch.empty((rows, options.queue_length), dtype=torch.int64, device=device)
    weights = torch.empty((rows, options.queue_length), device=device)
    answers = hit.data_ptr(), grid.data_ptr(), serials.data_ptr(), weights.data_ptr()
    with table._lock:
        engine.query(
            rows,
            keys.data_ptr(),
            latents.data_ptr(),
            target.data_ptr(),
            target.stride(0),
            *answers,
            table._stream(),
            torch.get_num_threads(),
        )
    if out is None:
        _blank(target, hit)
        return target, hit, grid, serials, weights
    if target is not out:
        _copy_hits(out.detach(), target, hit)
    if not out.is_inference():  # so that autograd notices, should it have kept ``out`` for a backward pass
        torch.autograd.graph.increment_version(out)
    return out, hit, grid, serials, weights


def run_lookup(table: HashTable, engine: _C.Engine, keys: Tensor) -> Tensor:
    """Serials int64 [N, M, Q]; the keys have been checked."""
    keys = keys.contiguous()
    shape = keys.shape[0], len(table.options.grids), table.options.queue_length
    serials = torch.empty(shape, dtype=torch.int64, device=table.device)
    with table._lock:
        engine.lookup(shape[0], keys.data_ptr(), serials.data_ptr(), table._stream(), torch.get_num_threads())
    return serials


def run_similarity(table: HashTable, engine: _C.Engine, keys: Tensor) -> Tensor:
    """Averages float32 [N, M]; the keys have been checked."""
    keys = keys.contiguous()
    averages = torch.empty((keys.shape[0], len(table.options.grids)), device=table.device)
    with table._lock:
        engine.similarity(keys.shape[0], keys.data_ptr(), averages.data_ptr(), table._stream())
    return averages


def rows_are_dense(out: Tensor) -> bool:
    """Whether each row of ``out`` lies in one piece and no two rows overlap."""
    if out.is_contiguous() or out.dim() < 2 or len(out) == 0:
        return out.is_contiguous()
    return out[0].is_contiguous() and (len(out) == 1 or out.stride(0) >= out[0].numel())


def _dense(value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.dtype is not dtype:  # a call of to() that changes nothing is not free
        value = value.to(dtype)
    return value.contiguous()


def _per_row(hit: Tensor, like: Tensor) -> Tensor:
    """``hit`` [B] in a shape that broadcasts against ``like`` [B, ...]."""
    return hit.view(-1, *(1,) * (like.dim() - 1))


def _blank(target: Tensor, hit: Tensor) -> None:
    """Zeroes the rows of ``target`` that miss. A GPU is not waited for; on a CPU only those rows are touched."""
    if target.is_cuda:
        target.masked_fill_(_per_row(~hit, target), 0)
        return
    for row, found in enumerate(hit.tolist()):
        if not found:
            target[row].zero_()


def _copy_hits(out: Tensor, target: Tensor, hit: Tensor) -> None:
    """Copies the rows that hit to ``out``. A GPU is not waited for; on a CPU only those rows are touched."""
    if out.is_cuda:
        torch.where(_per_row(hit, out), target, out, out=out)
        return
    for row, found in enumerate(hit.tolist()):
        if found:
            out[row].copy_(target[row])


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


def _append(handle: int, keys: Tensor, latents: Tensor, features: Tensor, content: _Memory, written: _Memory) -> Tensor:
    table = find(handle)
    keys, latents = table._check_items(keys, latents)
    features = table.options.check_features(features, keys.shape[0])
    return run_append(table, _engine(table, content, written), keys, latents, features)


def _query(handle: int, keys: Tensor, latents: Tensor, content: _Memory, written: _Memory) -> tuple[Tensor, ...]:
    table = find(handle)
    keys, latents = table._check_items(keys, latents)
    return run_query(table, _engine(table, content, written), keys, latents, None)


def _query_out(
    handle: int, keys: Tensor, latents: Tensor, content: _Memory, written: _Memory, out: Tensor
) -> tuple[Tensor, ...]:
    table = find(handle)
    keys, latents = table._check_items(keys, latents)
    table.options.check_out(out, keys.shape[0])
    return run_query(table, _engine(table, content, written), keys, latents, out)[1:]


def _lookup(handle: int, keys: Tensor, content: _Memory, written: _Memory) -> Tensor:
    table = find(handle)
    return run_lookup(table, _engine(table, content, written), table.options.check_keys(keys))


def _similarity(handle: int, keys: Tensor, content: _Memory, written: _Memory) -> Tensor:
    table = find(handle)
    return run_similarity(table, _engine(table, content, written), table.options.check_keys(keys))


# What they return, for tensors without content. The checks are the same, so compiling finds the same mistakes.


def _fake_append(
    handle: int, keys: Tensor, latents: Tensor, features: Tensor, content: _Memory, written: _Memory
) -> Tensor:
    table = find(handle)
    keys, _ = table._check_items(keys, latents)
    table.options.check_features(features, keys.shape[0])
    return keys.new_empty(keys.shape[0], dtype=torch.int64)


def _fake_query(handle: int, keys: Tensor, latents: Tensor, content: _Memory, written: _Memory) -> tuple[Tensor, ...]:
    options = find(handle).options
    answers = _fake_answers(handle, keys, latents)
    return keys.new_empty((keys.shape[0], *options.feature_shape), dtype=options.feature_dtype), *answers


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
_OPERATORS = {
    "append": (
        "(int table, Tensor keys, Tensor latents, Tensor features, Tensor(a!)[] content, Tensor(b!)[] written)"
        " -> Tensor",
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
    torch.library.register_fake(f"hash3d::{_name}", _fake, lib=_library)
