"""The options that generate and compare share, and how they become a subject and settings."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hash3d_cuda.cli.main import UsageError

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
LARGEST_GRID = 512  # voxels per side, the most that make_scene takes
# Options of the anchored sampler.
ANCHORED = ("reuse", "anchors", "jitter", "fresh_power", "first_fresh", "fresh_until")
GRIDS = {"voxels": (4, LARGEST_GRID), "mesh": (8, 256)}  # corners per side


def add_run_options(parser: argparse.ArgumentParser, outputs: bool = True) -> None:
    """Options whose defaults are the settings' own, so that --resume can tell what was given; without ``outputs``,
    those of what one run writes are left out."""
    text = parser.add_argument_group("what and with which prior")
    text.add_argument("--prior", metavar="DIR_OR_HUB_ID", help="diffusers weights instead of the shipped prior")
    text.add_argument(
        "--encoder", metavar="DIR", help="a light encoder (TAESD, diffusers' AutoencoderTiny) instead of --prior's own"
    )
    text.add_argument(
        "--elevation", type=float, metavar="DEG", help="where the picture was taken from (default: estimated)"
    )
    text.add_argument("--azimuth", type=float, metavar="DEG", help="likewise; 0 is the object's front")
    run = parser.add_argument_group("score distillation")
    run.add_argument("--settings", metavar="FILE", help="settings in TOML (hash3d tune writes them); options go first")
    run.add_argument("--steps", type=int, help="iterations (default 400)")
    run.add_argument(
        "--views-per-step",
        type=int,
        metavar="N",
        help="views rendered and denoised per iteration (default 2)",
    )
    run.add_argument(
        "--scene",
        choices=("voxels", "gaussians", "mesh"),
        help="voxel radiance grid (default), 3D Gaussians, or a mesh",
    )
    run.add_argument(
        "--scene-size", type=int, metavar="N", help="voxels per side (a mesh's: of its grid), or number of Gaussians"
    )
    run.add_argument("--schedule", choices=("annealed", "uniform"), help="timesteps: annealed (default) or uniform")
    run.add_argument("--guidance-scale", type=float, metavar="S", help="classifier-free guidance (default 2)")
    run.add_argument("--seed", type=int, help="everything random follows from it (default 0)")
    run.add_argument("--device", help='"cpu" (default) or "cuda"')
    run.add_argument(
        "--compile",
        metavar="PARTS",
        help='parts under torch.compile, commas between: "scene" (voxels), "encoder", "unet"',
    )
    cache = parser.add_argument_group("cache")
    cache.add_argument("--eta", type=float, help="probability of trying a retrieval, 0 to 1")
    cache.add_argument("--position", type=int, metavar="K", help="up-resnets that still run on a hit (default 2)")
    cache.add_argument(
        "--grids",
        help='"paper" (default); "pose": cells narrow in pose and open in timestep; "anchor": one such; or cell sizes '
        'elevation,azimuth,radius,timestep: "10,10,.1,10;30,30,.2,100"',
    )
    cache.add_argument("--memory-budget", metavar="BYTES", help='memory of the table, such as "256MiB" (default)')
    cache.add_argument(
        "--decide", choices=("host", "device"), help="device: on a GPU, in one CUDA graph per U-Net call (default host)"
    )
    add_feature_dtype(cache)
    add_host_budget(cache)
    add_reuse_options(parser)
    output = parser.add_argument_group("output")
    if outputs:
        output.add_argument("--turntable-frames", type=int, metavar="N", help="frames of the turn (default 48)")
        output.add_argument("--turntable-size", type=int, metavar="PIXELS", help="its width and height (default 192)")
        output.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="between checkpoints (default 100)")
    output.add_argument("--quiet", action="store_true", help="no progress bar, no summary")


def add_feature_dtype(group: Any) -> None:
    """``--feature-dtype``, which plan has too."""
    names = ("float32", "float16", "bfloat16", "int8", "fp8")  # DTYPE_NAMES, whose module --help does not wait for
    group.add_argument(
        "--feature-dtype", choices=names, help="what entries are stored in (default: what the U-Net computes in)"
    )


def add_host_budget(group: Any) -> None:
    """``--host-budget``, which plan has too."""
    group.add_argument(
        "--host-budget",
        metavar="BYTES",
        help='host memory for entries that left the table, such as "32GiB" (default: none)',
    )


def add_reuse_options(parser: argparse.ArgumentParser) -> None:
    """What makes more views hit, and what keeps entries from being served too long."""
    group = parser.add_argument_group("more reuse (see docs/reuse.md)")
    group.add_argument(
        "--preset", choices=("fast",), help="fast: --sampler anchored --eta 1 --grids anchor --position 4"
    )
    group.add_argument(
        "--sampler", choices=("uniform", "anchored"), help="poses: uniform (default), or most return to live entries"
    )
    group.add_argument("--reuse", type=float, metavar="SHARE", help="anchored: share of the views that return")
    group.add_argument("--anchors", type=int, metavar="N", help="anchored: how many views can be returned to")
    group.add_argument("--jitter", type=float, metavar="SHARE", help="anchored: how far in its cell a view may move")
    group.add_argument(
        "--fresh-power", type=float, metavar="P", help="anchored: 1 spreads fresh views evenly, more saves them"
    )
    group.add_argument("--first-fresh", type=int, metavar="N", help="anchored: views at the start that are all fresh")
    group.add_argument(
        "--fresh-until", type=float, metavar="SHARE", help="anchored: of the run, after which no view is fresh"
    )
    group.add_argument("--max-age", type=int, metavar="STEPS", help="an entry serves so many steps (default: any)")
    group.add_argument(
        "--max-change",
        type=float,
        metavar="SHARE",
        help="serve only where the shallow features changed at most so much",
    )
    group.add_argument("--target-x", type=float, metavar="SHARE", help="let eta follow: serve this share of the views")
    group.add_argument(
        "--target-quality", type=float, metavar="Q", help="let eta follow: a relative error of 1 - Q on average"
    )
    group.add_argument(
        "--audit", type=float, metavar="SHARE", help="steps that measure it (default 0.05 with --target-quality)"
    )


def given_settings(options: argparse.Namespace, **defaults: Any) -> dict[str, Any]:
    """The settings that the command line names, over its --preset, over its --settings file, over ``defaults``; grids
    parsed."""
    from hash3d_cuda.sds.settings import PRESETS, GenerateSettings, parse_grids

    names = {field.name for field in fields(GenerateSettings)}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    if "grids" in given:
        given["grids"] = usage(parse_grids, given["grids"])
    given = {**(PRESETS[options.preset] if options.preset is not None else {}), **given}
    kept: dict[str, Any] = {}
    if options.settings is not None:
        from hash3d_cuda.sds.settings_file import read_settings

        kept = usage(read_settings, options.settings)
        for one, other in (("capacity", "memory_budget"), ("memory_budget", "capacity")):
            if one in given:  # the two exclude one another, and the command line goes first
                kept.pop(other, None)
    settings = {**defaults, **kept, **given}
    check_anchored(options, settings)
    return settings


def check_anchored(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Options of the anchored sampler would say nothing under another one. A recipe, or what is varied, may set it."""
    if settings.get("sampler") == "anchored" or getattr(options, "recipe", None) or getattr(options, "vary", None):
        return
    for name in ANCHORED:
        if getattr(options, name, None) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option}: expected --sampler anchored, or --preset fast, beside it, got uniform views; add it, or "
                f"leave {option} away"
            )


def run_settings(make: Any, *args: Any, **kwargs: Any) -> Any:
    """The settings that ``make`` gives; what is wrong with them is said before anything is loaded or written."""
    settings = usage(make, *args, **kwargs)
    prove(settings)
    return settings


def prove(settings: Any) -> None:
    """Refuses settings that no scene or table can be made from."""
    usage(check_scene_size, settings)
    if settings.cache:
        with budget_in_options():
            check_budget(settings)


def check_together(settings: Any, ranks: Any) -> None:
    """Refuses settings of one object that ``ranks`` (:class:`hash3d_cuda.distributed.Ranks`) cannot make together."""
    from hash3d_cuda.sds.attach import cache_config

    usage(ranks.check_views, settings.views_per_step)
    if settings.cache:
        usage(cache_config, settings, group=ranks.group)


def check_scene_size(settings: Any) -> None:
    """Refuses a grid that cannot be made."""
    from hash3d_cuda.checks import check_int

    if settings.scene in GRIDS and settings.scene_size is not None:
        check_int("scene_size", settings.scene_size, *GRIDS[settings.scene])


def check_budget(settings: Any) -> None:
    """Refuses options of the cache that do not go together, and memory in which not even an entry of one number fits;
    how large entries are, the first forward shows."""
    import torch

    from hash3d_cuda.options import TableOptions
    from hash3d_cuda.sds.attach import cache_config

    arguments = usage(cache_config, settings).table_arguments(torch.float16, torch.device("cpu"))
    TableOptions.build((1,), (1,), **arguments).resolve_capacity()


@contextlib.contextmanager
def budget_in_options() -> Iterator[None]:
    """While entered, a memory budget that is too small is wrong usage, with a remedy that the command line has."""
    from hash3d_cuda.options import BudgetTooSmall

    try:
        yield
    except BudgetTooSmall as error:
        raise UsageError(f"{error.problem}; raise --memory-budget or give fewer --grids") from error


@contextlib.contextmanager
def run_into(out: Path, *below: str) -> Iterator[None]:
    """While entered, a run may fail: folders that it made in ``out``, and ``out`` itself, do not stay when empty."""
    made = [path for path in (*(out / name for name in below), out, *out.parents) if not os.path.lexists(path)]
    try:
        with budget_in_options():
            yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def to_folder(text: str) -> Path:
    """The type of an option that names a folder; nothing at all would mean the current one."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a folder, got {text!r}; name one, the current one is '.'")
    return Path(text)


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
    """Whether a subject means a picture file rather than a name or prompt. A folder may well be called as an object."""
    return os.path.isfile(text) or os.sep in text or text.lower().endswith(PICTURE_ENDINGS)


def check_subject(text: str) -> None:
    """Refuses no subject at all."""
    if not text.strip():
        raise UsageError(f"subject: expected a picture file or a name, got {text!r}; see hash3d info --objects")


def open_subject(options: argparse.Namespace) -> Any:
    """The picture that the command line names, opened, or the name as it is."""
    content = options.subject
    if looks_like_path(content):
        if os.path.isdir(content):
            raise ValueError(f"subject: {content!r} is a folder; give a picture file or a name")
        from hash3d_cuda.prior.pictures import open_picture

        return open_picture(content)
    if options.elevation is not None or options.azimuth is not None:
        raise UsageError("--elevation and --azimuth describe a picture, but the subject is a name; leave them away")
    return content


def load_subject(options: argparse.Namespace, device: str, load: Any = None) -> tuple[Any, Any]:
    """The prior and the subject that the command line names; ``load`` takes the place of ``load_prior``."""
    content = open_subject(options)  # first: a bad file should not wait for the weights
    from hash3d_cuda.prior import load_prior
    from hash3d_cuda.prior.base import UnknownSubject

    prior = (load or load_prior)(options.prior, device=device, encoder=options.encoder)
    try:
        return prior, prior.resolve(content, elevation=options.elevation, azimuth=options.azimuth)
    except UnknownSubject:
        if isinstance(content, str) and os.path.isdir(content):
            raise ValueError(
                f"subject: {content!r} is a folder; give a picture file or a name that the prior knows (hash3d info "
                "--objects)"
            ) from None
        raise
