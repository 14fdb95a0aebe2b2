"""The options that generate and compare share, and how they become a subject and settings."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from hash3d_cuda.cli.main import UsageError

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options whose defaults are the settings' own, so that --resume can tell what was given."""
    text = parser.add_argument_group("what and with which prior")
    text.add_argument("--prior", metavar="DIR_OR_HUB_ID", help="diffusers weights instead of the shipped prior")
    text.add_argument(
        "--elevation", type=float, metavar="DEG", help="where the picture was taken from (default: estimated)"
    )
    text.add_argument("--azimuth", type=float, metavar="DEG", help="likewise; 0 is the object's front")
    run = parser.add_argument_group("score distillation")
    run.add_argument("--steps", type=int, help="iterations (default 400)")
    run.add_argument(
        "--views-per-step",
        type=int,
        metavar="N",
        help="views rendered and denoised per iteration (default 2)",
    )
    run.add_argument("--scene", choices=("voxels", "gaussians"), help="voxel radiance grid (default) or 3D Gaussians")
    run.add_argument("--scene-size", type=int, metavar="N", help="voxels per side, or number of Gaussians")
    run.add_argument("--schedule", choices=("annealed", "uniform"), help="timesteps: annealed (default) or uniform")
    run.add_argument("--guidance-scale", type=float, metavar="S", help="classifier-free guidance (default 2)")
    run.add_argument("--seed", type=int, help="everything random follows from it (default 0)")
    run.add_argument("--device", help='"cpu" (default) or "cuda"')
    cache = parser.add_argument_group("cache")
    cache.add_argument("--eta", type=float, help="probability of trying a retrieval, 0 to 1")
    cache.add_argument("--position", type=int, metavar="K", help="up-resnets that still run on a hit (default 2)")
    cache.add_argument(
        "--grids", help='"paper", or cell sizes elevation,azimuth,radius,timestep: "10,10,.1,10;30,30,.2,100"'
    )
    cache.add_argument("--memory-budget", metavar="BYTES", help='memory of the table, such as "256MiB" (default)')
    output = parser.add_argument_group("output")
    output.add_argument("--turntable-frames", type=int, metavar="N", help="frames of the turn (default 48)")
    output.add_argument("--turntable-size", type=int, metavar="PIXELS", help="its width and height (default 192)")
    output.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="between checkpoints (default 100)")
    output.add_argument("--quiet", action="store_true", help="no progress bar, no summary")


def given_settings(options: argparse.Namespace, **defaults: Any) -> dict[str, Any]:
    """The settings that the command line names, over ``defaults``; grids parsed."""
    from hash3d_cuda.sds.settings import GenerateSettings, parse_grids

    names = {field.name for field in fields(GenerateSettings)}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    if "grids" in given:
        given["grids"] = usage(parse_grids, given["grids"])
    return {**defaults, **given}


def usage(make: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls ``make``; what it finds wrong with its arguments is the user's usage."""
    try:
        return make(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def default_folder(subject: str, ending: str = "") -> Path:
    """Where results go without --out: ``hash3d-<subject>`` in the current folder."""
    stem = Path(subject).stem if looks_like_path(subject) else subject
    slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:60] or "object"
    return Path(f"hash3d-{slug}{ending}")


def looks_like_path(text: str) -> bool:
    """Whether a subject means a picture file rather than a name or prompt."""
    return Path(text).exists() or os.sep in text or text.lower().endswith(PICTURE_ENDINGS)


def load_subject(options: argparse.Namespace, device: str) -> tuple[Any, Any]:
    """The prior and the subject that the command line names."""
    if looks_like_path(options.subject):
        from hash3d_cuda.prior.pictures import open_picture

        content: Any = open_picture(options.subject)  # first: a bad file should not wait for the weights
    elif options.elevation is not None or options.azimuth is not None:
        raise UsageError("--elevation and --azimuth describe a picture, but the subject is a name; leave them away")
    else:
        content = options.subject
    from hash3d_cuda.prior import load_prior

    prior = load_prior(options.prior, device=device)
    return prior, prior.resolve(content, elevation=options.elevation, azimuth=options.azimuth)
