"""The ablations as data: which settings of a generation each one changes, and nothing else.

The paper's studies are its section 4.3 and appendix C. Short runs need a word on grids: a cell of 10 to 30 timesteps
was sized for 10,000 iterations. A run of a few hundred views all but never comes to the same cell twice, and then every
ablation is the same as no cache. So ablations come in two forms: ``grids="paper"``, to the letter, and
``grids="stretched"``, the paper's cells with the timestep's side multiplied by how much shorter the run is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hash3d_cuda.keys import PAPER_GRIDS, Grid
from hash3d_cuda.sds.settings import PRESETS, GenerateSettings

PAPER_VIEWS = 10_000  # appendix E: DreamFusion's iterations, one view each
PAPER_ETAS = (0.01, 0.05, 0.1, 0.3, 0.5, 0.7)  # section 4.3, ablation 3
TIMESTEPS = 1000.0
EVERYWHERE = Grid(1e9, 1e9, 1e9, 1e9)
QUEUE_WITHOUT_KEYS = 1000  # appendix C.1
# Where the released code's keys fall in truth (it divides [t, elevation, azimuth, distance] by [20, 20, 0.1] and 20).
# Its weights, softmax(-norm) and not softmax(-norm^2), are not modelled, nor is the order of its hash factors.
RELEASED_GRID = Grid(elevation=20.0, azimuth=0.1, radius=10.0, timestep=20.0)

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Ablation:
    """One departure from the default cache.

    Attributes:
        label: for tables.
        changes: settings by field, or a function of the settings that gives them.
    """

    label: str
    changes: Changes | Callable[[GenerateSettings], Changes]

    def apply(self, base: GenerateSettings) -> GenerateSettings:
        """``base`` with this ablation's changes."""
        changes = self.changes(base) if callable(self.changes) else self.changes
        return replace(base, **changes)


def items(settings: GenerateSettings) -> int:
    """Views of a whole run: the most that there is to store."""
    return settings.steps * settings.views_per_step


def stretched(grids: tuple[Grid, ...], views: int) -> tuple[Grid, ...]:
    """``grids`` with timestep cells longer by as much as ``views`` are fewer than the paper's, a schedule at most."""
    factor = max(PAPER_VIEWS / views, 1.0)
    return tuple(replace(grid, timestep=min(grid.timestep * factor, TIMESTEPS)) for grid in grids)


def _one_grid(index: int) -> Ablation:
    sizes = ", ".join(f"{size:g}" for size in PAPER_GRIDS[index].sizes)
    return Ablation(f"constant ({sizes})", lambda base: {"grids": base.grids[index : index + 1]})


def _store_all(base: GenerateSettings) -> Changes:
    everything = items(base)
    return _without_keys(everything) | {"capacity": everything, "memory_budget": None}


def _without_keys(queue: int) -> dict[str, Any]:
    """One chain for everything. ``match="bucket"``: below 0 degrees would be another cell, however large it is."""
    return {"grids": (EVERYWHERE,), "num_buckets": 1, "queue_length": queue, "match": "bucket"}


def _interval(every: int) -> Callable[[GenerateSettings], Changes]:
    """Every so manieth step in full, the others with the features of its views, as DeepCache does along one denoising
    trajectory; under SDS these are of other poses. Which view serves which, the nearest latent decides."""
    return lambda base: {
        **_without_keys(base.views_per_step), "eta": 1.0, "max_age": every - 1, "capacity": base.views_per_step,
        "memory_budget": None,
    }  # fmt: skip


def _anchored(reuse: float, **changes: Any) -> Changes:
    """The preset "fast" at a share of views that return, with a table of its own size; cut at position 2 by default."""
    return {**PRESETS["fast"], "position": 2, "reuse": reuse, "capacity": None, "memory_budget": None, **changes}


def _spread(**changes: Any) -> Changes:
    """At position 2 entries from before the object has its shape cost most, and the way from an anchor costs some."""
    told = {"anchors": 34, "first_fresh": 8, "fresh_until": 0.5, "fresh_power": 1.0, "jitter": 0.3}
    return _anchored(0.85, **told, **changes)


ABLATIONS: dict[str, Ablation] = {
    "none": Ablation("no cache", {"cache": False}),
    "default": Ablation("default", {}),
    "constant-fine": _one_grid(0),
    "constant-middle": _one_grid(1),
    "constant-coarse": _one_grid(2),
    "store-all": Ablation("storing all features", _store_all),
    "bounded": Ablation("a quarter of the memory", lambda base: {"capacity": max(items(base) // 4, 1)}),
    "noise": Ablation("hashing noise", {"mode": "noise"}),
    "no-keys": Ablation("no key hashing, one queue of 1000", _without_keys(QUEUE_WITHOUT_KEYS)),
    "no-aggregation": Ablation("no aggregation, nearest key", {"aggregation": "nearest_key"}),
    "mean": Ablation("plain mean of the candidates", {"aggregation": "uniform"}),
    "bucket": Ablation('match="bucket"', {"match": "bucket"}),
    "released": Ablation(
        "indexing of the released code",
        {"grids": (RELEASED_GRID,), "num_buckets": 200, "queue_length": 3, "match": "bucket"},
    ),
    **{f"queue-{q}": Ablation(f"Q = {q}", {"queue_length": q}) for q in (1, 3, 10, 30)},
    **{f"buckets-{n}": Ablation(f"n = {n}", {"num_buckets": n}) for n in (200, 1000, 100_003)},
    **{f"interval-{n}": Ablation(f"every {n}th step in full", _interval(n)) for n in (2, 4, 7)},
    **{f"anchored-{s}": Ablation(f"anchored views, {s}% return", _anchored(s / 100)) for s in (50, 70, 85)},
    **{
        f"anchored-{s}-position-{k}": Ablation(f"anchored, {s}% return, position {k}", _anchored(s / 100, position=k))
        for s, k in ((70, 3), (85, 3), (70, 4), (85, 4), (93, 4))
    },
    "anchored-85-no-cache": Ablation("anchored views, no cache", _anchored(0.85, cache=False)),
    "anchored-85-int8": Ablation(
        "anchored, 85% return, position 3, int8", _anchored(0.85, position=3, feature_dtype="int8")
    ),
    "anchored-85-few": Ablation(
        "anchored, 85% return to the latest 20, position 3", _anchored(0.85, position=3, anchors=20)
    ),
    "anchored-85-spread": Ablation("anchored, 85% return, anchors spread over half of the run", _spread()),
    "anchored-85-spread-no-cache": Ablation("anchors spread over half of the run, no cache", _spread(cache=False)),
    "anchored-85-4-views": Ablation("anchored, 4 views a step", _anchored(0.85, views_per_step=4)),
    "none-middle": Ablation("no cache, timesteps 0.66 to 0.6", {"cache": False, "t_high": 0.66, "t_low": 0.6}),
    "none-4-views": Ablation("no cache, 4 views a step", {"cache": False, "views_per_step": 4}),
    **{f"age-{age}": Ablation(f"entries serve {age} steps", {"max_age": age}) for age in (10, 40)},
    **{f"change-{c:g}": Ablation(f"shallow change at most {c:g}", {"max_change": c}) for c in (0.05, 0.1, 0.2)},
    "target-0.2": Ablation("eta follows x = 0.2", {"target_x": 0.2}),
    "quality-0.95": Ablation("eta follows 5% of error", {"target_quality": 0.95}),
    "similarity-0.99": Ablation("similarity at least 0.99", {"min_similarity": 0.99}),
    **{f"position-{k}": Ablation(f"position {k}", {"position": k}) for k in range(1, 13)},
}


def variant(base: GenerateSettings, ablation: str, eta: float = 0.1, grids: str = "paper") -> GenerateSettings:
    """The settings of one run.

    Args:
        base: what all runs have in common.
        ablation: a name in ``ABLATIONS``.
        eta: probability of a retrieval.
        grids: ``"paper"`` or ``"stretched"``.

    Raises:
        ValueError: an unknown name.
    """
    if ablation not in ABLATIONS:
        raise ValueError(f"ablation: expected one of {', '.join(ABLATIONS)}; got {ablation!r}")
    if grids not in ("paper", "stretched"):
        raise ValueError(f"grids: expected 'paper' or 'stretched', got {grids!r}")
    cells = PAPER_GRIDS if grids == "paper" else stretched(PAPER_GRIDS, items(base))
    return ABLATIONS[ablation].apply(replace(base, eta=eta, grids=cells))
