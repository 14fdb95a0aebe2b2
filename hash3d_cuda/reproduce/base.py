"""What an experiment is: pieces of work that can be resumed, and what is said about their results.

An experiment is a module ``hash3d_cuda.reproduce.NAME`` (registered in :mod:`hash3d_cuda.reproduce.registry`) with::

    ID = "figure-9"                                      # on the command line and in file names
    TITLE = "..."
    PAPER = {...}                                        # the paper's own numbers or claim, plain JSON
    def units(context: Context) -> list[Unit]
    def summarise(context, results: dict[str, dict]) -> dict     # results by Unit.key
        # {"rows": [{column: value, ...}, ...], "findings": ["one sentence with figures", ...], anything else}
    def plot(summary: dict, path: Path) -> None                  # a PNG in the paper's form; matplotlib

A unit runs in a worker process, so it is told as data: ``function`` is a module-level function, called as
``function(context, **arguments)``, and returns plain JSON. Its result is filed under what it was told, not under the
experiment: two experiments that list the same function with the same arguments share one run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

VERSION = 2
"""Of the units' results: raise it when what a unit measures changes, and earlier results are not taken up again."""


@dataclass(frozen=True)
class Context:
    """What all units of a call share.

    Attributes:
        out: the folder of results.
        quick: minutes instead of an hour.
        objects: names that the prior knows, and of which true views are bundled.
        steps: SDS iterations of each run.
        seed: everything random follows from it.
        source: of the prior, for :func:`hash3d_cuda.prior.load_prior`, or a module-level function that makes one.
        device: where prior and scenes live.
        scale: of the recipes, ``"small"`` or ``"paper"``.
    """

    out: Path
    quick: bool
    objects: tuple[str, ...]
    steps: int = 200
    seed: int = 0
    source: str | Callable[[], Any] | None = None
    device: str = "cpu"
    scale: str = "small"

    @property
    def prior_name(self) -> str:
        """Which prior it is, as people write it."""
        return "the shipped prior" if self.source is None else str(getattr(self.source, "__qualname__", self.source))

    @property
    def clock(self) -> Callable[[], float]:
        """Of a run's seconds. On the CPU, where a worker has one thread, the processor's own time: what other processes
        take of the machine meanwhile is not the cache's doing."""
        return time.process_time if self.device == "cpu" else time.perf_counter

    @property
    def prior(self) -> Any:
        """The prior, loaded once per process. Leave its U-Net without a cache."""
        return _prior(self.source, self.device)


@functools.lru_cache(maxsize=1)
def _prior(source: Any, device: str) -> Any:
    if callable(source):
        return source()
    from hash3d_cuda.prior import load_prior

    return load_prior(source, device)


@dataclass(frozen=True)
class Unit:
    """One resumable piece of work.

    Attributes:
        key: its name among its experiment's results.
        function: module-level; ``function(context, **arguments)`` returns plain JSON.
        arguments: plain JSON; with the context's prior and seed they decide the result (so steps belong here).
        weight: how long it takes, about, in seconds of one thread.
        depends: plain JSON of what else decides the result, such as the settings in a file that an argument names; when
            it changes, an earlier result is not taken up again.
    """

    key: str
    function: Callable[..., dict[str, Any]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    depends: Any = None

    def file_name(self, context: Context) -> str:
        """Under which ``out/units`` keeps the result: equal for equal work, whoever asks."""
        told = {
            "version": VERSION,
            "function": f"{self.function.__module__}.{self.function.__qualname__}",
            "arguments": dict(self.arguments),
            "seed": context.seed,
            "prior": getattr(context.source, "__qualname__", context.source),
            **({} if self.depends is None else {"depends": self.depends}),
            **({} if context.device == "cpu" else {"device": context.device}),
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return f"{self.function.__name__}-{digest[:16]}.json"

    def run(self, context: Context) -> dict[str, Any]:
        """Does the work."""
        return self.function(context, **self.arguments)


def experiment_units(module: ModuleType, context: Context) -> list[Unit]:
    """The module's units; raises ValueError when two have the same key."""
    found: list[Unit] = module.units(context)
    keys = [unit.key for unit in found]
    if len(set(keys)) != len(keys):
        raise ValueError(f"{module.ID}: units with the same key, {sorted(k for k in keys if keys.count(k) > 1)[0]!r}")
    return found
