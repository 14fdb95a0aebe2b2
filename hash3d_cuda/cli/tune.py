"""``hash3d tune``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hash3d_cuda.cli.main import UsageError
from hash3d_cuda.cli.options import add_run_options, check_subject, given_settings, looks_like_path, to_folder, usage

EPILOG = """Runs short generations without the cache and with it, step by step in turn, and looks for the fastest
settings of the cache that keep the bound: all combinations are screened by simulation, some are run, half of them
are dropped in each round, and the last few are judged on objects or seeds that had no part in choosing them.

Options of the cache that are given (--eta, --grids, ...) are fixed; the others are searched. --vary changes what is
searched, for any field of the settings: --vary "eta=0.5 0.9" --vary "queue_length=1 3" --vary "grids=paper pose".

DIR gets settings.toml (for generate and compare: --settings DIR/settings.toml), tune.md, tune.png, tune.json, and
what is done in DIR/units: after Ctrl-C, the same command goes on.

Where the true object is known (the shipped prior's names), the loss is in PSNR against it. Elsewhere it is the PSNR
against the views of the run without the cache, of which --min-agreement must be kept: a distance, not a quality.
"""
OBJECTS = ("chicken", "cactus", "rocking horse")
STEPS, RUNS, CONFIDENCE = 160, 40, 0.8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fills the subcommand's parser."""
    parser.epilog = EPILOG
    parser.add_argument(
        "subjects", nargs="*", metavar="IMAGE|NAME", help=f"objects to tune on (default: {', '.join(OBJECTS)})"
    )
    parser.add_argument("--out", type=to_folder, metavar="DIR", default=Path("hash3d-tune"), help="default hash3d-tune")
    search = parser.add_argument_group("search")
    search.add_argument("--max-loss", type=float, metavar="L", help="that may be lost (default 0.2 dB; SSIM 0.01)")
    search.add_argument("--measure", metavar="NAME", help="psnr, ssim, agreement, or a score of hash3d_cuda.perceptual")
    search.add_argument("--min-agreement", type=float, metavar="DB", help="with agreement: to be kept (default 25)")
    search.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"the most runs in all (default {RUNS})")
    search.add_argument("--minutes", type=float, metavar="M", help="begin nothing that would end later")
    search.add_argument(
        "--confidence", type=float, default=CONFIDENCE, metavar="P",
        help=f"of the mean loss being within the bound (default {CONFIDENCE})",
    )  # fmt: skip
    search.add_argument("--vary", action="append", default=[], metavar="FIELD=VALUES", help="values to search")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--recipe", metavar="NAME_OR_FILE", help="a system of the paper, or a file of settings")
    recipe.add_argument("--recipe-scale", choices=("small", "paper"), help="small (default with the shipped prior)")
    add_run_options(parser, outputs=False)


def run(options: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    check_search(options)
    given = given_settings(options)
    steps = given.pop("steps", STEPS)
    options.seed = given.pop("seed", None)
    device = given.pop("device", "cpu")
    from hash3d_cuda.tune import make_space

    space = usage(make_space, options.vary, given)
    title, two_priors, kind, full = find_stages(options, given)
    subjects = find_subjects(options, kind)
    from hash3d_cuda.tune.report import open_folder

    if usage(steps_checked, steps) < 2:
        raise UsageError(f"steps: expected at least 2, got {steps}")
    open_folder(options.out)
    context = make_context(options, subjects, steps, device)
    request = dict(
        title=title, stages=[{**one, "steps": steps} for one in full], full_stages=full, subjects=subjects, space=space,
        runs=options.runs, minutes=options.minutes, confidence=options.confidence, two_priors=two_priors,
    )  # fmt: skip
    return carry_out(options, context, request, given)


def carry_out(options: argparse.Namespace, context: Any, request: dict[str, Any], given: dict[str, Any]) -> int:
    """Searches, writes and says what was found."""
    import torch

    from hash3d_cuda.cli.compare import text_table
    from hash3d_cuda.tune import Request, report, tune
    from hash3d_cuda.tune.search import INTERRUPTED

    torch.set_num_threads(1)  # as in reproduce: two runs of one thread each disturb one another less
    measure = find_measure(options, context, request["subjects"])
    with StepBar(options.quiet) as bar:
        content = tune(replace(context, on_step=bar.step), Request(**request, measure=measure), bar.told)
    command = shlex.join(["hash3d", *sys.argv[1:]])
    content = report.write(content, options.out, command, context.prior.name, given)
    if not options.quiet:
        print(text_table(list(report.text_rows(content))))
        print("\n".join(report.sentences(content)))
        print(f"wrote {options.out / report.MARKDOWN}")
    if content["ended"] == INTERRUPTED:
        print("hash3d: interrupted; what is done is kept, the same command goes on", file=sys.stderr)
        return 1
    if content["chosen"] is None:
        raise RuntimeError(f"tune: no setting was faster within the bound ({measure.text}); see {options.out}/tune.md")
    return 0


def check_search(options: argparse.Namespace) -> None:
    """What cannot be searched so is said before anything is loaded."""
    from hash3d_cuda.checks import check_int, check_real

    usage(check_int, "runs", options.runs, 2, 10**6)
    usage(check_real, "confidence", options.confidence, 0.0, 1.0)
    for name in ("minutes", "min_agreement", "max_loss"):
        if getattr(options, name) is not None:
            usage(check_real, name, getattr(options, name), 0.0)
    if options.max_loss is not None and options.measure == "agreement":
        raise UsageError("--max-loss: expected none with --measure agreement; give --min-agreement")
    if options.min_agreement is not None and options.measure not in (None, "agreement"):
        raise UsageError(f"--min-agreement: expected none with --measure {options.measure}; give --max-loss")
    if options.recipe_scale is not None and options.recipe is None:
        raise UsageError("--recipe-scale goes with --recipe; give one, or leave it away")
    if options.elevation is not None or options.azimuth is not None:
        raise UsageError("--elevation and --azimuth: pictures are tuned on from estimated poses; leave them away")
    for subject in options.subjects:
        check_subject(subject)


def steps_checked(steps: Any) -> int:
    """SDS iterations of each stage."""
    from hash3d_cuda.checks import check_int

    return check_int("steps", steps, 1, 10**6)


def find_stages(options: argparse.Namespace, given: dict[str, Any]) -> tuple[str, bool, str, list[dict[str, Any]]]:
    """Title, whether two priors are asked, what it starts from, and each stage's settings with a whole run's steps."""
    from hash3d_cuda.cli.options import prove
    from hash3d_cuda.cli.recipe import is_own
    from hash3d_cuda.sds.recipes import load_recipe
    from hash3d_cuda.sds.settings import GenerateSettings

    if options.recipe is None:
        settings = [usage(GenerateSettings.from_dict, given)]
        found: tuple[str, bool, str] = ("generate", False, "either")
    else:
        recipe = usage(load_recipe, options.recipe)
        scale = options.recipe_scale or ("small" if is_own(options.prior) else "paper")
        settings = usage(recipe.settings, scale, **given)
        found = (f"recipe {recipe.title}", recipe.two_priors, recipe.kind)
        if recipe.two_priors and not is_own(options.prior):
            raise UsageError(f"--recipe {recipe.name} asks two priors, which tune does with the shipped prior alone")
    for one in settings:
        prove(one)
    return *found, [one.as_dict() for one in settings]


def find_subjects(options: argparse.Namespace, kind: str) -> list[tuple[str, str]]:
    """(subject, kind) of each object: a recipe that starts from a picture takes the bundled one of a name."""
    from hash3d_cuda.cli.recipe import is_own

    subjects = list(dict.fromkeys(options.subjects)) or (list(OBJECTS) if is_own(options.prior) else [])
    if not subjects:
        raise UsageError("tune: give an IMAGE or a NAME: nothing is known of what --prior takes")
    found = []
    for subject in subjects:
        picture = looks_like_path(subject)
        if picture and kind == "text":
            raise UsageError(f"--recipe {options.recipe} takes a name or prompt, got the picture {subject!r}")
        if kind == "image" and not picture and not is_own(options.prior):
            raise UsageError(f"--recipe {options.recipe} takes a picture file, got {subject!r}")
        found.append((subject, "file" if picture else "picture" if kind == "image" else "name"))
    return found


def make_context(options: argparse.Namespace, subjects: list[tuple[str, str]], steps: int, device: str) -> Any:
    """What all units share; the prior is loaded and every subject resolved, so that what is wrong is said now."""
    from hash3d_cuda.checks import check_device, check_int
    from hash3d_cuda.prior.ground_truth import example_inputs
    from hash3d_cuda.tune.race import TuneContext, find_subject

    seed = usage(check_int, "seed", 0 if options.seed is None else options.seed, 0)
    where = str(usage(check_device, "device", device))
    names = tuple(subject for subject, _ in subjects)
    context = TuneContext(options.out, False, names, steps, seed, options.prior, where, encoder=options.encoder)
    for subject, kind in subjects:
        if kind == "picture" and subject not in example_inputs():
            raise UsageError(f"subject: no bundled picture of {subject!r}; see hash3d info --examples")
        find_subject(context.prior, subject, kind)
    return context


def find_measure(options: argparse.Namespace, context: Any, subjects: list[tuple[str, str]]) -> Any:
    """The measure that is asked for, or the one that these subjects allow."""
    from hash3d_cuda.perceptual import DISTANCES
    from hash3d_cuda.sds.metrics import known_truth
    from hash3d_cuda.tune.measure import make_measure
    from hash3d_cuda.tune.race import find_subject

    prior = context.prior
    asked = [find_subject(prior, subject, kind) for subject, kind in subjects]
    truth = all(known_truth(one, prior.image_size) is not None for one in asked)
    name = options.measure or ("agreement" if options.min_agreement is not None else None)
    if name in ("psnr", "ssim", *DISTANCES) and not truth:
        raise UsageError(f"--measure {name}: the true views of some subject are not known; give --measure agreement")
    check_score(name)
    measure = usage(make_measure, name, options.max_loss if name != "agreement" else options.min_agreement, truth)
    if measure.name == "agreement" and options.max_loss is not None:
        raise UsageError("--max-loss: no true views to lose against; give --min-agreement")
    return measure


def check_score(name: str | None) -> None:
    """Refuses a score that there is not, before any run."""
    from hash3d_cuda.perceptual import available
    from hash3d_cuda.tune.measure import BOUNDS

    if name is None or name in BOUNDS:
        return
    missing = available()
    known = missing.get(
        name.removesuffix(", prompt"), "expected psnr, ssim, agreement, or one of " + ", ".join(missing)
    )
    if known is not None:
        raise UsageError(f"--measure {name}: {known}")


class StepBar:
    """A bar over the SDS steps of all runs, with the time left; silent when quiet."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self._bar: Any = None

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def told(self, key: str, steps: int, left: int) -> None:
        """Shows what is next, and how many steps it and what comes after it have."""
        if self.quiet:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=0, unit="step", mininterval=0.5 if sys.stderr.isatty() else 30.0)
        self._bar.set_description(key, refresh=False)
        self._bar.total = self._bar.n + steps + left
        self._bar.refresh()

    @property
    def step(self) -> Callable[[], None] | None:
        """To be called after every step."""
        return None if self.quiet else lambda: self._bar.update() if self._bar is not None else None
