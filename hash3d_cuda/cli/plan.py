"""``hash3d plan``."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from hash3d_cuda.cli.main import UsageError
from hash3d_cuda.cli.options import add_feature_dtype, add_host_budget, budget_in_options, run_into, to_folder, usage

EPILOG = """Sends the views of a run through the real table, with empty features, and prints the hit rate by
grid, the memory, and the largest speed-up of the U-Net and of a step. No GPU, no weights.

examples:
  hash3d plan dreamfusion --vae KL-VAE
  hash3d plan dreamfusion --eta 0.5 --memory-budget 16GiB --search --out planned
  hash3d plan --recipe dreamgaussian --scale paper --unet zero123
  hash3d plan --elevation -10,60 --radius 1.8,2.2 --timesteps 20,980 --steps 2000 --views-per-step 4
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fills the subcommand's parser."""
    parser.epilog = EPILOG
    what = parser.add_argument_group("which views")
    what.add_argument(
        "system", nargs="?", metavar="SYSTEM", help="dreamfusion (default), zero123, dreamgaussian, gaussian-dreamer"
    )
    what.add_argument("--recipe", metavar="NAME", help="a recipe, or its file, instead of a system")
    what.add_argument("--scale", choices=("small", "paper"), help="of the recipe (default small)")
    for name, meaning in (("elevation", "degrees"), ("azimuth", "degrees"), ("radius", "scene units")):
        what.add_argument(f"--{name}", metavar="LOW,HIGH", help=f"{meaning}, in the place of the system's")
    what.add_argument("--timesteps", metavar="LOW,HIGH", help="the same for diffusion timesteps")
    what.add_argument("--schedule", choices=("uniform", "annealed"), help="how timesteps are drawn")
    what.add_argument("--steps", type=int, help="iterations")
    what.add_argument("--views-per-step", type=int, metavar="N", help="items of the U-Net's batch")
    what.add_argument("--seed", type=int, help="of views and coin (default 0)")
    what.add_argument("--runs", type=int, default=1, metavar="N", help="also the hit rate over N seeds (default 1)")
    cache = parser.add_argument_group("cache")
    cache.add_argument("--eta", type=float, help="probability of trying a retrieval (default 0.1)")
    cache.add_argument("--grids", help='"paper" (default), "pose", "anchor", or cell sizes, as for generate')
    cache.add_argument(
        "--indexing",
        choices=("ours", "released", "released-order"),
        help="released: as the paper's released code does; released-order: only the timestep hashed first, as there",
    )
    cache.add_argument("--position", type=int, metavar="K", help="up-resnets that still run on a hit (default 2)")
    cache.add_argument("--num-buckets", type=int, metavar="N", help="buckets of each grid (default 100003)")
    cache.add_argument("--queue-length", type=int, metavar="Q", help="entries of a bucket (default 3)")
    cache.add_argument("--match", choices=("cell", "bucket"), help="what a candidate must share (default cell)")
    cache.add_argument("--memory-budget", metavar="BYTES", help='such as "2GiB" (default), or "unlimited"')
    add_host_budget(cache)
    add_feature_dtype(cache)
    cost = parser.add_argument_group("cost")
    cost.add_argument("--unet", help="sd15, sd21, sd21-768, zero123, sdxl or shipped (default: the system's)")
    cost.add_argument("--vae", help="encoder that runs in every step: KL-VAE, TAESD or none (default)")
    cost.add_argument("--other-share", type=float, metavar="U", help="a step's share that is neither (default 0)")
    cost.add_argument("--search", action="store_true", help="find the best setting under the budget for several etas")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=to_folder, metavar="DIR", help="write plan.json, plan.md and plan.png there")
    output.add_argument("--json", action="store_true", help="print JSON instead of the table")


def run(options: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    from hash3d_cuda.plan import report

    check_one_source(options)
    plans = usage(make_plans, options)
    if options.out is not None:
        with run_into(options.out):
            report.write(plans, options.out)
    print(json.dumps(report.as_json(plans), indent=1) if options.json else text(plans))
    if options.out is not None and not options.json:
        print(f"wrote {options.out / 'plan.md'}")
    return 0


def make_plans(options: argparse.Namespace) -> list[Any]:
    """The plans that the command line asks for."""
    with budget_in_options():
        return recipe_plans(options) if options.recipe else range_plans(options)


def check_one_source(options: argparse.Namespace) -> None:
    """A recipe brings its own views."""
    if options.recipe is None:
        if options.scale is not None:
            raise UsageError("--scale: expected with --recipe only; leave it away")
        return
    ranges = ("system", "elevation", "azimuth", "radius", "timesteps", "schedule", "steps", "views_per_step")
    if given := [name for name in ranges if getattr(options, name) is not None]:
        raise UsageError(f"{given[0]}: expected none beside --recipe, which brings its own views; leave it away")


def recipe_plans(options: argparse.Namespace) -> list[Any]:
    """A plan per stage."""
    from hash3d_cuda.plan import plan_recipe

    return plan_recipe(options.recipe, options.scale or "small", setting_options(options), **plan_options(options))


def range_plans(options: argparse.Namespace) -> list[Any]:
    """One plan, of a system's ranges with what the command line replaces."""
    from hash3d_cuda.checks import check_choice
    from hash3d_cuda.plan import PRESET_UNETS, PRESETS, CacheSetting, plan

    name = options.system or "dreamfusion"
    check_choice("SYSTEM", name, tuple(PRESETS))
    given = {key: pair(key, value) for key in ("elevation", "azimuth", "radius") if (value := getattr(options, key))}
    if options.timesteps:
        given["t_low"], given["t_high"] = pair("timesteps", options.timesteps)
    for key in ("schedule", "steps", "views_per_step"):
        if getattr(options, key) is not None:
            given[key] = getattr(options, key)
    views = replace(PRESETS[name], **given)
    more = plan_options(options)
    more["unet"] = more["unet"] or PRESET_UNETS[name]
    title = name + (" with " + ", ".join(given) if given else "")
    return [plan(views, CacheSetting(**setting_options(options)), title=title, seed=options.seed or 0, **more)]


def setting_options(options: argparse.Namespace) -> dict[str, Any]:
    """The cache's options that the command line names."""
    from hash3d_cuda.plan import RELEASED_INDEXING, RELEASED_ORDER
    from hash3d_cuda.sds.settings import parse_grids

    found = dict({"released": RELEASED_INDEXING, "released-order": RELEASED_ORDER}.get(options.indexing, {}))
    names = (
        "eta", "position", "num_buckets", "queue_length", "match", "memory_budget", "host_budget", "feature_dtype",
        "seed",
    )  # fmt: skip
    found |= {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.grids is not None:
        found["grids"] = parse_grids(options.grids)
    return found


def plan_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`hash3d_cuda.plan.plan` beside views and setting."""
    other = options.other_share
    return dict(
        unet=options.unet, vae=options.vae or "none", other_share=0.0 if other is None else other,
        search=options.search, runs=options.runs,
    )  # fmt: skip


def pair(name: str, value: str) -> tuple[float, float]:
    """``"LOW,HIGH"`` as two numbers."""
    try:
        low, high = map(float, value.split(","))
    except ValueError:
        raise UsageError(f"{name}: expected two numbers LOW,HIGH, got {value!r}; try --{name}=-10,45") from None
    return low, high


def text(plans: list[Any]) -> str:
    """The tables for a terminal."""
    from hash3d_cuda.cli.compare import text_table
    from hash3d_cuda.plan.report import BEST_HEAD, NOTES, best_rows, rows

    pieces = []
    for plan in plans:
        table = rows(plan)
        width = max(len(name) for name, _ in table)
        pieces.append("\n".join([plan.title, *(f"  {name.ljust(width)}  {value}" for name, value in table)]))
        if plan.best:
            found = text_table([BEST_HEAD, *best_rows(plan)])
            pieces.append("the largest step bound of each eta, under the same budget:\n" + found)
    return "\n\n".join([*pieces, "\n".join(NOTES)])
