"""Stop and go on: everything a run is, in one folder that is either whole or not there."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = "checkpoint"
FORMAT = 3


@dataclass
class Checkpoint:
    """What was read back: JSON-like ``about``, ``tensors`` by dotted name, and the caches' files."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]
    caches: list[Path]


def save_checkpoint(
    run_folder: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor], caches: Sequence[Any] = ()
) -> None:
    """Replaces the checkpoint in ``run_folder``; on any failure the one before stays as it was.

    Args:
        run_folder: the run's ``--out``.
        about: JSON values.
        tensors: saved as safetensors.
        caches: ``Hash3DCache``s to save beside them.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    from safetensors.torch import save_file

    new, old, final = (run_folder / (FOLDER + suffix) for suffix in (".new", ".old", ""))
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, new / "state.safetensors")
        for index, cache in enumerate(caches):
            cache.save(new / cache_name(index))
        (new / "state.json").write_text(json.dumps({"format": FORMAT, **about}))
        if final.exists():  # if not, the one before is ``old``: it stays until there is another
            shutil.rmtree(old, ignore_errors=True)
            os.replace(final, old)
        os.replace(new, final)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError) or not isinstance(error, Exception):
            raise
        raise OSError(str(error)) from error  # safetensors reports a full disk as its own exception
    shutil.rmtree(old, ignore_errors=True)


def cache_name(index: int) -> str:
    """The file of a checkpoint's cache; a run of one prior has one."""
    return f"cache-{index}.safetensors" if index else "cache.safetensors"


def find_checkpoint(run_folder: Path) -> Path | None:
    """The folder of the newest whole checkpoint, or None."""
    candidates = (run_folder / FOLDER, run_folder / (FOLDER + ".old"))
    return next((path for path in candidates if (path / "state.json").is_file()), None)


def read_about(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint folder; raises ValueError when it cannot be read."""
    try:
        about = json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"resume: {str(path)!r} cannot be read ({error}); start over with --force") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"resume: {str(path)!r} was written by another version; start over with --force")
    return about


def load_checkpoint(run_folder: Path) -> Checkpoint:
    """Reads the checkpoint in ``run_folder``; raises ValueError when there is none or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = find_checkpoint(run_folder)
    if path is None:
        raise ValueError(f"resume: no unfinished run in {str(run_folder)!r}; leave --resume away to start one")
    about = read_about(path)
    try:
        tensors = load_file(path / "state.safetensors")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"resume: {str(path)!r} is damaged ({error}); start over with --force") from None
    files = (path / cache_name(index) for index in itertools.count())
    return Checkpoint(about, tensors, list(itertools.takewhile(Path.is_file, files)))


def remove_checkpoint(run_folder: Path) -> None:
    """Forgets the unfinished run in ``run_folder``."""
    for suffix in ("", ".old", ".new"):
        shutil.rmtree(run_folder / (FOLDER + suffix), ignore_errors=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as named tensors, and its parameter groups as JSON values."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """The reverse of :func:`pack_optimizer`, into an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
