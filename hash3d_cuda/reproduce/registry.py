"""The experiments in the order in which the paper tells them."""

from __future__ import annotations

import importlib
from types import ModuleType

# What is named on the command line -> module of this package.
EXPERIMENTS = {
    "figure-2": "figure2",
    "figure-3": "figure3",
    "tables-1-2": "recipes_table",
    "macs": "macs",
    "table-3": "table3",
    "table-4": "table4",
    "figure-9": "figure9",
    "figure-10": "figure10",
    "figure-12": "figure12",
    "figure-14": "figure14",
    "ablations": "more_ablations",
    "frontier": "frontier",
    "gates": "gates",
    "ageing": "ageing",
    "mismatch": "mismatch",
}
OF_REUSE = ("frontier", "gates", "ageing", "mismatch")
"""Of our own, not the paper's: what more than the paper's reuse gives and costs. "all" leaves them out."""
ALIASES = {"table-1": "tables-1-2", "table-2": "tables-1-2", "figure-8": "figure-9", "figure-13": "figure-10"}


def known() -> list[str]:
    """Names of the experiments."""
    return list(EXPERIMENTS)


def find(name: str) -> list[ModuleType]:
    """The experiments that ``name`` means: one, the paper's for ``"all"``, our own on reuse for ``"reuse"``; ValueError
    with the list otherwise."""
    if name in ("all", "reuse"):
        return [load(one) for one in EXPERIMENTS if (one in OF_REUSE) == (name == "reuse")]
    plain = name.strip().lower().replace("_", "-").replace("fig-", "figure-").replace(" ", "-")
    plain = ALIASES.get(plain, plain)
    if plain not in EXPERIMENTS:
        raise ValueError(f"experiment: expected one of {', '.join(known())}, all or reuse; got {name!r}")
    return [load(plain)]


def load(name: str) -> ModuleType:
    """The module of one experiment."""
    return importlib.import_module(f"hash3d_cuda.reproduce.{EXPERIMENTS[name]}")
