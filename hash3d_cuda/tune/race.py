"""One unit of a search: one object from one seed under several settings, all stages, the runs step by step in turn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.bounds import step_bound
from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.prior.ground_truth import EVALUATION_POSES
from hash3d_cuda.reproduce import base
from hash3d_cuda.reproduce.quality import perceptual_scores
from hash3d_cuda.reproduce.sweep import BASELINE, EVERY, resolve, take_turns, with_own_hooks
from hash3d_cuda.sds.metrics import cache_metrics, image_quality, known_truth, same_work, time_metrics
from hash3d_cuda.sds.outputs import render_views
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.tune.room import fitted
from hash3d_cuda.tune.space import as_settings

Stages = Sequence[Mapping[str, Any]]
Runs = dict[str, list[SdsRun]]


@dataclass(frozen=True)
class TuneContext(base.Context):
    """What all units of a search share.

    Attributes:
        encoder: folder of a light encoder, or None.
        on_step: called after every step of every run.
    """

    encoder: str | None = None
    on_step: Callable[[], None] | None = None

    @property
    def prior(self) -> Any:
        """The prior, loaded once per process."""
        return super().prior if self.encoder is None else _prior(self.source, self.device, self.encoder)


@functools.lru_cache(maxsize=1)
def _prior(source: Any, device: str, encoder: str) -> Any:
    from hash3d_cuda.prior import load_prior

    return load_prior(source, device, encoder)


def race(
    context: TuneContext,
    subject: str,
    kind: str,
    seed: int,
    stages: Stages,
    two_priors: bool,
    variants: Mapping[str, Mapping[str, Any]],
    measures: Sequence[str],
    tables: Mapping[str, Any],
) -> dict[str, Any]:
    """``{"runs": {label: figures}}``; see :func:`figures`. The first run, ``"none"``, is without a cache.

    Args:
        context: gives the prior.
        subject: a name or prompt, or a picture's file.
        kind: ``"name"``, ``"picture"`` (the bundled picture of that name) or ``"file"``.
        seed: of all runs.
        stages: settings of each stage, as ``as_dict`` gives them.
        two_priors: the stages ask a name beside the picture; the prior must take both.
        variants: changes by field, by label.
        measures: scores beyond PSNR and SSIM that are wanted.
        tables: as for :func:`hash3d_cuda.tune.room.fitted`.
    """
    prior = context.prior
    asked = find_subject(prior, subject, kind)
    # Views that return are part of what a setting costs: without a cache one would draw them uniformly.
    told: dict[str, dict[str, Any]] = {BASELINE: {"cache": False, "sampler": "uniform"}}
    told |= {name: as_settings(changes) for name, changes in variants.items()}
    priors = {name: with_own_hooks(prior) for name in told}
    runs: Runs = {name: [] for name in told}
    table_bytes: dict[str, int] = {}
    for values in stages:
        settings = replace(GenerateSettings.from_dict(values), seed=seed, device=context.device)
        with ExitStack() as stack:
            for name, changes in told.items():
                prior = priors[name]
                second = (prior, prior.resolve(asked.name)) if two_priors else None
                previous = runs[name][-1].scene if runs[name] else None
                changed = replace(settings, **changes)
                changed = replace(changed, **fitted(changed, tables))
                run = SdsRun(prior, asked, changed, previous=previous, second=second, clock=context.clock)
                runs[name].append(stack.enter_context(run))
            take_turns([own[-1] for own in runs.values()], context.on_step)
            for name, own in runs.items():
                held = sum(table.nbytes for cache in own[-1].caches for table in cache.tables)
                table_bytes[name] = max(held, table_bytes.get(name, 0))
    views = {name: evaluation_views(own[-1]) for name, own in runs.items()}
    found = {name: figures(runs, views, name, measures) for name in runs}
    return {"runs": {name: {**one, "table_bytes": table_bytes[name]} for name, one in found.items()}}


def find_subject(prior: Prior, subject: str, kind: str) -> Subject:
    """What the prior is asked for."""
    if kind != "file":
        return resolve(prior, subject, kind)
    from hash3d_cuda.prior.pictures import open_picture

    return prior.resolve(open_picture(subject))


@torch.no_grad()
def evaluation_views(run: SdsRun) -> Tensor:
    """float [16,3,S,S] in 0..1 on the CPU."""
    return render_views(run.scene, *torch.from_numpy(EVALUATION_POSES).float().unbind(-1), run.prior.image_size)


def figures(runs: Runs, views: Mapping[str, Tensor], name: str, measures: Sequence[str]) -> dict[str, Any]:
    """One run's quality, what the cache served, and its time beside that of the run without a cache; stages summed.

    ``quality`` has PSNR and SSIM where the truth is known, ``measures`` where they are to be had, and ``agreement``:
    PSNR against the views of the run without a cache, 100 dB where they are the same.
    """
    own, before = spent(runs[name]), spent(runs[BASELINE])
    last = runs[name][-1]
    truth = known_truth(last.subject, last.prior.image_size)
    quality: dict[str, Any] = {} if truth is None else image_quality(views[name], truth)
    quality |= perceptual(views[name], truth, last.subject, measures)
    quality = {key: value for key, value in quality.items() if isinstance(value, float)}
    quality["agreement"] = min(image_quality(views[name], views[BASELINE])["psnr"], 100.0)
    served = cache_metrics({key: sum(run.served[key] for run in runs[name]) for key in last.served})
    share = before["unet_full"] / before["total"]
    return {
        "quality": quality,
        "x": served["x"],
        "hit_rate": served["hit_rate"],
        "seconds": own["total"],
        "speed_up": before["total"] / own["total"],
        "hit_cost_r": own["r"],
        "unet_share_of_step": share,
        "bound_step": 1.0 if own["r"] is None else step_bound(served["x"], own["r"], share),
        "drift": before["same"] / own["same"],
    }


def perceptual(views: Tensor, truth: Tensor | None, subject: Subject, names: Sequence[str]) -> dict[str, float]:
    """Scores of :mod:`hash3d_cuda.perceptual` by name, of every fourth view; those that are not to be had are left
    out."""
    from hash3d_cuda.perceptual import DISTANCES, image_scores

    if not names:
        return {}
    some, true = views[::EVERY], None if truth is None else truth[::EVERY]
    wanted = [name for name in names if name in DISTANCES]
    found = image_scores(some, true, wanted) if wanted and true is not None else {}
    if len(wanted) < len(names):
        found |= perceptual_scores(some, true, subject)
    return {name: found[name] for name in names if name in found}


def spent(runs: Sequence[SdsRun]) -> dict[str, Any]:
    """Seconds of a run's stages together, and the mean cost of a hit."""
    times = [time_metrics(run.log)[0] for run in runs]
    costs = [one["hit_cost_r"] for one in times if one["hit_cost_r"] is not None]
    return {
        "total": sum(one["total_s"] for one in times),
        "unet_full": sum(one["split_s"]["unet_full"] for one in times),
        "same": sum(same_work(one["split_s"]) for one in times),
        "r": mean(costs) if costs else None,
    }


def steps_of(stages: Stages) -> Iterator[int]:
    """Steps of each stage."""
    return (int(values["steps"]) for values in stages)
