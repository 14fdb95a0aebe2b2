"""``hash3d generate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hash3d_cuda.cli.main import UsageError
from hash3d_cuda.cli.options import (
    add_run_options,
    check_subject,
    default_folder,
    given_settings,
    load_subject,
    run_into,
    run_settings,
    to_folder,
)
from hash3d_cuda.cli.progress import Bar

EPILOG = """The subject is a picture when a file of that name exists or it looks like a path, else a name
(`hash3d info --objects` lists what the shipped prior knows; `hash3d info --examples` lists bundled pictures).

DIR gets turntable.webp (and .mp4 when imageio-ffmpeg is installed), views/, contact-sheet.png, scene.ply,
mesh.glb, metrics.json and report.html. A finished run in DIR is replaced; files of these names that hash3d
did not write are refused. Ctrl-C saves what there is, and --resume goes on from there.

--grids pose stands for 5,5,.5,1000;7,7,.5,1000;10,10,.5,1000: cells narrow in pose and open in timestep. Under
the annealed schedule no timestep comes twice, so the paper's cells of 10 to 30 timesteps forget a view after
some steps.
"""

REQUEST = ("subject", "prior", "elevation", "azimuth")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fills the subcommand's parser."""
    parser.epilog = EPILOG
    parser.add_argument("subject", nargs="?", metavar="IMAGE|NAME", help="a picture file, or a name or prompt")
    parser.add_argument(
        "--out", type=to_folder, metavar="DIR", help="folder for what is written (default hash3d-SUBJECT)"
    )
    add_run_options(parser)
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


def run(options: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    if options.subject is None and not options.resume:
        raise UsageError("generate: give an IMAGE or a NAME (see hash3d info --objects)")
    if options.subject is not None:
        check_subject(options.subject)
    if options.out is None:
        if options.subject is None:
            raise UsageError("generate: --resume needs the --out of the unfinished run")
        options.out = default_folder(options.subject)
    from hash3d_cuda.sds.loop import generate
    from hash3d_cuda.sds.settings import GenerateSettings

    given = given_settings(options)
    recorded = recall(options) if options.resume else {}
    settings = run_settings(GenerateSettings.from_dict, {**recorded, **given})
    prior, subject = load_subject(options, settings.device)
    note = {name: getattr(options, name) for name in REQUEST}
    with run_into(options.out), Bar(subject.label, options.quiet, settings.cache) as bar:
        result = generate(
            prior,
            subject,
            settings,
            options.out,
            progress=bar,
            resume=options.resume,
            force=options.force,
            note=note,
        )
    if result.interrupted:
        print(f"hash3d: interrupted at step {result.metrics['steps']}; resume with --resume", file=sys.stderr)
        return 1
    if not options.quiet:
        print(summary(result.metrics, options.out))
    return 0


def recall(options: argparse.Namespace) -> dict[str, Any]:
    """The unfinished run's settings; what it was asked for goes into ``options`` where nothing was given."""
    from hash3d_cuda.sds.checkpoint import find_checkpoint, read_about

    path = find_checkpoint(options.out)
    if path is None:
        raise ValueError(f"resume: no unfinished run in {str(options.out)!r}; leave --resume away to start one")
    about = read_about(path)
    for name in REQUEST:
        if getattr(options, name) is None:
            setattr(options, name, about["note"].get(name))
    return about["settings"]


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
    if metrics["quality"]:
        quality = metrics["quality"]
        lines.append(f"against the true object, 16 views: PSNR {quality['psnr']:.2f} dB, SSIM {quality['ssim']:.3f}")
    return "\n".join([*lines, *metrics["notes"], f"wrote {out / 'report.html'}"])
