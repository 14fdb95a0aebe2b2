"""What settings promise before any of them is run: hit rates by simulation, costs by a few steps on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hash3d_cuda.bounds import step_bound
from hash3d_cuda.config import POLICIES
from hash3d_cuda.options import BudgetTooSmall, TableOptions
from hash3d_cuda.plan.ranges import settings_keys
from hash3d_cuda.plan.simulate import simulate
from hash3d_cuda.reproduce.ablations import EVERYWHERE
from hash3d_cuda.reproduce.sweep import with_own_hooks
from hash3d_cuda.sds.attach import cache_config
from hash3d_cuda.sds.metrics import time_metrics
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.sds.timing import StepLog
from hash3d_cuda.tune.race import Stages, TuneContext, find_subject
from hash3d_cuda.tune.room import INDEXING, slots_of
from hash3d_cuda.tune.space import Changes, as_settings

DECIDE_VIEWS = (
    "eta", "seed", "steps", "views_per_step", "schedule", "t_high", "t_low", "t_move", "sampler", "reuse", "anchors",
    "jitter", "fresh_power", "first_fresh", "fresh_until", "max_age", "target_x", "target_quality", "audit",
)  # fmt: skip
STEPS = 4  # of each measurement; the first one, which warms up, does not count
WORTHWHILE = 1.02  # predicted speed-up below which a setting is not tried


@dataclass(frozen=True)
class Prediction:
    """One combination: its changes, the share of views served, and the largest speed-up of a step."""

    changes: Changes
    x: float
    speed_up: float


def calibrate(
    context: TuneContext, subject: str, kind: str, settings: Mapping[str, Any], positions: Sequence[int]
) -> dict[str, Any]:
    """The U-Net's share of a step without a cache and, by position, a hit's cost ``r`` and the bytes of one entry.

    Args:
        context: gives the prior.
        subject, kind: as for :func:`hash3d_cuda.tune.race.race`.
        settings: of the first stage, as ``as_dict`` gives them.
        positions: those to measure.
    """
    prior, asked = context.prior, find_subject(context.prior, subject, kind)
    base = replace(GenerateSettings.from_dict(settings), device=context.device, second_weight=0.0, objective="sds")
    plain, _ = measure(prior, asked, replace(base, cache=False), context.clock)
    # One cell for everything: after the first step all views hit.
    always = dict(eta=1.0, grids=(EVERYWHERE,), match="bucket", num_buckets=1, min_similarity=None, mode="feature")
    always |= dict.fromkeys(POLICIES)
    room = dict(capacity=2 * base.views_per_step, memory_budget=None, decide="host", cache=True)
    found: dict[str, Any] = {"share": plain["split_s"]["unet_full"] / plain["total_s"], "r": {}, "table": {}}
    for position in positions:
        timed, options = measure(prior, asked, replace(base, position=position, **always, **room), context.clock)
        assert options is not None
        found["r"][str(position)] = timed["unet_hit_per_view_s"] / plain["unet_full_per_view_s"]
        found["table"][str(position)] = {
            "feature": list(options.feature_shape), "latent": list(options.latent_shape),
            "dtype": str(options.feature_dtype).removeprefix("torch."),
        }  # fmt: skip
    return found


def measure(
    prior: Any, subject: Any, settings: GenerateSettings, clock: Callable[[], float]
) -> tuple[dict[str, Any], TableOptions | None]:
    """Times of a few steps after the first, and what the table is like."""
    with SdsRun(with_own_hooks(prior), subject, settings, clock=clock) as run:
        for _ in range(STEPS):
            run.train_step()
        run.settle()
        options = None if run.cache is None else run.cache.table.options
    return time_metrics(StepLog(run.log.array()[1:]))[0], options


def predict(
    prior: Any, stages: Stages, seed: int, found: Mapping[str, Any], combinations: Sequence[Changes]
) -> list[Prediction]:
    """What each combination promises, in their order; those whose memory holds no entry are left out.

    Quality is not predicted, nor what ``min_similarity`` and ``max_change`` turn down, and with ``target_quality`` eta
    is taken to go to 1: then it is the most that a setting can promise.
    """
    known: dict[Any, float] = {}
    predictions = []
    for changes in combinations:
        time = views = served = 0.0
        try:
            for values in stages:
                settings = replace(GenerateSettings.from_dict(values), seed=seed, **as_settings(changes))
                r = found["r"][str(settings.position)]
                x = simulated(prior, settings, found["table"][str(settings.position)], known)
                count = settings.steps * settings.views_per_step
                time += count / step_bound(x, r, found["share"])
                views, served = views + count, served + count * x
        except BudgetTooSmall:
            continue
        predictions.append(Prediction(changes, served / views, views / time))
    return predictions


def simulated(prior: Any, settings: GenerateSettings, table: Mapping[str, Any], known: dict[Any, float]) -> float:
    """x of one stage; 0 where the views are not drawn at random."""
    if settings.objective != "sds":
        return 0.0
    indexing: dict[str, Any] = {name: getattr(settings, name) for name in INDEXING}
    slots = slots_of(settings, table)
    key = (slots, *(getattr(settings, name) for name in DECIDE_VIEWS), *indexing.values())
    if key not in known:
        ranges = prior.elevation_range, prior.radius_range, len(prior.alphas_cumprod)
        keys = settings_keys(settings, *ranges)
        known[key] = simulate(
            keys, settings.eta if settings.target_quality is None else 1.0, capacity=slots, seed=settings.seed,
            coverage=False, max_age=settings.max_age, target_x=settings.target_x,
            audit=cache_config(settings).audit_share, **indexing,
        ).x  # fmt: skip
    return known[key]


def spread(predictions: Sequence[Prediction], space: Mapping[str, Sequence[Any]], count: int) -> list[Prediction]:
    """``count`` of the predictions that promise something, as different as can be: first the fastest, then always the
    one farthest from those taken, in predicted speed-up and in the places of its values in the space."""
    left = [one for one in predictions if one.speed_up >= WORTHWHILE]
    if not left:
        return []
    top = max(one.speed_up for one in left)

    def place(one: Prediction) -> list[float]:
        speed = (one.speed_up - 1.0) / max(top - 1.0, 1e-9)
        return [2.0 * speed, *(list(v).index(one.changes[n]) / max(len(v) - 1, 1) for n, v in space.items())]

    taken = [max(left, key=lambda one: one.speed_up)]
    while len(taken) < count and len(taken) < len(left):
        places = [place(one) for one in taken]
        rest = [one for one in left if one not in taken]
        taken.append(max(rest, key=lambda one: min(distance(place(one), other) for other in places)))
    return taken


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Sum of differences."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))
