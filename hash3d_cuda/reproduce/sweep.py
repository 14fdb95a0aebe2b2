"""The unit that the ablations are made of: one object from one seed under several settings, step by step in turn."""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.bounds import step_bound, unet_bound
from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.prior.ground_truth import EVALUATION_POSES, example_inputs
from hash3d_cuda.reproduce.ablations import variant
from hash3d_cuda.reproduce.base import Context
from hash3d_cuda.reproduce.quality import scores
from hash3d_cuda.sds.metrics import cache_metrics, control_metrics, known_truth, same_work, time_metrics
from hash3d_cuda.sds.outputs import render_views, tile, to_picture
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings

BASELINE = "none"
SHOWN = 4  # of the 16 evaluation views
EVERY = 4  # perceptual scores are of every fourth view here, for they take longer than many a run
Variants = Sequence[Mapping[str, Any]]


def sweep(context: Context, subject: str, kind: str, steps: int, variants: Variants) -> dict[str, Any]:
    """Runs one object; returns ``{"runs": {label: figures}}``, see :func:`figures`. Speed-ups are against the first.

    Args:
        context: gives the prior and the seed.
        subject: a name.
        kind: ``"name"``, or ``"picture"``: start from the bundled input picture of that object.
        steps: SDS iterations.
        variants: keyword arguments of :func:`hash3d_cuda.reproduce.ablations.variant`.

    The runs take turns step by step and in both orders, so that a machine whose speed drifts slows all alike.
    """
    prior = context.prior
    # A table for every view of the run, so that runs with larger features don't have fewer of them.
    views = steps * GenerateSettings.views_per_step
    base = GenerateSettings(steps=steps, capacity=views, seed=context.seed, device=context.device)
    asked = resolve(prior, subject, kind)
    with ExitStack() as stack:
        runs = {}
        for one in variants:
            run = SdsRun(with_own_hooks(prior), asked, variant(base, **one), clock=context.clock)
            runs[label(one)] = stack.enter_context(run)
        take_turns(list(runs.values()))
        first = next(iter(runs.values()))
        return {"runs": {name: figures(run, first) for name, run in runs.items()}}


def label(told: Mapping[str, Any]) -> str:
    """A variant's name among its sweep's runs: ``"default eta=0.5 stretched"``."""
    parts = [str(told["ablation"])]
    if "eta" in told:
        parts.append(f"eta={told['eta']:g}")
    if "grids" in told:
        parts.append(str(told["grids"]))
    return " ".join(parts)


def resolve(prior: Prior, name: str, kind: str) -> Subject:
    """The subject by its name, or by its bundled input picture."""
    if kind == "name":
        return prior.resolve(name)
    from hash3d_cuda.prior.pictures import open_picture

    found = prior.resolve(open_picture(example_inputs()[name]))
    if prior.vocabulary is not None and found.name != name:
        raise ValueError(f"objects: the prior takes the picture of {name!r} for {found.name!r}; choose others")
    return found


def with_own_hooks(prior: Prior) -> Prior:
    """The prior with a U-Net that has modules of its own and the same weights: a cache on it is on no other."""
    own = copy.copy(prior)
    weights = [*prior.unet.parameters(), *prior.unet.buffers()]
    own.unet = copy.deepcopy(prior.unet, {id(weight): weight for weight in weights})
    return own


def take_turns(runs: Sequence[SdsRun], on_step: Callable[[], None] | None = None) -> None:
    """All steps of all runs, one step each in turn; who begins changes each time. ``on_step`` is called after each."""
    for step in range(runs[0].settings.steps):
        for run in runs if step % 2 == 0 else reversed(runs):
            run.train_step()
            if on_step is not None:
                on_step()
    for run in runs:
        run.settle()


@torch.no_grad()
def figures(run: SdsRun, baseline: SdsRun) -> dict[str, Any]:
    """Quality, cache, memory and time of a finished run; speed-ups are against ``baseline``, which ran beside it."""
    size = run.prior.image_size
    views = render_views(run.scene, *torch.from_numpy(EVALUATION_POSES).float().unbind(-1), size)
    truth = known_truth(run.subject, size)
    served = cache_metrics(run.served, *run.caches)
    table = run.cache.table if run.cache is not None else None
    return {
        "settings": run.settings.as_dict(),
        "quality": scores(views, truth, run.subject, EVERY),
        "hits": served["hits"], "misses": served["misses"], "bypasses": served["bypasses"],
        "hit_rate": served["hit_rate"], "x": served["x"],
        "table_bytes": 0 if table is None else table.nbytes,
        "capacity": 0 if table is None else table.capacity,
        "slots_bytes": 0 if table is None else table.capacity * table.options.slot_bytes,
        "entries": 0 if table is None else len(table),
        "control": control_metrics(run.caches),
        **timing(run, baseline),
        "picture": picture(views),
    }  # fmt: skip


def timing(run: SdsRun, baseline: SdsRun) -> dict[str, Any]:
    """Seconds, the speed-up of the loop and of the U-Net, and what x and r allow at most."""
    (own, _), (before, _) = time_metrics(run.log), time_metrics(baseline.log)
    served = cache_metrics(run.served)
    share = before["split_s"]["unet_full"] / before["total_s"]
    r, x = own["hit_cost_r"], served["x"]
    unet, unet_before = (one["split_s"]["unet_full"] + one["split_s"]["unet_hit"] for one in (own, before))
    same, same_before = (same_work(one["split_s"]) for one in (own, before))
    return {
        "seconds": own["total_s"],
        "table_seconds": own["split_s"]["table"],
        "speed_up": before["total_s"] / own["total_s"],
        "unet_speed_up": unet_before / unet,
        "hit_cost_r": r,
        "unet_share_of_step": share,
        "bound_unet": 1.0 if r is None else unet_bound(x, r),
        "bound_step": 1.0 if r is None else step_bound(x, r, share),
        "drift": same_before / same,
    }


def picture(views: Tensor, count: int = SHOWN) -> str:
    """``count`` of the views in a row as a PNG in base64."""
    chosen = views[:: max(len(views) // count, 1)][:count]
    buffer = io.BytesIO()
    to_picture(tile(chosen, count)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def open_picture_row(text: str) -> Any:
    """What :func:`picture` made, as an array [H,W,3] for matplotlib."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
