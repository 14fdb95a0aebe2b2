"""Tables 1 and 2: every system that the paper accelerates, without and with the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from hash3d_cuda.bounds import step_bound
from hash3d_cuda.reproduce import studies
from hash3d_cuda.reproduce.ablations import stretched
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.quality import scores
from hash3d_cuda.reproduce.summary import plot_bars, plus_minus, quality_cells, signed
from hash3d_cuda.reproduce.sweep import picture, resolve
from hash3d_cuda.sds.metrics import known_truth, time_metrics

ID = "tables-1-2"
TITLE = "Tables 1 and 2: every system without and with the cache"
# Minutes without and with, and the speed-up that the paper gives; one RTX A5000, some baselines from other papers.
PAPER = {
    "dreamgaussian": "2m 30s without, 4.0x, PSNR 16.202 -> 16.356",
    "zero123-nerf": "20m -> 7m, 3.3x, PSNR 17.773 -> 17.961",
    "zero123-gs": "6m -> 3m, 2.0x, PSNR 18.409 -> 18.616",
    "magic123": "120m -> 74m, 1.6x, PSNR 18.718 -> 18.631",
    "dreamfusion": "60m -> 40m, 1.5x, CLIP-G/14 0.407 -> 0.411",
    "latent-nerf": "30m -> 17m, 1.8x, CLIP-G/14 0.406 -> 0.406",
    "sds-gs": "78m -> 40m, 1.9x, CLIP-G/14 0.413 -> 0.402",
    "magic3d": "90m -> 60m, 1.5x, CLIP-G/14 0.399 -> 0.393",
    "gaussian-dreamer": "15m -> 10m, 1.5x, CLIP-G/14 0.412 -> 0.416",
}
MODELS = ("zero123", "sd21")  # of systems that start from a picture, and from a text
CACHES = ("none", "paper", "strong")
TITLES = {
    "none": "no cache", "paper": "cache, the recipe's own settings", "strong": f"cache, eta {studies.ETA}, stretched"
}  # fmt: skip
FULL_STEPS = 300  # of most recipes at small size; other context.steps shorten or lengthen each stage in proportion


def units(context: Context) -> list[Unit]:
    """One per recipe and object."""
    from hash3d_cuda.sds.recipes import RECIPES, load_recipe

    settings = {recipe: [one.as_dict() for one in load_recipe(recipe).settings(context.scale)] for recipe in RECIPES}
    scale = {} if context.scale == "small" else {"scale": context.scale}
    return [
        Unit(
            f"{recipe}, {name}", run_recipe, {"recipe": recipe, "subject": name, "steps": context.steps} | scale,
            len(CACHES) * studies.SECONDS_PER_STEP * context.steps, settings[recipe],
        )
        for recipe in RECIPES for name in context.objects
    ]  # fmt: skip


def run_recipe(context: Context, recipe: str, subject: str, steps: int, scale: str = "small") -> dict[str, Any]:
    """One object by one recipe, without a cache and with it; ``{"runs": {cache: figures}}``.

    At the small scale stages are shortened so that most recipes take ``steps``; at the paper's they stay as they are.
    """
    from hash3d_cuda.sds.recipes import load_recipe

    prior = context.prior
    loaded = load_recipe(recipe)
    loaded = with_settings(loaded, lambda s: {"steps": max(round(s.steps * steps / FULL_STEPS), 2)}, scale)
    asked = resolve(prior, subject, "picture" if loaded.kind == "image" else "name")
    found = {cache: run_once(context, loaded, asked, cache) for cache in CACHES}
    # One U-Net cut at one place: a run in which no step was served alone takes a hit's cost from the others.
    r = known_mean(figures["hit_cost_r"] for figures in found.values())
    for figures in found.values():
        figures |= against(figures, found["none"], r)
    return {"title": loaded.title, "kind": loaded.kind, "two_priors": loaded.two_priors, "runs": found}


def with_settings(recipe: Any, changes: Callable[[Any], dict[str, Any]], scale: str = "small") -> Any:
    """The recipe whose small scale is ``scale`` with ``changes`` of each stage's settings; the paper's stays whole."""
    stages = []
    for stage, settings in zip(recipe.stages, recipe.settings(scale), strict=True):
        changed = changes(settings) if scale == "small" else {}
        stages.append(replace(stage, scales={**stage.scales, "small": {**stage.scales[scale], **changed}}))
    return replace(recipe, stages=tuple(stages))


def run_once(context: Context, recipe: Any, asked: Any, cache: str) -> dict[str, Any]:
    """One run of all stages: quality of the result, seconds and what was served, summed over stages."""
    from hash3d_cuda.sds.recipes import distil_recipe

    told: dict[str, Any] = {"seed": context.seed, "cache": cache != "none", "device": context.device}
    if cache == "strong":
        recipe = with_settings(recipe, stronger)
    done = distil_recipe(recipe, context.prior, asked, "small", clock=context.clock, **told)
    times = [time_metrics(run.log)[0] for run in done["runs"]]
    served = {name: sum(run.served[name] for run in done["runs"]) for name in ("hits", "misses", "bypasses")}
    tried, views = served["hits"] + served["misses"], sum(served.values())
    costs = [one["hit_cost_r"] for one in times if one["hit_cost_r"] is not None]
    split = [one["split_s"] for one in times]
    return {
        "quality": scores(done["views"], known_truth(asked, context.prior.image_size), asked),
        **served,
        "hit_rate": served["hits"] / tried if tried else 0.0,
        "x": served["hits"] / views if views else 0.0,
        "seconds": sum(one["total_s"] for one in times),
        "unet_full_seconds": sum(one["unet_full"] for one in split),
        "same_seconds": sum(one["render"] + one["backward"] for one in split),
        "hit_cost_r": mean(costs) if costs else None,
        "picture": picture(done["views"]),
    }


def stronger(settings: Any) -> dict[str, Any]:
    """Eta and grids under which a short run is served."""
    grids = stretched(settings.grids, settings.steps * settings.views_per_step)
    return {"eta": studies.ETA, "grids": [list(grid.sizes) for grid in grids]}


def against(run: Mapping[str, Any], plain: Mapping[str, Any], r: float | None) -> dict[str, Any]:
    """Speed-up, the bound on it, and how much of it is the machine's: the runs came one after the other."""
    share = plain["unet_full_seconds"] / plain["seconds"]
    return {
        "speed_up": plain["seconds"] / run["seconds"],
        "drift": plain["same_seconds"] / run["same_seconds"],
        "bound_step": 1.0 if run["x"] == 0 else None if r is None else step_bound(run["x"], r, share),
        "psnr_change": run["quality"]["psnr"] - plain["quality"]["psnr"] if "psnr" in run["quality"] else None,
    }


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Three rows per recipe; MACs are the real U-Nets' in the paper's convention."""
    rows = []
    for recipe in dict.fromkeys(key.split(", ")[0] for key in results):
        found = [result for key, result in results.items() if key.split(", ")[0] == recipe]
        macs = paper_macs_of(found[0])
        for cache in CACHES:
            runs = [result["runs"][cache] for result in found]
            rows.append({
                "table": 1 if found[0]["kind"] == "image" else 2, "system": found[0]["title"], "cache": TITLES[cache],
                "seconds": plus_minus((run["seconds"] for run in runs), 1),
                **{title: known_mean(run[name] for run in runs) for name, title in COLUMNS.items()},
                "speed-up / drift": mean(run["speed_up"] / run["drift"] for run in runs),
                "MACs, G": round(macs[cache != "none"], 2) if cache != "strong" else None,
                **quality_cells(runs), "PSNR change, dB": known_mean(run["psnr_change"] for run in runs),
            })  # fmt: skip
    return {"rows": rows, "findings": findings(rows, asked(context))}


def paper_macs_of(result: Mapping[str, Any]) -> tuple[float, float]:
    """Giga-MACs per view without and with the cache, of both U-Nets where a system asks two priors."""
    from hash3d_cuda.unet.cost import paper_macs

    models = MODELS if result["two_priors"] else [MODELS[result["kind"] == "text"]]
    both = [paper_macs(model) for model in models]
    return sum(before for before, _ in both), sum(after for _, after in both)


COLUMNS = {"speed_up": "speed-up", "drift": "drift", "bound_step": "bound", "hit_rate": "hit rate", "x": "x"}


def known_mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def asked(context: Context) -> str:
    """Whose time and quality it is."""
    if context.scale == "paper":
        return "those of the prior that was given, the recipes at the paper's scale"
    return ("the shipped prior's" if context.source is None else "those of the prior that was given") + " at small size"


def findings(rows: list[dict[str, Any]], whose: str) -> list[str]:
    """One sentence per kind of cache, and what the columns are."""
    said = []
    for cache in CACHES[1:]:
        these = [row for row in rows if row["cache"] == TITLES[cache]]
        names = ("speed-up / drift", "bound", "PSNR change, dB")
        ratios, bounds, changes = ([row[n] for row in these if row[n] is not None] for n in names)
        said.append(
            f"{TITLES[cache]}: x is {min(r['x'] for r in these):.3f} to {max(r['x'] for r in these):.3f}, the bound on "
            f"the speed-up {min(bounds):.3f} to {max(bounds):.3f}, measured (drift taken out) {min(ratios):.2f} to "
            f"{max(ratios):.2f}; "
            f"PSNR changes by {signed(min(changes, default=None))} to {signed(max(changes, default=None))} dB, "
            f"{signed(known_mean(changes))} on average."
        )
    return [
        *said,
        "The runs of a system came one after the other; drift is the ratio of the seconds of rendering and backward, "
        "the same work in both (but for meshes, whose triangles may differ): as far as it is from 1, the speed-up is "
        "the machine's and not the cache's. The bound is unknown where a hit's cost was not measured.",
        "MACs are the real U-Nets' in the paper's convention (eta 0.1, every retrieval a hit); time and quality are "
        f"{whose}. Similarity is to the input picture in table 1 and "
        "to the true views in table 2.",
        studies.NOTE,
    ]


def plot(summary: dict[str, Any], path: Path) -> None:
    """Bars of speed-up, bound and the change of PSNR of the cached runs."""
    rows = [row for row in summary["rows"] if row["cache"] != TITLES["none"]]
    short = {TITLES["paper"]: "own", TITLES["strong"]: "strong"}
    names = ("speed-up / drift", "bound", "PSNR change, dB")
    plot_bars({f"{r['system']}, {short[r['cache']]}": {name: r[name] for name in names} for r in rows}, names, path)
