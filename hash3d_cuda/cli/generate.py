"""``hash3d generate``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hash3d_cuda.cli.main import UsageError
from hash3d_cuda.cli.on_ray import add_ray_options
from hash3d_cuda.cli.options import (
    add_run_options,
    check_subject,
    check_together,
    default_folder,
    given_settings,
    load_subject,
    run_into,
    run_settings,
    to_folder,
)
from hash3d_cuda.cli.progress import Bar
from hash3d_cuda.cli.resume import REQUEST, recall
from hash3d_cuda.torchrun import own_device, own_rank, restarted, world_size

EPILOG = """The subject is a picture when a file of that name exists or it looks like a path, else a name
(`hash3d info --objects` lists what the shipped prior knows; `hash3d info --examples` lists bundled pictures).

DIR gets turntable.webp (and .mp4 when imageio-ffmpeg is installed), views/, contact-sheet.png, scene.ply,
mesh.glb, metrics.json and report.html. A finished run in DIR is replaced; files of these names that hash3d
did not write are refused. Ctrl-C saves what there is, and --resume goes on from there.

Recipes are the systems of the paper: dreamgaussian, zero123-nerf, zero123-gs and magic123 start from a picture;
dreamfusion, latent-nerf, sds-gs, magic3d, gaussian-dreamer and fantasia3d from a name or prompt. The shipped prior
runs them small, --prior with the paper's settings; other options given go for every stage. A first stage of two is
written to DIR/stage-1.

--grids pose stands for 5,5,.5,1000;7,7,.5,1000;10,10,.5,1000: cells narrow in pose and open in timestep. Under
the annealed schedule no timestep comes twice, so the paper's cells of 10 to 30 timesteps forget a view after
some steps.

With --jobs, --out (default hash3d-FILE) gets one folder per line of FILE. A line holds "image" or "prompt", "out" (the
folder's name), and any options by their names; those given on the command line are for every job. The same command
again goes on: what is done is left alone. Jobs that were begun with other fields or options are refused, unless --keep
or --overwrite says what becomes of them. Started several times, on one machine or many that see --out, or by torchrun
or --ray, the processes share the jobs. Without --jobs, torchrun's processes share every step's views of one object.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fills the subcommand's parser."""
    parser.epilog = EPILOG
    parser.add_argument("subject", nargs="?", metavar="IMAGE|NAME", help="a picture file, or a name or prompt")
    parser.add_argument(
        "--out", type=to_folder, metavar="DIR", help="folder for what is written (default hash3d-SUBJECT)"
    )
    add_run_options(parser)
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--recipe", metavar="NAME_OR_FILE", help="a system of the paper (below), or a file of settings")
    recipe.add_argument(
        "--recipe-scale", choices=("small", "paper"), help="small (default with the shipped prior) or paper"
    )
    recipe.add_argument(
        "--second-prior", metavar="DIR_OR_HUB_ID", help="the text prior that magic123 asks beside --prior"
    )
    recipe.add_argument("--prompt", help="what it is asked for (default with the shipped prior: the picture's name)")
    parser.add_argument("--no-cache", dest="cache", action="store_false", default=None, help="leave the U-Net alone")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="go on with the unfinished run in DIR, options as they were"
    )
    again.add_argument(
        "--force",
        action="store_true",
        help="start over although DIR holds an unfinished run; what is in the way of results and not hash3d's is "
        "renamed to NAME.kept",
    )
    many = parser.add_argument_group("several objects, several processes")
    many.add_argument("--jobs", type=Path, metavar="FILE", help="one JSON object per line: many objects (below)")
    many.add_argument(
        "--retries", type=int, default=2, metavar="N", help="further tries at a job that fails (default 2)"
    )
    many.add_argument(
        "--lease", type=float, default=60.0, metavar="SECONDS",
        help="silence after which a worker on another machine counts as dead (default 60)",
    )  # fmt: skip
    changed = many.add_mutually_exclusive_group()
    changed.add_argument(
        "--keep", action="store_true", help="leave jobs that are done with other options; begin others of these anew"
    )
    changed.add_argument("--overwrite", action="store_true", help="make jobs anew that were begun with other options")
    add_ray_options(many)
    many.add_argument(
        "--rank-timeout", type=float, default=300.0, metavar="SECONDS",
        help="how long the ranks of one object wait for each other (default 300)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    if options.jobs is not None:
        from hash3d_cuda.cli.jobs import run_jobs

        return run_jobs(options)
    for name in ("keep", "overwrite"):
        if getattr(options, name):
            raise UsageError(f"--{name} goes with --jobs; leave it away")
    if options.subject is None and not options.resume:
        raise UsageError("generate: give an IMAGE or a NAME (see hash3d info --objects)")
    if options.subject is not None:
        check_subject(options.subject)
    if options.out is None:
        if options.subject is None:
            raise UsageError("generate: --resume needs the --out of the unfinished run")
        options.out = default_folder(options.subject)
    if again := restarted():
        from hash3d_cuda.sds.finished import find_unfinished

        options.resume = options.subject is None or find_unfinished(options.out) is not None
    values = {**(recall(options) if options.resume else {}), **given_settings(options)}
    if world_size() > 1:
        values["device"] = own_device(str(values.get("device", "cpu")).partition(":")[0])
    from hash3d_cuda.distributed.launch import joined

    with joined(values.get("device", "cpu"), options.rank_timeout) as ranks:
        options.quiet = options.quiet or own_rank() > 0
        if ranks is not None:  # the rest is compared when it is known
            ranks.agree({name: getattr(options, name) for name in ("resume", "force", "recipe", "recipe_scale")})
        return conclude(make(options, values, Making(ranks=ranks, skip_finished=again)), options)


@dataclass(frozen=True)
class Making:
    """What surrounds the making of one object.

    Attributes:
        ranks: who shares it, or None.
        interrupt: an entered one, or None.
        progress: called after every step, in the place of a bar.
        load: takes the place of ``load_prior``.
        skip_finished: what is complete in the folder, with the same settings, is not made again.
        job: digest of the job that it is, or None.
    """

    ranks: Any = None
    interrupt: Any = None
    progress: Any = None
    load: Any = None
    skip_finished: bool = False
    job: str | None = None

    def check(self, *stages: Any) -> None:
        """Refuses settings that the ranks cannot share; raises UsageError."""
        for settings in stages if self.ranks is not None else ():
            check_together(settings, self.ranks)

    def note(self, options: argparse.Namespace) -> dict[str, Any]:
        """What a checkpoint keeps beside the settings."""
        return {**{name: getattr(options, name) for name in REQUEST}, **({"job": self.job} if self.job else {})}

    def finished(self, options: argparse.Namespace, settings: Any, recipe: str | None = None) -> Any:
        """The result that is there already, without its scene and pictures, or None."""
        from hash3d_cuda.sds.finished import finished_metrics

        metrics = finished_metrics(options.out, settings, recipe, self.job) if self.skip_finished else None
        if metrics is None:
            return None
        import torch

        from hash3d_cuda.sds.loop import Result

        return Result(options.out, None, torch.empty(0), torch.empty(0), dict(metrics), interrupted=False)


def make(options: argparse.Namespace, values: dict[str, Any], making: Making) -> Any:
    """Makes the object that ``options`` ask for; returns a :class:`hash3d_cuda.sds.loop.Result`."""
    if options.recipe is not None:
        from hash3d_cuda.cli.recipe import make_recipe

        return make_recipe(options, values, making)
    settings = plan_run(options, values)
    making.check(settings)
    if (done := making.finished(options, settings)) is not None:
        return done
    from hash3d_cuda.sds.loop import generate

    prior, subject = load_subject(options, settings.device, making.load)
    note = making.note(options)
    with run_into(options.out), Bar(subject.label, options.quiet, settings.cache) as bar:
        return generate(
            prior, subject, settings, options.out, progress=making.progress or bar, resume=options.resume,
            force=options.force, note=note, interrupt=making.interrupt, ranks=making.ranks,
        )  # fmt: skip


def plan_run(options: argparse.Namespace, values: dict[str, Any]) -> Any:
    """The settings of a run without a recipe, proved."""
    refuse_without_recipe(options)
    from hash3d_cuda.sds.settings import GenerateSettings

    return run_settings(GenerateSettings.from_dict, values)


def conclude(result: Any, options: argparse.Namespace) -> int:
    """Says how a run ended; returns the exit code."""
    if own_rank() > 0:
        return int(result.interrupted)
    if result.interrupted:
        print(f"hash3d: interrupted at step {result.metrics['steps']}; resume with --resume", file=sys.stderr)
        return 1
    if not options.quiet:
        print(summary(result.metrics, options.out))
    return 0


def refuse_without_recipe(options: argparse.Namespace) -> None:
    """Options that only a recipe has a use for are wrong usage without one."""
    for name in ("recipe_scale", "second_prior", "prompt"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} goes with --recipe; give one, or leave it away")


def summary(metrics: dict[str, Any], out: Path) -> str:
    """What a finished run did, in a few lines."""
    from hash3d_cuda.sds.html import NAMES, duration

    time, cache = metrics["time"], metrics["cache"]
    split = ", ".join(f"{NAMES[name]} {s / time['total_s']:.0%}" for name, s in time["split_s"].items() if s > 0)
    lines = [f"{metrics['subject']['label']}: {metrics['steps']} steps in {duration(time['total_s'])} ({split})"]
    if cache["enabled"]:
        lines.append(
            f"cache: {cache['hits']} hits, {cache['misses']} misses, {cache['bypasses']} bypasses; hit rate "
            f"{cache['hit_rate']:.1%}, x = {cache['x']:.1%} of all views"
        )
    for moved in metrics.get("control") or ():
        audited = f"; {moved['audited']} views audited" if moved["audit"] else ""
        error = "" if moved["mean_error"] is None else f", mean relative error {moved['mean_error']:.1%}"
        lines.append(f"eta: {moved['eta']:.2f} at the end{audited}{error}")
    if (estimate := time["without_cache"]) is not None:
        lines.append(
            f"step: about {estimate['speed_up']:.2f}x as fast as without the cache, by this run's own full passes; "
            f"its x allows {estimate['bound_step']:.2f}x at most (hash3d compare measures)"
        )
    if metrics["quality"]:
        quality = metrics["quality"]
        lines.append(f"against the true object, 16 views: PSNR {quality['psnr']:.2f} dB, SSIM {quality['ssim']:.3f}")
    return "\n".join([*lines, *metrics["notes"], f"wrote {out / 'report.html'}"])
