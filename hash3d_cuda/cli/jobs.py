"""``hash3d generate --jobs``: this process as one of the workers on the jobs of a file."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

from hash3d_cuda.cli.generate import Making, make
from hash3d_cuda.cli.job_lines import check_line, job_options
from hash3d_cuda.cli.main import UsageError, build_parser, one_line
from hash3d_cuda.cli.on_ray import Elsewhere, check_ray_options, work_on_ray
from hash3d_cuda.cli.options import default_folder, given_settings
from hash3d_cuda.torchrun import driven, own_device, own_rank, restarts_left, world_size

STATE = ".hash3d-jobs"  # in --out: who works on what
PRIORS = 2  # kept loaded by a worker


def run_jobs(options: argparse.Namespace) -> int:
    """Reads and checks all jobs, then works until all are over; returns the exit code."""
    from hash3d_cuda.jobs import BadJobs, Ledger, read_jobs

    check_options(options)
    parser = build_parser("generate").command("generate")
    load = functools.lru_cache(PRIORS)(load_prior)
    elsewhere = None if options.ray is None else Elsewhere()

    def check(job: Any) -> dict[str, Any]:
        return check_line(parser, options, job, load, None if elsewhere is None else elsewhere.see)

    try:
        jobs = read_jobs(options.jobs, check)
        ledger = Ledger(options.out / STATE, options.retries, options.lease, options.keep)
        if (changed := ledger.changed(jobs)) and not (options.keep or options.overwrite):
            raise BadJobs([f"{options.jobs}:{job.line}: {begun_otherwise(job, ledger)}" for job in changed])
    except BadJobs as error:
        for problem in error.problems:
            print(f"hash3d: error: {problem}", file=sys.stderr)
        return 2
    tell_kept(options, changed, ledger)
    if elsewhere is not None:
        fine = work_on_ray(options, jobs, ledger, elsewhere.cuda)
    else:
        fine = True
        work_here(parser, options, jobs, ledger, load)
    return conclude_jobs(options, jobs, ledger) or int(not fine)


def begun_otherwise(job: Any, ledger: Any) -> str:
    """What is wrong with a job that is not the one that was begun under its name."""
    names = ledger.differences(job)
    what = f" ({', '.join(names)})" if names else ""
    return (
        f"out: {job.name!r} was begun with other fields or options{what}; give the same, or another out; --overwrite "
        "makes it anew, --keep leaves it if it is done"
    )


def tell_kept(options: argparse.Namespace, changed: list[Any], ledger: Any) -> None:
    """Says which jobs --keep leaves as they are, though they would be made otherwise now."""
    from hash3d_cuda.jobs import Status

    if not options.keep or options.quiet or own_rank() > 0:
        return
    for job in changed:
        if ledger.status(job) is Status.DONE:
            names = ", ".join(ledger.differences(job))
            print(f"hash3d: {job.name}: kept as it is, made with another {names}", file=sys.stderr)


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


def load_prior(source: Any, device: str, encoder: Any = None) -> Any:
    """As :func:`hash3d_cuda.prior.load_prior`, which is looked up when it is called."""
    from hash3d_cuda import prior

    return prior.load_prior(source, device=device, encoder=encoder)


def work_here(parser: Any, options: argparse.Namespace, jobs: list[Any], ledger: Any, load: Any) -> None:
    """This process as a worker."""
    from hash3d_cuda.jobs import work
    from hash3d_cuda.sds.interrupt import Interrupt

    def make_one(claim: Any, check: Any) -> Any:
        own, _ = job_options(parser, options, claim.job)
        own.resume = has_unfinished(own.out, claim.job.digest)
        again, job = claim.number > 1, claim.job.digest
        making = Making(interrupt=interrupt, progress=check, load=load, skip_finished=again, job=job)
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


def has_unfinished(out: Path, digest: str) -> bool:
    """Whether a job's folder holds a run to go on with. What another job of that name left there is removed."""
    from hash3d_cuda.sds.checkpoint import read_about, remove_checkpoint
    from hash3d_cuda.sds.finished import find_unfinished

    path = find_unfinished(out)
    if path is None:
        return False
    if read_about(path)["note"].get("job", digest) == digest:
        return True
    for folder in (out, out / "stage-1"):
        remove_checkpoint(folder)
    return False


def is_final(error: BaseException) -> bool:
    """Wrong input and numbers that are not finite come again; a full disk or a busy GPU may not."""
    from hash3d_cuda.sds.finite import NonFinite

    return isinstance(error, (ValueError, TypeError, UsageError, NonFinite))


def conclude_jobs(options: argparse.Namespace, jobs: list[Any], ledger: Any) -> int:
    """Writes the summary and says how it went; returns the exit code: 0 when all are done."""
    from hash3d_cuda.jobs import Status, summarise, table_text, write_summary

    summary = summarise(jobs, ledger, options.out)
    write_summary(summary, options.out)
    tells = own_rank() == 0 and not driven()
    if tells and not options.quiet:
        print(table_text(summary))
        print(f"wrote {options.out / 'summary.html'}")
    left = len(jobs) - sum(summary["counts"][status.value] for status in Status if status.over)
    if left and tells:
        print(f"hash3d: {left} of {len(jobs)} jobs are not over; the same command goes on with them", file=sys.stderr)
    failed = summary["counts"][Status.FAILED.value]
    if failed and not left and tells and restarts_left():
        why = "torchrun will start its processes anew, which find nothing to do"
        print(f"hash3d: {failed} of {len(jobs)} jobs failed for good (see summary.md); {why}", file=sys.stderr)
    return 0 if summary["counts"][Status.DONE.value] == len(jobs) else 1
