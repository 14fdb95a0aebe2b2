"""Figures about a finished run: time, cache, memory, and the distance to the truth when it is known."""

from __future__ import annotations

import platform
import resource
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.bounds import step_bound, unet_bound
from hash3d_cuda.prior.base import Subject
from hash3d_cuda.prior.ground_truth import ground_truth_names, ground_truth_views
from hash3d_cuda.sds.timing import COUNTS, StepLog, TimeSummary, summarise

FORMAT = 1


def image_quality(images: Tensor, truth: Tensor) -> dict[str, Any]:
    """PSNR in dB and SSIM of ``images`` against ``truth``, both float [N,3,S,S] in 0..1, per view and on
    average."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    images = images.clamp(0, 1)
    psnr = peak_signal_noise_ratio(images, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(images, truth, data_range=1.0, reduction="none")
    return {
        "psnr": float(psnr.mean()),
        "ssim": float(ssim.mean()),
        "psnr_per_view": [round(value, 3) for value in psnr.tolist()],
        "ssim_per_view": [round(value, 4) for value in ssim.tolist()],
    }


def known_truth(subject: Subject, size: int) -> Tensor | None:
    """The subject's true evaluation views float [16,3,size,size], or None when none are bundled at that
    size."""
    if subject.name is None or subject.name not in ground_truth_names():
        return None
    images = ground_truth_views(subject.name)[0]
    return images if images.shape[-1] == size else None


def time_metrics(log: StepLog) -> tuple[dict[str, Any], TimeSummary]:
    """The time split of a run for ``metrics.json``."""
    summary = summarise(log)
    steps = max(len(log.rows), 1)
    served = {name: int(log.column(name).sum()) for name in COUNTS}
    return {
        "total_s": summary.total,
        "per_step_s": summary.total / steps,
        "split_s": summary.split,
        "per_step_split_s": {name: seconds / steps for name, seconds in summary.split.items()},
        "unet_full_per_view_s": summary.full_per_item,
        "unet_hit_per_view_s": summary.hit_per_item,
        "hit_cost_r": summary.hit_cost,
        "without_cache": without_cache(summary, served["hits"], sum(served.values())),
    }, summary


def without_cache(summary: TimeSummary, hits: int, items: int) -> dict[str, float] | None:
    """What the run would have taken without the cache, from its own full passes, and the bounds that follow; None where
    no view ran in full or none was served. It is an estimate: ``hash3d compare`` measures.

    Args:
        summary: of the run.
        hits: views served from the cache.
        items: all views.

    Returns:
        ``total_s`` and ``unet_share`` without the cache; ``speed_up``, that by the run's own seconds; ``bound_unet``
        and ``bound_step``, the most that x and r allow; ``bound_step_at_x_1``, were every view served.
    """
    r = summary.hit_cost
    if r is None or summary.full_per_item is None or summary.total <= 0:
        return None
    # The mean, though r has medians: where the machine's speed changed, it did so for what ran in full.
    split, unet = summary.split, summary.split["unet_full"] * items / max(items - hits, 1)
    total = summary.total - split["unet_full"] - split["unet_hit"] - split["table"] + unet
    share, x = unet / total, hits / items
    return {
        "total_s": total,
        "unet_share": share,
        "speed_up": total / summary.total,
        "bound_unet": unet_bound(x, r),
        "bound_step": step_bound(x, r, share),
        "bound_step_at_x_1": step_bound(1.0, r, share),
    }


def same_work(split: Mapping[str, float]) -> float:
    """Seconds of the parts that a cache does not touch: between two runs, their ratio is the machine's drift."""
    return sum(split[name] for name in ("render", "encode", "backward", "optimizer"))


def cache_metrics(served: dict[str, int], *caches: Any) -> dict[str, Any]:
    """What the caches did together, in views; ``x`` is the share of all views that they served."""
    items, tried = sum(served.values()), served["hits"] + served["misses"]
    figures: dict[str, Any] = {
        "enabled": bool(caches),
        **served,
        "hit_rate": served["hits"] / tried if tried else 0.0,
        "x": served["hits"] / items if items else 0.0,
    }
    if caches:
        stats = [cache.stats() for cache in caches]
        for name in ("forwards", "rejected", "rows_saved", "nbytes", "host_syncs"):
            figures[name] = sum(getattr(one, name) for one in stats)
        if tables := [table for cache in caches for table in cache.tables]:
            figures |= {"entries": sum(map(len, tables)), "capacity": sum(table.capacity for table in tables)}
        if tiers := [one.host_tier for one in stats if one.host_tier is not None]:
            figures["host_tier"] = asdict(sum(tiers[1:], tiers[0]))
    return figures


def control_metrics(caches: Sequence[Any]) -> list[dict[str, Any]] | None:
    """What moved eta, by cache: ``eta`` at the end, the targets, the share of audits, the ``mean_error`` that they saw,
    the ``course`` of eta (at most 256 forwards; none without a target), and the latest 4,096 audits, both column by
    column (:class:`hash3d_cuda.control.Audit`). None where nothing did."""
    found = []
    for cache in caches:
        config = cache.config
        told = {"target_x": config.target_x, "target_quality": config.target_quality, "audit": config.audit_share}
        if any(value is not None for value in told.values()):
            rows = cache.audits()
            columns = {name: [getattr(row, name) for row in rows] for name in ("forward", "eta", "error", "found")}
            moved = cache.eta_course()
            course = {"forward": [forward for forward, _ in moved], "eta": [eta for _, eta in moved]}
            stats = cache.stats()
            error = {"audited": stats.audits, "mean_error": stats.audited_error}
            found.append({"eta": cache.eta, **told, **error, "course": course, "audits": columns})
    return found or None


def memory_metrics(caches: Sequence[Any], device: torch.device) -> dict[str, int]:
    """Bytes: the tables, the process's peak, the device's peak."""
    table = sum(table.nbytes for cache in caches for table in cache.tables)
    scale = 1 if platform.system() == "Darwin" else 1024
    figures = {
        "table_bytes": table,
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
    }
    if device.type == "cuda":
        figures["device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return figures


def versions() -> dict[str, str]:
    """What ran this."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__}
    for name in ("hash3d-cuda", "diffusers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def history(log: StepLog, points: int = 200) -> dict[str, list[float]]:
    """Cumulative hit rate and x over the steps, thinned to at most ``points`` for plots."""
    hits, misses, bypasses = (log.column(name).cumsum() for name in ("hits", "misses", "bypasses"))
    stride = max(1, -(-len(hits) // points))
    keep = sorted({*range(stride - 1, len(hits), stride), len(hits) - 1} - {-1})
    tried, items = (hits + misses).clip(min=1), (hits + misses + bypasses).clip(min=1)
    return {
        "step": [index + 1 for index in keep],
        "hit_rate": [round(float(hits[i] / tried[i]), 5) for i in keep],
        "x": [round(float(hits[i] / items[i]), 5) for i in keep],
    }
