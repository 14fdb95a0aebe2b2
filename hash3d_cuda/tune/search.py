"""The search: calibrate, screen, halve, confirm; every unit is filed as it ends, so the same call goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hash3d_cuda.reproduce.base import Unit
from hash3d_cuda.reproduce.runner import UNITS, run_unit, stored
from hash3d_cuda.reproduce.sweep import BASELINE
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.tune.measure import BOUNDS, Measure
from hash3d_cuda.tune.race import Stages, TuneContext, race, steps_of
from hash3d_cuda.tune.rounds import Outcome, Plan, choose, make_plan, ranked
from hash3d_cuda.tune.screen import calibrate, predict, spread
from hash3d_cuda.tune.space import Space, candidates, label
from hash3d_cuda.unet import find_adapter

FORMAT = 1
Told = Callable[[str, int, int], None]
"""Called before each piece of work: its name, its SDS steps (0 where an earlier call did it), and those after it."""
FULL, OUT_OF_TIME, INTERRUPTED = "all runs done", "out of time", "interrupted"


@dataclass(frozen=True)
class Request:
    """What is searched for.

    Attributes:
        title: for the report.
        stages: settings of each stage, as ``GenerateSettings.as_dict`` gives them, with the steps of the runs here.
        full_stages: the same with the steps of a whole run.
        subjects: (subject, kind) of each object, as :func:`hash3d_cuda.tune.race.race` takes them.
        space: values by field.
        measure: of what is lost, and the bound.
        runs: the most SDS runs, those without a cache included.
        minutes: begin nothing that would end later than that; None for no limit.
        confidence: that the chosen setting's mean loss is within the bound.
        two_priors: the stages ask a name beside the picture.
    """

    title: str
    stages: Stages
    full_stages: Stages
    subjects: Sequence[tuple[str, str]]
    space: Space
    measure: Measure
    runs: int = 40
    minutes: float | None = None
    confidence: float = 0.8
    two_priors: bool = False


@dataclass
class Search:
    """A search under way."""

    context: TuneContext
    request: Request
    told: Told
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0  # units
    tables: dict[str, Any] = field(default_factory=dict)  # by position, see hash3d_cuda.tune.room
    left: int = 0  # SDS steps of the rounds after this one
    ended: str = FULL
    _seconds: list[float] = field(default_factory=list)  # of a run, by unit
    _start: float = field(default_factory=time.monotonic)

    def follow(self, plan: Plan) -> None:
        """Runs the plan's rounds; an interrupt ends it where something is known."""
        live = list(self.outcomes)
        sizes = [*plan.halving, *[plan.finalists] * plan.confirming]
        try:
            for number, size in enumerate(sizes):
                live = [one.name for one in self._ranked(live)][:size] if number else live
                if number == len(plan.halving):
                    for name in live:
                        self.outcomes[name].confirming = len(self.outcomes[name].losses)
                if not self._time_for(len(live) + 1):
                    self.ended = OUT_OF_TIME
                    return
                self.left = sum((size + 1) * self._steps for size in sizes[number + 1 :])
                self._round(number, live, number >= len(plan.halving))
        except KeyboardInterrupt:
            if not self.points:
                raise
            self.ended = INTERRUPTED

    def _ranked(self, names: Sequence[str]) -> list[Outcome]:
        return ranked([self.outcomes[name] for name in names], self.request.measure.limit)

    def _time_for(self, runs: int) -> bool:
        minutes = self.request.minutes
        if minutes is None or not self._seconds:
            return True
        return time.monotonic() - self._start + runs * max(self._seconds) <= 60 * minutes

    def _round(self, number: int, names: Sequence[str], confirming: bool) -> None:
        """One unit: a new object, or a new seed once all objects had their turn."""
        subjects = self.request.subjects
        subject, kind = subjects[number % len(subjects)]
        seed = self.context.seed + number // len(subjects)
        settings = {name: self.outcomes[name].changes for name in names}
        result = self.unit(
            f"round {number + 1}, {subject}, seed {seed}, {len(names)} settings", race,
            subject=subject, kind=kind, seed=seed, stages=list(self.request.stages),
            two_priors=self.request.two_priors, variants=settings, measures=self.extra_measures,
            tables=self.tables,
        )  # fmt: skip
        self.done += 1
        baseline = result["runs"][BASELINE]
        for name in names:
            run = result["runs"][name]
            loss = self.request.measure.loss(run, baseline)
            self.outcomes[name].add(run, loss)
            about = {"setting": name, "subject": subject, "seed": seed, "round": number + 1, "confirming": confirming}
            self.points.append({**about, "loss": loss, **run})

    def unit(self, key: str, function: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
        """A unit's result, filed earlier or now."""
        depends = {} if self.context.encoder is None else {"depends": {"encoder": self.context.encoder}}
        unit = Unit(key, function, arguments, **depends)
        found = stored(self.context, unit)
        runs = len(arguments.get("variants", ())) + 1
        self.told(key, runs * self._steps if function is race and found is None else 0, self.left)
        if found is None:
            start = time.monotonic()
            run_unit(self.context, unit)
            found = stored(self.context, unit)
            if function is race:
                self._seconds.append((time.monotonic() - start) / runs)
        assert found is not None
        return found

    @property
    def _steps(self) -> int:
        return sum(steps_of(self.request.stages))

    @property
    def extra_measures(self) -> list[str]:
        """Scores that are not always there."""
        return [] if self.request.measure.name in BOUNDS else [self.request.measure.name]


def tune(context: TuneContext, request: Request, told: Told = lambda key, steps, left: None) -> dict[str, Any]:
    """Looks for the fastest setting within the bound.

    Args:
        context: the folder, in whose ``units`` results are filed and found again, the prior and the first seed.
        request: what to look for.
        told: see ``Told``.

    Returns:
        the content of ``tune.json``.

    Raises:
        ValueError: no combination of the space is worth a run, or a measure that is not to be had.
        KeyboardInterrupt: before anything was known; later, what is known is returned.
    """
    (context.out / UNITS).mkdir(parents=True, exist_ok=True)
    search = Search(context, request, told)
    prior, stages = context.prior, [GenerateSettings.from_dict(values) for values in request.stages]
    combinations = candidates(request.space, stages, find_adapter(prior.unet).count_positions())
    used = {values.position for values in stages} | {changes.get("position") for changes in combinations}
    subject, kind = request.subjects[0]
    positions = sorted(position for position in used if position is not None)
    costs = search.unit(
        "costs", calibrate, subject=subject, kind=kind, settings=dict(request.stages[0]), positions=positions
    )
    search.tables = costs["table"]
    predictions = predict(prior, request.stages, context.seed, costs, combinations)
    promising = spread(predictions, request.space, len(predictions))
    if not promising:
        raise ValueError(
            f"tune: none of {len(combinations)} combinations promises a speed-up; the U-Net is {costs['share']:.0%} of "
            "a step here: more steps, larger cells or a larger eta (--vary) would serve more views"
        )
    plan = make_plan(request.runs, len(promising))
    for one in promising[: plan.first]:
        search.outcomes[label(one.changes)] = Outcome(label(one.changes), one.changes)
    search.follow(plan)
    content = summary(search, plan, costs, len(combinations), len(promising))
    if content["chosen"] is not None:
        (whole,) = predict(prior, request.full_stages, context.seed, costs, [content["chosen"]["changes"]])
        content["chosen"]["whole_run"] = {"steps": sum(steps_of(request.full_stages)), **asdict(whole)}
        (short,) = predict(prior, request.stages, context.seed, costs, [content["chosen"]["changes"]])
        content["chosen"]["whole_run"]["x_here"] = short.x
    return content


def summary(search: Search, plan: Plan, costs: Mapping[str, Any], tried: int, promising: int) -> dict[str, Any]:
    """What was found, as plain JSON."""
    request, limit = search.request, search.request.measure.limit
    known = [one for one in search.outcomes.values() if one.losses]
    judged = [one for one in known if len(one.losses) > one.confirming > 0] if plan.halving else known
    chosen, sure = choose(judged or known, limit, request.confidence)
    return {
        "format": FORMAT,
        "what": "hash3d tune",
        "title": request.title,
        "measure": request.measure.name,
        "bound": request.measure.bound,
        "bound_text": request.measure.text,
        "limit": limit,
        "steps": list(steps_of(request.stages)),
        "subjects": [subject for subject, _ in request.subjects],
        "seed": search.context.seed,
        "seconds": "processor time of one thread" if search.context.device == "cpu" else "wall clock",
        "space": {name: list(values) for name, values in request.space.items()},
        "combinations": tried,
        "promising": promising,
        "plan": {**asdict(plan), "runs": plan.runs},
        "ended": search.ended,
        "runs_done": len(search.points) + search.done,
        "costs": dict(costs),
        "settings": [row(one, limit, bool(plan.halving)) for one in ranked(known, limit)],
        "points": search.points,
        "chosen": None if chosen is None else {**row(chosen, limit, bool(plan.halving)), "confident": sure},
        "asked_confidence": request.confidence,
    }


def row(outcome: Outcome, limit: float, halved: bool) -> dict[str, Any]:
    """One setting's figures; ``loss`` and ``confidence`` are of the runs that judge, if there were any."""
    judged = len(outcome.losses) - outcome.confirming if outcome.confirming or not halved else 0
    return {
        "name": outcome.name,
        "changes": dict(outcome.changes),
        "runs": len(outcome.losses),
        "judging_runs": judged,
        "loss": outcome.loss,
        "losses": outcome.losses,
        "confidence": outcome.confidence(limit),
        "speed_up": outcome.speed_up,
        "bound_step": sum(outcome.bounds) / len(outcome.bounds),
        "x": sum(outcome.xs) / len(outcome.xs),
    }
