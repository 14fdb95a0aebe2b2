"""What the settings of a generation put under its priors: the caches, and who is asked through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hash3d_cuda.checks import DTYPE_NAMES, fail
from hash3d_cuda.config import POLICIES, Hash3DConfig
from hash3d_cuda.keys import Grid
from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.sds.compiled import OPTIONS
from hash3d_cuda.sds.guidance import Guidance, Refinement
from hash3d_cuda.sds.settings import GenerateSettings


def cache_config(settings: GenerateSettings, groups: int = 2, conditions: int = 1, group: Any = None) -> Hash3DConfig:
    """The cache's options. Where the objective denoises step by step, its cells are those of one view, and nothing
    moves eta.

    Args:
        settings: of the run.
        groups: rows of an item; the prior's.
        conditions: subjects that share the memory.
        group: of the ranks, or None.

    Raises:
        TypeError, ValueError: options that do not go together, naming one.
    """
    if settings.objective == "refine":
        targets = dict.fromkeys(("target_x", "target_quality", "audit"))
        settings = replace(settings, eta=1.0, grids=temporal_grids(settings), **targets)
    stored = settings.feature_dtype
    return Hash3DConfig(
        eta=settings.eta, position=settings.position, groups=groups, grids=settings.grids,
        **settings.room(conditions), host_budget=settings.host_budget, seed=settings.seed, mode=settings.mode,
        match=settings.match, weighting=settings.aggregation, queue_length=settings.queue_length,
        num_buckets=settings.num_buckets, min_similarity=settings.min_similarity, max_conditions=conditions,
        **{name: getattr(settings, name) for name in POLICIES},
        feature_dtype=None if stored is None else DTYPE_NAMES[stored], process_group=group,
        decide=settings.decide, compile=dict(OPTIONS) if "unet" in settings.compile else False,
    )  # fmt: skip


def attach_cache(prior: Prior, settings: GenerateSettings, conditions: int = 1, group: Any = None) -> Any:
    """Puts the cache on the prior's U-Net, for so many subjects that share its memory, and the ranks of ``group``."""
    from hash3d_cuda import apply_hash3d

    return apply_hash3d(prior.unet, cache_config(settings, prior.groups, conditions, group))


def attach_caches(priors: Sequence[Prior], settings: GenerateSettings, group: Any = None) -> list[Any]:
    """One cache per U-Net: each prior's own, or one with a table for each subject when they ask the same U-Net."""
    if not settings.cache:
        return []
    unets = {id(prior.unet): prior for prior in priors}
    caches: list[Any] = []
    try:
        for prior in unets.values():
            caches.append(attach_cache(prior, settings, len(priors) // len(unets), group))
    except BaseException:
        for cache in caches:
            cache.remove()
        raise
    return caches


def temporal_grids(settings: GenerateSettings) -> tuple[Grid, ...]:
    """One cell per view and ``reuse_interval`` denoising steps; poses do not change from one to the next."""
    return (Grid(1.0, 1.0, 0.1, float(settings.reuse_interval * settings.denoise_stride)),)


def make_guidance(prior: Prior, subject: Subject, cache: Any, settings: GenerateSettings) -> Guidance:
    """What the objective of the settings asks of the first prior."""
    if settings.objective == "refine":
        return Refinement(prior, subject, cache, settings.guidance_scale, settings.denoise_stride)
    return Guidance(prior, subject, cache, settings.guidance_scale, settings.weighting)


def check_priors(
    prior: Prior, subject: Subject, settings: GenerateSettings, second: tuple[Prior, Subject] | None
) -> None:
    """Raises ValueError where priors and subjects are not what the settings need."""
    if settings.latent and subject.image is not None:
        fail(ValueError, "latent", "a subject given by name", "a picture", "pictures cannot be compared with latents")
    if not settings.second_weight:
        return
    if second is None:
        fail(ValueError, "second", "another prior and its subject (second_weight is not 0)", second, "pass second=")
    if len(second[0].alphas_cumprod) != len(prior.alphas_cumprod):
        counts = len(prior.alphas_cumprod), len(second[0].alphas_cumprod)
        fail(
            ValueError, "second", f"a prior of {counts[0]} timesteps", counts[1], "take priors of one schedule's length"
        )
