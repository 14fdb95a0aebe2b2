"""The five sweeps that the paper's ablations are read from; an experiment may read several."""

from __future__ import annotations

from typing import Any

from hash3d_cuda.reproduce.ablations import PAPER_ETAS
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.sweep import BASELINE, label, sweep

SECONDS_PER_STEP = 0.12  # two views on one thread: for the time left, nothing else
# At the paper's eta so few views of a short run are served that no ablation shows; at this one it does.
ETA = 0.5
PAPER = {"eta": 0.1, "grids": "paper"}
STRONG = {"eta": ETA, "grids": "stretched"}
NOTE = (
    f'"stretched" and eta {ETA}: a short run all but never comes to a timestep twice, so the timestep cells are longer '
    "by as much as the run is shorter than the paper's 10,000 views (up to the whole schedule)."
)


def run_of(ablation: str, setting: dict[str, Any]) -> str:
    """The label of an ablation's run in its sweep."""
    return label({"ablation": ablation, **setting})


def etas(context: Context) -> list[Unit]:
    """By name, over the paper's eta, and the default to the letter."""
    stretched = [{"ablation": "default", "eta": eta, "grids": "stretched"} for eta in PAPER_ETAS]
    return units(
        context,
        "eta",
        [*stretched, {"ablation": "default", **PAPER}, {"ablation": "default", **STRONG, "grids": "paper"}],
    )


def grids(context: Context) -> list[Unit]:
    """By name, one constant grid each."""
    names = ("constant-fine", "constant-middle", "constant-coarse")
    return units(context, "grids", [{"ablation": name, **how} for how in (PAPER, STRONG) for name in names])


def retrieval(context: Context) -> list[Unit]:
    """From the input picture: what is stored, and how it is found again."""
    strong = ("default", "noise", "no-keys", "no-aggregation", "store-all", "bounded")
    told = [{"ablation": name, **STRONG} for name in strong]
    told += [{"ablation": name, **PAPER} for name in ("default", "noise")]
    return units(context, "retrieval", told, kind="picture")


def positions(context: Context) -> list[Unit]:
    """By name, every place where the prior's U-Net can be cut."""
    return units(context, "positions", [{"ablation": f"position-{k}", **STRONG} for k in cuts(context)])


def cuts(context: Context) -> range:
    """Positions of the prior's U-Net."""
    from hash3d_cuda.unet.layout import count_positions

    return range(1, count_positions(context.prior.unet) + 1)


def table(context: Context) -> list[Unit]:
    """By name: the table's other options."""
    names = ("queue-1", "queue-10", "buckets-200", "buckets-1000", "bucket", "released", "mean")
    return units(context, "table", [{"ablation": name, **STRONG} for name in names])


def units(context: Context, study: str, variants: list[dict[str, Any]], kind: str = "name") -> list[Unit]:
    """One unit per object, which runs all ``variants`` and, before them, no cache.

    Args:
        context: gives objects and steps.
        study: the units' keys are ``"STUDY, OBJECT"``.
        variants: keyword arguments of :func:`hash3d_cuda.reproduce.ablations.variant`.
        kind: ``"name"``, or ``"picture"``: start from the bundled input picture.
    """
    told = [{"ablation": BASELINE}, *variants]
    weight = SECONDS_PER_STEP * context.steps * len(told)
    arguments = {"kind": kind, "steps": context.steps, "variants": told}
    return [Unit(f"{study}, {name}", sweep, {"subject": name, **arguments}, weight) for name in context.objects]


def of(results: dict[str, dict[str, Any]], study: str) -> dict[str, dict[str, Any]]:
    """One study's results by object."""
    return {key.split(", ", 1)[1]: result for key, result in results.items() if key.startswith(f"{study}, ")}
