"""hash3d_cuda: a fixed-size feature cache for score distillation with diffusion U-Nets.

``HashTable`` is the cache, ``apply_hash3d`` puts it under a diffusers U-Net, ``hash3d_cuda.reference`` is the slow and
obvious oracle. Names are imported on first use, so that ``import hash3d_cuda`` stays light.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import reference as reference
    from .config import Hash3DConfig as Hash3DConfig
    from .hook import apply_hash3d as apply_hash3d
    from .keys import PAPER_GRIDS as PAPER_GRIDS
    from .keys import Grid as Grid
    from .keys import make_keys as make_keys
    from .results import QueryResult as QueryResult
    from .results import TableStats as TableStats
    from .table import HashTable as HashTable

try:
    __version__ = version("hash3d-cuda")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "Grid": "keys",
    "PAPER_GRIDS": "keys",
    "make_keys": "keys",
    "HashTable": "table",
    "QueryResult": "results",
    "TableStats": "results",
    "Hash3DConfig": "config",
    "apply_hash3d": "hook",
}
_MODULES = ("reference", "prior")

__all__ = ["__version__", "reference", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
