"""Importing other projects' source from a checkout, though not everything that it imports is installed.

What is not installed, and is named, is replaced by modules in which every name is a class that does nothing: renderers,
loggers, image libraries. What U-Net, guidance and scheduler need (torch, diffusers, numpy, ...) is never replaced.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["stand-in", "upstream"]


def checkout(variable: str) -> Path:
    """The folder that an environment variable names; skips the test where there is none."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable}=PATH names no checkout; the stand-in alone is tested")
    assert Path(folder).is_dir(), f"{variable}: expected a folder, got {folder!r}"
    return Path(folder).resolve()


@contextlib.contextmanager
def importing(*folders: Path, without: tuple[str, ...] = ()) -> Iterator[None]:
    """Inside the block modules of ``folders`` can be imported, and those of ``without`` that are not installed are
    replaced. Afterwards neither is left."""
    finder = Finder(without)
    path, known = list(sys.path), set(sys.modules)
    resolvers = _take_resolvers()
    sys.path[:0] = [str(folder) for folder in folders]
    sys.meta_path.append(finder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        sys.meta_path.remove(finder)
        new = {name: sys.modules[name] for name in set(sys.modules) - known}
        # All are looked at before one goes: a package without a file asks its parent where it lies.
        gone = [name for name, module in new.items() if isinstance(module, _Nothing) or _is_from(module, folders)]
        for name in gone:
            del sys.modules[name]
        _take_resolvers(resolvers)


def _take_resolvers(back: dict[str, Any] | None = None) -> dict[str, Any]:
    """What projects have told omegaconf, where it is installed; ``back`` takes its place. Two projects with one
    ancestor register the same names, and the second is refused."""
    try:
        from omegaconf.basecontainer import BaseContainer
    except ImportError:
        return {}
    known = dict(BaseContainer._resolvers)
    from omegaconf import OmegaConf

    OmegaConf.clear_resolvers()
    BaseContainer._resolvers.update(back or {})
    return known


def is_replaced(name: str) -> bool:
    """Whether module ``name``, imported before, is one of those that do nothing."""
    return isinstance(sys.modules.get(name), _Nothing)


def _is_from(module: Any, folders: tuple[Path, ...]) -> bool:
    places = [getattr(module, "__file__", None) or "", *map(str, getattr(module, "__path__", []))]
    return any(Path(place).is_relative_to(folder) for folder in folders for place in places if place)


class _Anything(type):
    """Of classes with every attribute, that can be called, subscripted, subclassed and used as decorators."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {"replaced": True})

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "replaced" in vars(cls):
            return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else cls
        return super().__call__(*args, **kwargs)


class _Nothing(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - a package without folders

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {"replaced": True})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, so that what is installed is found first."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname.split(".")[0] in self._names else None

    def create_module(self, spec: Any) -> ModuleType:
        return _Nothing(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
