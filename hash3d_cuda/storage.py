"""Tables on disk: one safetensors file, written atomically, read without pickle and checked before it is believed.

The file holds what the table knows, not how a class lays it out, so the engine and the oracle read each other's:

==============  ================  =================================================================
``serials``     int64 [K]         entries in at least one chain, ascending
``keys``        float32 [K, 4]    as appended
``latents``     float32 [K, L]    flattened
``features``    stored [K, F]     flattened
``scales``      float32 [K, C]    of each channel; only where features are stored in 8 bits
``member``      bool [K, M]       whether the entry is in its chain of each grid (the key says which)
``similarity``  float32 [M, N]    running averages (Eq. 9), NaN where no mean has been taken yet
``counters``    int64 [4]         next serial, rejected, queries, hits
==============  ================  =================================================================

Metadata: ``format``, ``version``, ``options`` (the constructor's, as JSON) and ``checksums`` (CRC-32 of the options and
of every tensor, as JSON). A table continues from its file exactly: same serials, similarities and chains.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import zlib
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .checks import fail
from .options import TableOptions
from .reference_quantise import TOPS

VERSION = "1"
_WRITERS = {"table": "HashTable.save", "cache": "Hash3DCache.save"}
NAMES = ("serials", "keys", "latents", "features", "member", "similarity", "counters")
_LARGEST_FLOAT16 = torch.tensor(torch.finfo(torch.float16).max)
_MOST_COUNTED = 2**62  # appends or queries: no table gets there, and one that did could still count on for as long

Table = TypeVar("Table")


def save(table: Any, path: str | os.PathLike[str]) -> None:
    """Writes ``table`` to ``path``, replacing a file that is there in one step.

    Needs host memory for one copy of the live entries. A CUDA table synchronises. Several threads or processes may save
    to one path at once: the last one stays.

    Raises:
        TypeError: ``path`` is no path.
        OSError: the file cannot be written (folder missing or read-only, a device in its place, disk full...); what was
            there stays.
    """
    state = {name: tensor.contiguous() for name, tensor in table._state_dict().items()}
    text = json.dumps(options_record(table.options, table.capacity))
    write(path, "table", text, state)


def write(path: str | os.PathLike[str], kind: str, text: str, tensors: dict[str, Tensor]) -> None:
    """Writes a file of one ``kind``: contiguous CPU ``tensors``, ``text``, checksums of both. Raises as ``save``."""
    _check_path(path)
    target = Path(os.path.realpath(os.fsdecode(path)))
    temporary = target.with_name(f".hash3d-{secrets.token_hex(8)}.tmp")
    where = f"cannot write the {kind} to {os.fsdecode(path)}"
    if target.exists() and not (
        target.is_file() or target.is_dir()
    ):  # a device or a pipe would be replaced, not written to
        raise OSError(f"{where}: there is something that is not a regular file")
    metadata = {
        "format": f"hash3d_cuda.{kind}",
        "version": VERSION,
        "options": text,
        "checksums": json.dumps(_sums(text, tensors)),
    }
    try:
        with open(temporary, "wb") as file:
            mode = os.fstat(file.fileno()).st_mode  # what a new file gets here; save_file makes its own private
        save_file(tensors, temporary, metadata=metadata)
        os.chmod(temporary, mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{where}: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(cls: type[Table], path: str | os.PathLike[str], device: torch.device | str | None = None) -> Table:
    """Reads a table of class ``cls`` from ``path``.

    Args:
        cls: ``hash3d_cuda.HashTable`` or ``hash3d_cuda.reference.HashTable``; either reads the other's files.
        path: a file that ``save`` wrote.
        device: where to put it; None is the device it was saved from.

    Raises:
        TypeError: ``path`` is no path.
        OSError: the file cannot be opened.
        ValueError: it is truncated, corrupt, inconsistent or no table; the message says what is wrong.
    """
    text, state = read(path, "table")
    if set(state) - {"scales"} != set(NAMES):
        _refuse(path, f"it holds {sorted(state)}, not {sorted(NAMES)}")
    arguments = _arguments(path, text)
    if device is not None:
        arguments["device"] = device
    table: Any = cls(**arguments)
    fill(path, table, state)
    return table


def fill(path: str | os.PathLike[str], table: Any, state: dict[str, Tensor]) -> None:
    """Makes ``table`` what ``state`` says, the tensors that the file has; raises ValueError when no table could have
    written them. ``path`` is where they come from, for the message."""
    _check_state(path, table.options, table.capacity, state)
    try:
        table._load_state_dict(state)
    except ValueError as error:
        _refuse(path, str(error))


def read(path: str | os.PathLike[str], kind: str) -> tuple[str, dict[str, Tensor]]:
    """The text and tensors of a file that :func:`write` made, checked by their checksums. Raises as :func:`load`."""
    _check_path(path)
    with open(path, "rb"):  # so that a missing file is a plain OSError
        pass
    try:
        with safe_open(os.fsdecode(path), framework="pt") as file:
            metadata = file.metadata() or {}
            _check_metadata(path, metadata, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except SafetensorError as error:
        _refuse(path, f"it is truncated or not a safetensors file ({error})", kind)
    _check_sums(path, metadata, tensors, kind)
    return metadata["options"], tensors


def _check_path(path: Any) -> None:
    """Refuses what is no path. A number is none either: ``open`` would take it for a descriptor, and close it."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        fail(TypeError, "path", "a str, bytes or os.PathLike", path, 'pass a file name such as "table.safetensors"')


def options_record(options: TableOptions, capacity: int) -> dict[str, Any]:
    """A table's options as JSON values, with the capacity that its memory came to."""
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    fields.update(
        grids=[grid.sizes for grid in options.grids],
        capacity=capacity,
        memory_budget=None,
        feature_dtype=str(options.feature_dtype).removeprefix("torch."),
        device=str(options.device),
    )
    return fields


def _sums(options: str, state: dict[str, Tensor]) -> dict[str, int]:
    """CRC-32 of the options and of each tensor's bytes."""
    sums = {"options": zlib.crc32(options.encode())}
    for name, tensor in state.items():
        sums[name] = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0
    return sums


def _check_metadata(path: str | os.PathLike[str], metadata: dict[str, str], kind: str) -> None:
    found, wanted, writer = metadata.get("format"), f"hash3d_cuda.{kind}", _WRITERS[kind]
    if found != wanted:
        _refuse(path, f"its format is {found!r}, not {wanted!r}; give a file that {writer} wrote", kind)
    if metadata.get("version") != VERSION:
        why = f"its version is {metadata.get('version')!r}, this release reads {VERSION!r}; save it again"
        _refuse(path, why, kind)
    if not {"options", "checksums"} <= set(metadata):
        _refuse(path, f"it holds {sorted(metadata)}, not options and checksums", kind)


def _check_sums(path: str | os.PathLike[str], metadata: dict[str, str], state: dict[str, Tensor], kind: str) -> None:
    try:
        stored = json.loads(metadata["checksums"])
    except ValueError:
        _refuse(path, "its checksums are not JSON", kind)
    sums = _sums(metadata["options"], state)
    if stored != sums:
        wrong = [name for name in sums if not isinstance(stored, dict) or stored.get(name) != sums[name]]
        _refuse(path, f"the checksum of {', '.join(wrong) or 'something unknown'} does not match", kind)


def _arguments(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    """The constructor's arguments from the metadata, validated."""
    try:
        arguments = json.loads(text)
        arguments["feature_dtype"] = getattr(torch, str(arguments["feature_dtype"]), None)
        checked = dict(arguments, device="cpu")
        TableOptions.build(checked.pop("feature_shape"), checked.pop("latent_shape"), **checked)
    except (ValueError, TypeError, KeyError) as error:
        _refuse(path, f"its options are not a table's ({error})")
    if arguments["capacity"] is None:
        _refuse(path, "its options lack the capacity")
    return arguments


def _check_state(path: str | os.PathLike[str], options: TableOptions, capacity: int, state: dict[str, Tensor]) -> None:
    """Refuses tensors that no table could have written. Chains longer than Q are refused by the table itself, which
    knows the buckets."""
    count, grids = state["serials"].numel(), len(options.grids)
    if options.quantised != ("scales" in state):
        _refuse(path, f"it has {'no ' if options.quantised else ''}scales, for features of {options.feature_dtype}")
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "serials": ((count,), torch.int64),
        "keys": ((count, 4), torch.float32),
        "latents": ((count, options.latent_size), torch.float32),
        "features": ((count, options.feature_size), options.feature_dtype),
        "member": ((count, grids), torch.bool),
        "similarity": ((grids, options.num_buckets), torch.float32),
        "counters": ((4,), torch.int64),
    }
    if options.quantised:
        expected["scales"] = ((count, options.channels), torch.float32)
    for name, (shape, dtype) in expected.items():
        tensor = state[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            _refuse(
                path,
                f"{name} is {list(tensor.shape)} {tensor.dtype}, its options call for {list(shape)} {dtype}",
            )
    for name in ("keys", "latents", "features"):
        if not torch.isfinite(state[name].float()).all():
            _refuse(path, f"{name} holds numbers that are not finite")
    if options.quantised:
        scales, largest = state["scales"], _LARGEST_FLOAT16 / TOPS[options.feature_dtype]
        if not ((scales >= 0) & (scales <= largest)).all():
            _refuse(path, "scales holds numbers that are negative, not finite or lead beyond float16")
    if torch.isinf(state["similarity"]).any():
        _refuse(path, "similarity holds infinite numbers")
    appended, rejected, queries, hits = state["counters"].tolist()
    if not (0 <= rejected <= appended <= _MOST_COUNTED and 0 <= hits <= queries <= _MOST_COUNTED):
        _refuse(path, f"its counters contradict each other, or are beyond 2**62 ({state['counters'].tolist()})")
    serials = state["serials"]
    first = max(0, appended - capacity)
    if count and (int(serials[0]) < first or int(serials[-1]) >= appended or bool((serials.diff() <= 0).any())):
        _refuse(path, f"serials are not ascending numbers from {first} to {appended - 1}")
    if count > appended - rejected or not bool(state["member"].any(dim=1).all()):
        _refuse(path, "it holds entries that are in no chain, or more than were appended")


def _sync_folder(folder: Path) -> None:
    """Makes the replacement last through a power cut, where folders can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    """The system's words alone, in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split())


def _refuse(path: str | os.PathLike[str], why: str, kind: str = "table") -> NoReturn:
    raise ValueError(f"cannot load a {kind} from {os.fsdecode(path)}: {why}")
