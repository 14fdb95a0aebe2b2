"""``hash3d generate --jobs --ray``: what the driver checks, asks of the cluster, and tells."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hash3d_cuda.cli.main import UsageError, build_parser, one_line
from hash3d_cuda.cli.options import given_settings

KEPT = {"command", "debug", "jobs", "out", "ray", "ray_cpus", "ray_gpus", "quiet", "subject", "resume", "force"}
"""Options that workers are not handed, or not as they came."""


def add_ray_options(group: Any) -> None:
    """``--ray`` and what goes with it."""
    group.add_argument(
        "--ray", type=int, metavar="N", help="N workers on a Ray cluster (0: as many as it has room for)"
    )
    group.add_argument(
        "--ray-cpus", type=float, metavar="N", help="CPUs, and threads, that Ray sets aside for each worker (default 1)"
    )
    group.add_argument(
        "--ray-gpus", type=float, metavar="SHARE", help="GPUs likewise, 0 to 1 (default 1 where a job's device is cuda)"
    )


def check_ray_options(options: argparse.Namespace) -> None:
    """Refuses what does not go together; raises UsageError."""
    from hash3d_cuda.checks import check_int, check_positive, check_real
    from hash3d_cuda.cli.options import usage
    from hash3d_cuda.torchrun import world_size

    if options.ray is None:
        for name in ("ray_cpus", "ray_gpus"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} goes with --ray; give one, or leave it away")
        return
    usage(check_int, "--ray", options.ray, 0)
    if options.ray_cpus is not None:
        usage(check_positive, "--ray-cpus", options.ray_cpus)
    if options.ray_gpus is not None:
        usage(check_real, "--ray-gpus", options.ray_gpus, 0.0, 1.0)
    if world_size() > 1:
        raise UsageError(f"--ray: expected one process, got {world_size()} of torchrun; Ray starts the workers itself")


class Elsewhere:
    """Jobs that are checked here and made on other machines, which may have GPUs where this one has none.

    Attributes:
        cuda: whether a job that was seen wants one.
    """

    cuda = False

    def see(self, options: argparse.Namespace) -> argparse.Namespace:
        """A job's options, as they can be checked on this machine; they are changed in place. Raises ValueError."""
        try:
            device = str(given_settings(options).get("device", "cpu"))
        except (UsageError, OSError) as error:
            raise ValueError(one_line(error)) from None
        self.cuda = self.cuda or device.startswith("cuda")
        options.device = "cpu"
        return options


def work_on_ray(options: argparse.Namespace, jobs: list[Any], ledger: Any, cuda: bool) -> bool:
    """Lets workers on a cluster make the jobs, and tells what they do; returns whether all of them could work."""
    from hash3d_cuda.jobs.follow import Follower
    from hash3d_cuda.jobs.ray_workers import Order, run_on_ray
    from hash3d_cuda.sds.interrupt import Interrupt

    def say(text: str) -> None:
        if not options.quiet:
            print(f"hash3d: {text}", file=sys.stderr, flush=True)

    order = Order(
        worker_arguments(options), ledger.folder.absolute(), options.ray, len(jobs),
        1.0 if options.ray_cpus is None else options.ray_cpus,
        float(cuda) if options.ray_gpus is None else options.ray_gpus,
    )  # fmt: skip
    problems = run_on_ray(order, Interrupt, Follower(jobs, ledger, say).look, say)
    for problem in problems:
        print(f"hash3d: error: {problem}", file=sys.stderr)
    return not problems


def worker_arguments(options: argparse.Namespace) -> list[str]:
    """A command line for a worker elsewhere that sees the same folders."""
    words = ["generate", f"--jobs={Path(options.jobs).absolute()}", f"--out={Path(options.out).absolute()}"]
    parser = build_parser("generate").command("generate")
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        if action.dest in KEPT or not action.option_strings or value is None:
            continue
        if action.nargs == 0:
            words += [action.option_strings[-1]] if value is action.const else []
        else:
            words.append(f"{action.option_strings[-1]}={value}")
    return [*words, "--quiet"]
