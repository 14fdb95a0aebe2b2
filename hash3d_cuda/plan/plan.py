"""One prediction: hit rates, memory and speed-up bounds of a cache for a run that has not been started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.bounds import step_bound, unet_bound
from hash3d_cuda.checks import check_choice, check_int, check_real
from hash3d_cuda.keys import Grid
from hash3d_cuda.plan.memory import SHIPPED, Memory, table_memory
from hash3d_cuda.plan.ranges import ViewRanges, as_keys, settings_keys
from hash3d_cuda.plan.repeats import Repeats, repeat
from hash3d_cuda.plan.setting import CacheSetting, setting_of
from hash3d_cuda.plan.simulate import simulate
from hash3d_cuda.plan.simulation import Simulation
from hash3d_cuda.unet.configs import UNETS, find_unet
from hash3d_cuda.unet.cost import ENCODERS, UNetCost, encoder_cost, unet_cost

VAES = ("none", *ENCODERS)
PIXELS_PER_LATENT = 8  # of the KL-VAE and of TAESD


@dataclass(frozen=True)
class Plan:
    """A prediction for one run (one stage of a recipe).

    Attributes:
        title: what was planned.
        setting: the cache's options.
        unet: name of the U-Net whose costs and features are counted.
        simulation: what became of every view; hit rates are its properties.
        full_gmacs, r: of the U-Net, per row and as a share.
        memory: of the table.
        unet_bound, step_bound: the largest speed-ups, 1 / (1 - u x (1 - r)) with u = 1 and with u = ``unet_share``.
        unet_share: the U-Net's share of a step without the cache.
        best: settings that were tried beside this one, the largest step bound of each eta; see
            :func:`hash3d_cuda.plan.search.search`.
        vae: the encoder that runs in every step, or ``"none"``.
        encoder_gmacs: of one view, forward and backward.
        repeats: the same with other seeds, where several runs were asked for.
    """

    title: str
    setting: CacheSetting
    unet: str
    simulation: Simulation
    full_gmacs: float
    r: float
    memory: Memory
    unet_bound: float
    step_bound: float
    unet_share: float
    best: list[Any] = field(default_factory=list)
    vae: str = "none"
    encoder_gmacs: float = 0.0
    repeats: Repeats | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        run, setting = self.simulation, asdict(self.setting)
        setting["grids"] = [list(Grid(**grid).sizes) for grid in setting["grids"]]
        return {
            "title": self.title,
            "steps": run.grid.shape[0],
            "views_per_step": run.grid.shape[1],
            "setting": setting,
            "unet": self.unet,
            "hit_rate": run.hit_rate,
            "hit_rate_by_grid": run.by_grid,
            "x": run.x,
            "all_hit_steps": run.all_hit,
            "views": {"hits": run.hits, "misses": run.misses, "bypasses": run.bypasses},
            "coverage": {"steps": run.looks.tolist(), "share": run.coverage.tolist()},
            "entries": {"stored": run.stored, "at_the_end": run.live},
            "host_tier": {"hits": run.from_host, "copied": run.copied} if self.memory.host_capacity else None,
            "memory": asdict(self.memory),
            "full_gmacs_per_row": self.full_gmacs,
            "r": self.r,
            "vae": self.vae,
            "encoder_gmacs_per_view": self.encoder_gmacs,
            "unet_share_of_step": self.unet_share,
            "unet_bound": self.unet_bound,
            "step_bound": self.step_bound,
            "best": [candidate.as_dict() for candidate in self.best],
            "repeats": None if self.repeats is None else self.repeats.as_dict(),
        }


def plan(
    views: Any,
    setting: CacheSetting | None = None,
    *,
    unet: str | None = None,
    vae: str = "none",
    other_share: float = 0.0,
    feature_dtype: torch.dtype | None = None,
    search: bool = False,
    title: str = "",
    seed: int = 0,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    runs: int = 1,
) -> Plan:
    """Predicts what the cache does for a run.

    Args:
        views: a :class:`ViewRanges`, a :class:`hash3d_cuda.sds.settings.GenerateSettings` (its views are then the
            run's own, to the bit), or keys, float32 ``[steps, B, 4]``.
        setting: the cache's options; by default those of the settings, or of :class:`CacheSetting`.
        unet: one of ``UNETS``, whose costs and feature sizes count; by default the shipped prior's for settings, else
            ``"sd21"``.
        vae: ``"KL-VAE"`` or ``"TAESD"`` when every step encodes, at 8 pixels per latent; ``"none"``.
        other_share: what of a step without the cache is neither U-Net nor VAE (rendering, optimizer), 0 to 1.
        feature_dtype: of the stored features, in the place of the setting's.
        search: look for better settings under the same budget too.
        title: for reports.
        seed: of the views, where ``views`` is a :class:`ViewRanges`.
        ranges: ``elevation_range`` and ``radius_range`` of another prior, where ``views`` is settings.
        runs: repeat the run with the next seeds, which says how far the hit rate is chance; not for keys.

    Raises:
        ValueError, TypeError: naming the argument; ``memory_budget`` when it does not hold one entry.
    """
    is_settings = hasattr(views, "views_per_step") and not isinstance(views, ViewRanges)
    name = find_unet(unet or (SHIPPED if is_settings else "sd21"), "unet")
    keys = settings_keys(views, **(ranges or {})) if is_settings else run_keys(views, seed)
    if setting is None:
        setting = setting_of(views) if is_settings else CacheSetting()
    check_choice("vae", vae, VAES)
    check_int("position", setting.position, 1, UNETS[name].positions)
    check_int("runs", runs, 1, 10_000)
    cost = unet_cost(name, positions=(setting.position,))
    encoder = 0.0 if vae == "none" else encoder_cost(vae, cost.latent_size * PIXELS_PER_LATENT)
    share = unet_share(cost, setting.groups, encoder, other_share)
    memory = table_memory(setting, cost, keys.shape[0] * keys.shape[1], feature_dtype)
    room: dict[str, Any] = {"capacity": memory.entries, "front": memory.front, "landing": memory.landing}
    run = simulate(keys, setting.eta, **room, seed=setting.seed, **setting.indexing)
    repeats = repeat(views, run, runs, seed=seed, setting=setting, capacity=memory.entries, **(ranges or {}))
    r = cost.r[setting.position]
    bounds = unet_bound(run.x, r), step_bound(run.x, r, share)
    title = title or UNETS[name].label
    costs: dict[str, Any] = {"vae": vae, "encoder_gmacs": encoder, "repeats": repeats}
    found = Plan(title, setting, name, run, cost.full_gmacs, r, memory, *bounds, share, **costs)
    if search:
        from hash3d_cuda.plan.search import search as look

        found = replace(found, best=look(keys, found, feature_dtype))
    return found


def run_keys(views: Any, seed: int = 0) -> Tensor:
    """Keys, float32 ``[steps, B, 4]``, from ranges or as they are."""
    return views.keys(seed) if isinstance(views, ViewRanges) else as_keys(views)


def unet_share(cost: UNetCost, groups: int, encoder: float, other_share: float) -> float:
    """The U-Net's share of a step without the cache, in multiply-accumulates; ``encoder`` is those of a view."""
    other_share = check_real("other_share", other_share, 0.0, 1.0)
    unet = groups * cost.full_gmacs
    return (1 - other_share) * unet / (unet + encoder)


def plan_recipe(
    name: str, scale: str = "small", setting_overrides: Mapping[str, Any] | None = None, **options: Any
) -> list[Plan]:
    """Plans every stage of a recipe; each starts with an empty table. At the paper's scale cameras are those of priors
    with real weights, and the U-Net is by default Stable Diffusion's for text and Zero123's for pictures. Of a stage
    that asks two priors the plan is one's, as if it were alone, and its title says so.

    Args:
        name: of the recipe, or its file.
        scale: ``"small"`` or ``"paper"``.
        setting_overrides: fields of :class:`CacheSetting` that differ from the recipe's.
        **options: as for :func:`plan`.

    Raises:
        ValueError: no such recipe, or none of its stages draws its views at random.
    """
    from hash3d_cuda.sds.recipes import load_recipe

    recipe = load_recipe(name)
    if scale == "paper":
        from hash3d_cuda.prior.pipelines import VIEWED_FROM

        options = {"ranges": VIEWED_FROM, **options}
        options["unet"] = options.get("unet") or ("sd21" if recipe.kind == "text" else "zero123")
    found = []
    overrides = dict(setting_overrides or {})
    if "memory_budget" in overrides:
        overrides.setdefault("capacity", None)
    seed = {"seed": overrides["seed"]} if "seed" in overrides else {}  # of the views too
    stages: Sequence[Any] = recipe.settings(scale, **seed)
    for number, settings in enumerate(stages, 1):
        # Refined pictures are denoised step by step from one pose: reuse in time, which needs no prediction.
        if getattr(settings, "objective", "sds") != "sds":
            continue
        setting = replace(setting_of(settings), **overrides)
        title = recipe.title + (f", stage {number}" if len(stages) > 1 else "")
        if settings.second_weight:
            title += ", one prior of its two"
        found.append(plan(settings, setting, title=title, **options))
    if not found:
        raise ValueError(f"recipe: no stage of {name!r} draws its views at random, so there is nothing to plan")
    return found
