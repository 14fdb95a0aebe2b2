"""Calls of a table's engine: arguments that have been checked in, tensors out.

The engine reads memory as it lies, so whatever is not dense, or of another type than the table's, or to be read
negated (torch's negative bit), is copied first.
Nothing here waits for a GPU. With ``out`` nothing as large as a feature is allocated, as long as its rows are dense.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _C
from .checks import dense
from .results import PackedResult, QueryResult

if TYPE_CHECKING:
    from .table import HashTable


def run_append(
    table: HashTable, engine: _C.Engine, keys: Tensor, latents: Tensor, features: Tensor, skip: Tensor | None = None
) -> Tensor:
    """Serials int64 [B]."""
    keys, latents = dense(keys), dense(latents, torch.float32)
    features = dense(features, table.options.answer_dtype)
    rows = keys.shape[0]
    serials = torch.empty(rows, dtype=torch.int64, device=table.device)
    scratch = torch.empty(engine.append_scratch(), dtype=torch.uint8, device=table.device) if table._on_gpu else None
    skip = None if skip is None else skip.contiguous()
    mask = 0 if skip is None else skip.data_ptr()
    addresses = keys.data_ptr(), latents.data_ptr(), features.data_ptr(), mask, serials.data_ptr()
    with table._lock:
        engine.append(rows, *addresses, table._stream(), torch.get_num_threads(), _address(scratch))
    return serials


def run_query(table: HashTable, engine: _C.Engine, keys: Tensor, latents: Tensor, out: Tensor | None) -> QueryResult:
    """Features are ``out`` itself where it is given."""
    keys, latents = dense(keys), dense(latents, torch.float32)
    rows, options, device = keys.shape[0], table.options, table.device
    if out is not None and rows_are_dense(out):
        target = out
    else:
        target = torch.empty(rows, *options.feature_shape, dtype=options.answer_dtype, device=device)
        if table._on_gpu:  # rows that miss are zero from the start: to blank them afterwards would move twice the bytes
            target.zero_()
    queue = options.queue_length
    answers = torch.empty(PackedResult.size(rows, queue), dtype=torch.uint8, device=device)
    scratch = torch.empty(engine.query_scratch(rows), dtype=torch.uint8, device=device) if table._on_gpu else None
    with table._lock:
        engine.query(
            rows,
            keys.data_ptr(),
            latents.data_ptr(),
            target.data_ptr(),
            target.stride(0),
            *PackedResult.addresses(answers, rows, queue),
            table._stream(),
            torch.get_num_threads(),
            _address(scratch),
        )
    result = PackedResult(target if out is None else out, answers, rows, queue)
    if out is None:
        if not table._on_gpu:
            _blank(target, result.hit)
        return result
    if target is not out:
        _copy_hits(out.detach(), target, result.hit)
    if not out.is_inference():  # so that autograd notices, should it have kept ``out`` for a backward pass
        torch.autograd.graph.increment_version(out)
    return result


def run_lookup(table: HashTable, engine: _C.Engine, keys: Tensor) -> Tensor:
    """Serials int64 [N, M, Q]."""
    keys = dense(keys)
    rows, options = keys.shape[0], table.options
    serials = torch.empty(rows, len(options.grids), options.queue_length, dtype=torch.int64, device=table.device)
    with table._lock:
        engine.lookup(rows, keys.data_ptr(), serials.data_ptr(), table._stream(), torch.get_num_threads())
    return serials


def run_similarity(table: HashTable, engine: _C.Engine, keys: Tensor) -> Tensor:
    """Averages float32 [N, M]."""
    keys = dense(keys)
    averages = torch.empty(keys.shape[0], len(table.options.grids), device=table.device)
    with table._lock:
        engine.similarity(keys.shape[0], keys.data_ptr(), averages.data_ptr(), table._stream())
    return averages


def rows_are_dense(out: Tensor) -> bool:
    """Whether each row of ``out`` lies in one piece, as it is to be read, and no two rows overlap."""
    if out.is_neg():
        return False
    if out.is_contiguous() or out.dim() < 2 or len(out) == 0:
        return out.is_contiguous()
    return out[0].is_contiguous() and (len(out) == 1 or out.stride(0) >= out[0].numel())


def _address(scratch: Tensor | None) -> int:
    return 0 if scratch is None else scratch.data_ptr()


def _per_row(hit: Tensor, like: Tensor) -> Tensor:
    """``hit`` [B] in a shape that broadcasts against ``like`` [B, ...]."""
    return hit.view(-1, *(1,) * (like.dim() - 1))


def _blank(target: Tensor, hit: Tensor) -> None:
    """Zeroes the rows of ``target`` that miss, and touches no others."""
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
