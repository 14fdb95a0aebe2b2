"""Where the weights of the perceptual metrics lie, found without importing the packages that bring them and without
asking any network."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor


def package_file(package: str, *parts: str) -> Path | None:
    """A file inside an installed package, or None; the package's own code does not run."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder).joinpath(*parts)
        if path.is_file():
            return path
    return None


def hub_checkpoint(name: str) -> Path | None:
    """A file that torch's own hub has downloaded before, or None."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    return path if path.is_file() else None


def transformers_folder(repository: str, variable: str) -> Path | None:
    """A transformers model with its weights: the folder that the environment ``variable`` names, else the hub's cache.

    Returns:
        the folder, or None when it lacks ``config.json`` or weights.
    """
    named = os.environ.get(variable)
    if named:
        folder = Path(named).expanduser()
    else:
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError:
            return None
        found = try_to_load_from_cache(repository, "config.json")
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    weights = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
    complete = (folder / "config.json").is_file() and any((folder / name).is_file() for name in weights)
    return folder if complete else None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict in float32 on the CPU; tensors only, nothing in the file is executed.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own
        text = " ".join(str(error).split())[:120]
        raise ValueError(f"weights: {str(path)!r} is damaged ({text}); install the package anew") from None
    return {name: value.float() for name, value in state.items() if isinstance(value, Tensor)}
