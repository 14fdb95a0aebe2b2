"""A line of a file of jobs as the options of a command line, and all that is wrong with it."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from typing import Any

from hash3d_cuda.cli.generate import plan_run
from hash3d_cuda.cli.main import UsageError, one_line
from hash3d_cuda.cli.options import (
    ANCHORED,
    budget_in_options,
    check_subject,
    given_settings,
    looks_like_path,
    open_subject,
)
from hash3d_cuda.cli.recipe import is_own, plain, plan_recipe
from hash3d_cuda.cli.resume import REQUEST
from hash3d_cuda.torchrun import own_device

NOT_FOR_JOBS = (
    "command", "debug", "jobs", "out", "resume", "force", "keep", "overwrite", "quiet", "retries", "lease", "ray",
    "ray_cpus", "ray_gpus", "rank_timeout",
)  # fmt: skip
HARMLESS = ("device", "checkpoint_every")  # these do not change what a job makes


def check_line(
    parser: argparse.ArgumentParser, common: argparse.Namespace, job: Any, load: Any, see: Any = None
) -> dict[str, Any]:
    """All that a job's result depends on, as JSON values.

    Args:
        parser: of ``hash3d generate``.
        common: the command line, for all jobs.
        job: a :class:`hash3d_cuda.jobs.Job`.
        load: as :func:`hash3d_cuda.prior.load_prior`.
        see: for jobs that are made elsewhere, :meth:`hash3d_cuda.cli.on_ray.Elsewhere.see`.

    Raises:
        BadJobs: with whatever can be known to be wrong before a step is run.
    """
    from hash3d_cuda.jobs import BadJobs

    options, faults = job_options(parser, common, job)
    try:
        options = options if see is None else see(options)
    except ValueError as error:
        faults.append(str(error))
    faults += setting_faults(options)
    if options.subject is not None:
        faults += subject_faults(options)
    if faults:
        raise BadJobs(list(dict.fromkeys(faults)))
    if not looks_like_path(options.subject) and is_own(options.prior):
        load(options.prior, device=options.device or "cpu", encoder=options.encoder).resolve(options.subject)
    settings = {name: plain(name, value) for name, value in given_settings(options).items() if name not in HARMLESS}
    asked = {name: getattr(options, name) for name in (*REQUEST, "recipe", "recipe_scale")}
    return {name: value for name, value in {**settings, **asked}.items() if value is not None}


def job_options(
    parser: argparse.ArgumentParser, common: argparse.Namespace, job: Any
) -> tuple[argparse.Namespace, list[str]]:
    """A job as the options of a command line of its own, those of the common one beneath; and what is wrong with its
    fields, which are left out then. The subject is None where it is wrong."""
    values, faults = dict(job.values), []
    try:
        subject = take_subject(values)
    except ValueError as error:
        subject, faults = None, [str(error)]
    options = copy.copy(common)
    for name, value in values.items():
        try:
            parser.parse_args(option_words(parser, name, value), options)
        except (UsageError, ValueError) as error:
            faults.append(str(error).replace(f" (see {parser.prog} --help)", ""))
    options.out, options.quiet, options.subject = common.out / job.name, True, subject
    options.device = own_device(options.device) if options.device else None
    return options, faults


def take_subject(values: dict[str, Any]) -> str:
    """Takes what a job starts from out of its fields; raises ValueError."""
    asked = [name for name in ("image", "prompt", "subject") if values.get(name) is not None]
    chosen = asked[0] if asked else ""
    several = len(asked) > 1 and asked != ["image", "prompt"]  # a recipe may ask for both
    subject = values.pop(chosen, None)
    if not asked or several:
        for name in asked[1:]:
            del values[name]
        raise ValueError(
            f'expected "image" or "prompt", got {", ".join(asked) or "neither"}; give the one it starts from'
        )
    if not isinstance(subject, str):
        raise ValueError(f"{chosen}: expected a string, got {subject!r}")
    if chosen == "image" and not looks_like_path(subject):
        raise ValueError(f"image: no file {subject!r}")
    return subject


def option_words(parser: argparse.ArgumentParser, name: str, value: Any) -> list[str]:
    """A field of a job as words of a command line; raises ValueError for one that no option is called."""
    name = name.replace("-", "_")
    actions = [action for action in parser._actions if action.dest == name and action.option_strings]
    if not actions or name in NOT_FOR_JOBS or name == "help":
        raise ValueError(f"{name}: expected an option of hash3d generate, got this name; see hash3d generate --help")
    if value is None:
        return []
    if isinstance(value, bool):
        if any(action.nargs != 0 for action in actions):
            raise ValueError(f"{name}: expected a number or a string, got {value}")
        return [action.option_strings[-1] for action in actions if action.const is value]
    if isinstance(value, list) and all(isinstance(part, list) for part in value):  # grids
        value = ";".join(",".join(map(str, part)) for part in value)
    if not isinstance(value, (str, int, float)) or any(action.nargs == 0 for action in actions):
        raise ValueError(f"{name}: expected what --{name.replace('_', '-')} takes, got {value!r}")
    return [f"{actions[0].option_strings[-1]}={value}"]


def subject_faults(options: argparse.Namespace) -> Iterator[str]:
    """What is wrong with what a job starts from."""
    try:
        check_subject(options.subject)
        open_subject(options)
    except (UsageError, ValueError, OSError) as error:
        yield one_line(error)


def setting_faults(options: argparse.Namespace) -> Iterator[str]:
    """What is wrong with a job's settings, one after the other: each is left out when it has been told."""
    options = copy.copy(options)
    while True:
        try:
            given = given_settings(options)
            break
        except (UsageError, OSError) as error:
            yield one_line(error)
        name = next((name for name in ANCHORED if getattr(options, name) is not None), None)
        if name is None:
            return
        setattr(options, name, None)
    while True:
        try:
            with budget_in_options():
                if options.recipe is None:
                    plan_run(options, given)
                elif options.subject is not None:
                    plan_recipe(options, given)
            return
        except (UsageError, ValueError, OSError) as error:
            text = one_line(error)
        yield text
        name = text.partition(":")[0]
        if name not in given:
            return
        given = {other: value for other, value in given.items() if other != name}
