"""``hash3d reproduce``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hash3d_cuda.cli.main import UsageError
from hash3d_cuda.cli.options import to_folder, usage

EPILOG = """DIR gets NAME.json, NAME.md and NAME.png for each experiment, and README.md with all of them. What is
done is kept in DIR/units: the same command goes on where an earlier one was stopped.
"""
# None of them is one that the scene's settings were chosen on.
OBJECTS = ("chicken", "cactus", "rocking horse", "sofa", "desk", "mailbox", "green chair", "biplane", "forklift")
QUICK, DEFAULT = {"objects": 2, "steps": 48}, {"objects": 3, "steps": 120}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fills the subcommand's parser."""
    parser.epilog = EPILOG
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="see --list; all (default): the paper's; reuse: those of our own"
    )
    parser.add_argument("--list", action="store_true", help="name the experiments and leave")
    parser.add_argument("--quick", action="store_true", help="minutes: 2 objects, 48 steps (else 3 and 120)")
    parser.add_argument(
        "--out", type=to_folder, metavar="DIR", default=Path("hash3d-reproduce"), help="default hash3d-reproduce"
    )
    parser.add_argument("--objects", metavar="N|NAMES", help="how many objects, or their names with commas between")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="SDS iterations of every run (at --scale paper recipes keep theirs)"
    )
    parser.add_argument("--seed", type=int, default=0, help="everything random follows from it (default 0)")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes of one thread each (default 2, or the cores)")
    parser.add_argument("--prior", metavar="DIR_OR_HUB_ID", help="diffusers weights instead of the shipped prior")
    parser.add_argument("--device", default="cpu", help='"cpu" (default) or "cuda"')
    parser.add_argument(
        "--scale", choices=("small", "paper"), default="small", help="of the recipes: small (default) or the paper's"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")


def run(options: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    from hash3d_cuda.reproduce import registry

    if options.list:
        for name in registry.known():
            print(f"{name:12}  {registry.load(name).TITLE}")
        return 0
    modules = [module for name in options.names or ["all"] for module in usage(registry.find, name)]
    modules = list(dict.fromkeys(modules))
    context, jobs = make_context(options, modules), usage(number_of_jobs, options.jobs)
    return carry_out(modules, context, jobs, options.quiet)


def carry_out(modules: list[ModuleType], context: Any, jobs: int, quiet: bool) -> int:
    """Runs the experiments and says what came of them."""
    import torch
    from tqdm import tqdm

    from hash3d_cuda.reproduce.runner import reproduce
    from hash3d_cuda.reproduce.written import check_folder, write_experiment

    torch.set_num_threads(1)
    check_folder(context.out, [module.ID for module in modules])
    command = command_line(sys.argv[1:], context.out)

    def written(module: ModuleType, results: dict[str, dict[str, Any]]) -> None:
        content = write_experiment(module, context, results, command)
        if not quiet:
            findings = content["summary"]["findings"]
            tqdm.write(f"{module.TITLE}: {findings[0] if findings else 'done'}", file=sys.stderr)

    failures = reproduce(modules, context, jobs, written, quiet)
    if failures:
        first = failures[0]
        raise RuntimeError(
            f"{len(failures)} piece(s) of work failed, first {first.unit!r} ({first.error}); the same command tries "
            "them again, the rest is kept"
        )
    if not quiet:
        print(f"wrote {context.out / 'README.md'}")
    return 0


def command_line(arguments: Sequence[str], out: Path) -> str:
    """The command as results quote it: of a folder given with its whole path, which is this machine's, the name."""
    told = [one.replace(str(out), out.name) for one in arguments] if out.is_absolute() else arguments
    return shlex.join(["hash3d", *told])


def make_context(options: argparse.Namespace, modules: list[ModuleType]) -> Any:
    """What all experiments share, checked before anything runs."""
    from hash3d_cuda.checks import check_device, check_int
    from hash3d_cuda.prior.load import load_prior
    from hash3d_cuda.reproduce.base import Context

    size = QUICK if options.quick else getattr(modules[0], "SIZE", DEFAULT) if len(modules) == 1 else DEFAULT
    steps = usage(check_int, "steps", size["steps"] if options.steps is None else options.steps, 2, 10**6)
    seed = usage(check_int, "seed", options.seed, 0)
    device = str(usage(check_device, "device", options.device))
    objects = usage(choose_objects, options.objects, size["objects"])
    if options.prior is not None:
        load_prior(options.prior, device)  # a bad folder is one line now, and not one per worker later
    return Context(options.out, options.quick, objects, steps, seed, options.prior, device, options.scale)


def choose_objects(given: str | None, count: int) -> tuple[str, ...]:
    """Names from ``--objects``; raises ValueError for one without bundled views."""
    from hash3d_cuda.prior.ground_truth import ground_truth_names

    known = ground_truth_names()
    listed = [*OBJECTS, *(name for name in known if name not in OBJECTS)]
    if given is None:
        return tuple(listed[:count])
    if given.strip().isdigit() and 1 <= int(given) <= len(listed):
        return tuple(listed[: int(given)])
    names = tuple(dict.fromkeys(name.strip().lower() for name in given.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        expected = f"1 to {len(listed)}, or names among {', '.join(known)}"
        raise ValueError(f"objects: expected {expected}; got {unknown[0]!r}")
    return names


def number_of_jobs(given: int | None) -> int:
    """Worker processes: two at most unless asked for, since each holds several scenes and tables."""
    if given is not None and given < 1:
        raise UsageError(f"jobs: expected at least 1, got {given}")
    return min(os.cpu_count() or 1, 2) if given is None else given
