"""``hash3d generate --jobs``: lines of a file as command lines, and this process as one of the workers."""

from __future__ import annotations

import argparse
import copy
import functools
import sys
from typing import Any

from hash3d_cuda.cli.generate import Making, make, plan_run
from hash3d_cuda.cli.main import UsageError, build_parser, one_line
from hash3d_cuda.cli.on_ray import Elsewhere, check_ray_options, work_on_ray
from hash3d_cuda.cli.options import (
    budget_in_options,
    check_subject,
    default_folder,
    given_settings,
    looks_like_path,
    open_subject,
)
from hash3d_cuda.cli.recipe import is_own, plan_recipe
from hash3d_cuda.torchrun import own_device, own_rank, world_size

STATE = ".hash3d-jobs"  # in --out: who works on what
PRIORS = 2  # kept loaded by a worker
NOT_FOR_JOBS = (
    "command",
    "debug",
    "jobs",
    "out",
    "resume",
    "force",
    "quiet",
    "retries",
    "lease",
    "ray",
    "ray_cpus",
    "ray_gpus",
    "rank_timeout",
)


def run_jobs(options: argparse.Namespace) -> int:
    """Reads and checks all jobs, then works until all are over; returns the exit code."""
    from hash3d_cuda.jobs import BadJobs, Ledger, read_jobs

    check_options(options)
    parser = build_parser("generate").command("generate")
    load = functools.lru_cache(PRIORS)(load_prior)
    elsewhere = None if options.ray is None else Elsewhere()

    def check(job: Any) -> None:
        own = job_options(parser, options, job)
        check_job(own if elsewhere is None else elsewhere.see(own), load)

    try:
        jobs = read_jobs(options.jobs, check)
        ledger = Ledger(options.out / STATE, options.retries, options.lease)
        if changed := ledger.changed(jobs):
            remedy = "was begun with other fields; give it another out, or remove its folder and its state"
            raise BadJobs([f"{options.jobs}:{job.line}: out: {job.name!r} {remedy}" for job in changed])
    except BadJobs as error:
        for problem in error.problems:
            print(f"hash3d: error: {problem}", file=sys.stderr)
        return 2
    if elsewhere is not None:
        fine = work_on_ray(options, jobs, ledger, elsewhere.cuda)
    else:
        fine = True
        work_here(parser, options, jobs, ledger, load)
    return conclude_jobs(options, jobs, ledger) or int(not fine)


def check_options(options: argparse.Namespace) -> None:
    """Refuses what does not go with --jobs, and fills in --out."""
    from hash3d_cuda.checks import check_int, check_positive
    from hash3d_cuda.cli.options import usage

    if options.subject is not None:
        raise UsageError("--jobs: the subjects are in the file; leave the IMAGE or NAME away")
    if options.resume or options.force:
        raise UsageError("--jobs goes on with what is unfinished by itself; leave --resume and --force away")
    usage(check_int, "--retries", options.retries, 0)
    usage(check_positive, "--lease", options.lease)
    check_ray_options(options)
    options.out = options.out or default_folder(options.jobs.stem)


def job_options(parser: argparse.ArgumentParser, common: argparse.Namespace, job: Any) -> argparse.Namespace:
    """A job as the options of a command line of its own, those of the common one beneath; raises ValueError."""
    values = dict(job.values)
    asked = [name for name in ("image", "prompt", "subject") if values.get(name) is not None]
    if not asked or (len(asked) > 1 and asked != ["image", "prompt"]):  # a recipe may ask for both
        raise ValueError(
            f'expected "image" or "prompt", got {", ".join(asked) or "neither"}; give the one it starts from'
        )
    subject = values.pop(asked[0])
    if not isinstance(subject, str):
        raise ValueError(f"{asked[0]}: expected a string, got {subject!r}")
    if asked[0] == "image" and not looks_like_path(subject):
        raise ValueError(f"image: no file {subject!r}")
    options = copy.copy(common)
    words = [word for name, value in values.items() for word in option_words(parser, options, name, value)]
    try:
        parser.parse_args([*words, "--", subject], options)
    except UsageError as error:
        raise ValueError(str(error).replace(f" (see {parser.prog} --help)", "")) from None
    options.out, options.quiet, options.subject = common.out / job.name, True, subject
    options.device = own_device(options.device) if options.device else None
    return options


def option_words(parser: argparse.ArgumentParser, options: argparse.Namespace, name: str, value: Any) -> list[str]:
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


def check_job(options: argparse.Namespace, load: Any) -> None:
    """Raises ValueError for whatever can be known to be wrong before a step is run."""
    try:
        check_subject(options.subject)
        open_subject(options)
        given = given_settings(options)
        with budget_in_options():
            plan_recipe(options, given) if options.recipe is not None else plan_run(options, given)
    except (UsageError, OSError) as error:
        raise ValueError(one_line(error)) from None
    if not looks_like_path(options.subject) and is_own(options.prior):
        load(options.prior, device=options.device or "cpu", encoder=options.encoder).resolve(options.subject)


def load_prior(source: Any, device: str, encoder: Any = None) -> Any:
    """As :func:`hash3d_cuda.prior.load_prior`, which is looked up when it is called."""
    from hash3d_cuda import prior

    return prior.load_prior(source, device=device, encoder=encoder)


def work_here(parser: Any, options: argparse.Namespace, jobs: list[Any], ledger: Any, load: Any) -> None:
    """This process as a worker."""
    from hash3d_cuda.jobs import work
    from hash3d_cuda.sds.finished import find_unfinished
    from hash3d_cuda.sds.interrupt import Interrupt

    def make_one(claim: Any, check: Any) -> Any:
        own = job_options(parser, options, claim.job)
        own.resume = find_unfinished(own.out) is not None
        making = Making(interrupt=interrupt, progress=check, load=load, skip_finished=claim.number > 1)
        given = given_settings(own)
        if "device" in given:  # of a --settings file too
            given["device"] = own_device(given["device"])
        return make(own, given, making)

    def say(text: str) -> None:
        if not options.quiet:
            print(f"hash3d: worker {own_rank()}: {text}", file=sys.stderr, flush=True)

    with Interrupt() as interrupt:
        first = len(jobs) * own_rank() // world_size()
        work(jobs, ledger, make_one, interrupt, say, is_final, one_line, first)


def is_final(error: BaseException) -> bool:
    """Wrong input and numbers that are not finite come again; a full disk or a busy GPU may not."""
    from hash3d_cuda.sds.finite import NonFinite

    return isinstance(error, (ValueError, TypeError, UsageError, NonFinite))


def conclude_jobs(options: argparse.Namespace, jobs: list[Any], ledger: Any) -> int:
    """Writes the summary and says how it went; returns the exit code."""
    from hash3d_cuda.jobs import Status, summarise, table_text, write_summary

    summary = summarise(jobs, ledger, options.out)
    write_summary(summary, options.out)
    if own_rank() == 0 and not options.quiet:
        print(table_text(summary))
        print(f"wrote {options.out / 'summary.html'}")
    left = len(jobs) - sum(summary["counts"][status.value] for status in Status if status.over)
    if left and own_rank() == 0:
        print(f"hash3d: {left} of {len(jobs)} jobs are not over; the same command goes on with them", file=sys.stderr)
    return 0 if summary["counts"][Status.DONE.value] == len(jobs) else 1
