"""The same object without and with the cache, from one seed: same views, same noise, same scene at the start.

The two runs take turns step by step, so that a machine whose speed drifts slows both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.bounds import step_bound, unet_bound
from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.sds.finite import require_finite_weights
from hash3d_cuda.sds.interrupt import Interrupt
from hash3d_cuda.sds.loop import Progress, Track, finish, iterate, prepare_folder
from hash3d_cuda.sds.metrics import image_quality, same_work
from hash3d_cuda.sds.outputs import staged, write_json
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings

RUNS = {"without": "without-cache", "with": "with-cache"}


def compare(
    prior: Prior,
    subject: Subject,
    settings: GenerateSettings,
    out: str | Path,
    progress: Callable[[str], Callable[[Progress], None] | None] = lambda label: None,
) -> dict[str, Any] | None:
    """Runs both and writes ``compare.json``, ``compare.webp``, ``report.html`` and each run's own folder.

    Args:
        prior, subject: as for :func:`hash3d_cuda.sds.loop.generate`.
        settings: ``cache`` is set by this function, and the run without it draws its views uniformly; the rest holds
            for both runs.
        out: folder; the runs go to its ``without-cache`` and ``with-cache``.
        progress: gives each run's progress display by its name.

    Returns:
        the content of ``compare.json``, or None when the runs were interrupted; then each can be resumed.
    """
    from hash3d_cuda.sds.compare_report import write_compare_report
    from hash3d_cuda.sds.export import write_turntable

    folder = prepare_folder(Path(out), resume=False, force=False)
    require_finite_weights("the U-Net", prior.unet)
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        tracks = {}
        for name, place in RUNS.items():
            own = prepare_folder(folder / place, resume=False, force=True)
            # What one would do without a cache: an anchored sampler would have nothing to return to.
            own_settings = settings if name == "with" else replace(settings, cache=False, sampler="uniform")
            run = stack.enter_context(SdsRun(prior, subject, replace(own_settings, cache=name == "with")))
            tracks[name] = Track(run, own, progress(place))
        iterate(list(tracks.values()), interrupt)
        results = {name: finish(track.run, track.folder) for name, track in tracks.items()}
    if any(result.interrupted for result in results.values()):
        return None
    figures = comparison({name: result.metrics for name, result in results.items()})
    figures["agreement"] = image_quality(results["with"].views, results["without"].views)
    with staged(folder) as stage:
        write_json(figures, stage / "compare.json")
        write_turntable(side_by_side([result.turntable for result in results.values()]), stage / "compare.webp")
        write_compare_report(figures, results, stage)
    return figures


def comparison(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What two runs' metrics (by the names of ``RUNS``) say about the cache."""
    before, after = metrics["without"], metrics["with"]
    x, r = after["cache"]["x"], after["time"]["hit_cost_r"]
    share = before["time"]["split_s"]["unet_full"] / before["time"]["total_s"]
    unet_seconds = {
        name: one["time"]["split_s"]["unet_full"] + one["time"]["split_s"]["unet_hit"] for name, one in metrics.items()
    }
    return {
        "subject": after["subject"],
        "prior": after["prior"],
        "settings": after["settings"],
        "seconds": {name: one["time"]["total_s"] for name, one in metrics.items()},
        "unet_seconds": unet_seconds,
        "table_seconds": after["time"]["split_s"]["table"],
        "speed_up": before["time"]["total_s"] / after["time"]["total_s"],
        "unet_speed_up": unet_seconds["without"] / unet_seconds["with"],
        "drift": same_work(before["time"]["split_s"]) / same_work(after["time"]["split_s"]),
        "hit_rate": after["cache"]["hit_rate"],
        "x": x,
        "hit_cost_r": r,
        "unet_share_of_step": share,
        "bound_unet": None if r is None else unet_bound(x, r),
        "bound_step": None if r is None else step_bound(x, r, share),
        "quality": {name: one["quality"] for name, one in metrics.items()},
        "runs": dict(metrics),
    }


def side_by_side(turntables: list[Tensor], gap: int = 8) -> Tensor:
    """Frames float [F,3,S,S] of several turntables next to each other with a white gap, float [F,3,S,W]."""
    frames, channels, size, _ = turntables[0].shape
    white = torch.ones(frames, channels, size, gap)
    parts = [piece for turntable in turntables for piece in (turntable, white)][:-1]
    return torch.cat(parts, -1)


def table_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The comparison as rows: what, without, with, difference."""
    seconds, unet, quality = figures["seconds"], figures["unet_seconds"], figures["quality"]
    rows = [
        (
            "seconds, all steps",
            f"{seconds['without']:.2f}",
            f"{seconds['with']:.2f}",
            f"{figures['speed_up']:.2f}x faster",
        ),
        (
            "seconds, U-Net",
            f"{unet['without']:.2f}",
            f"{unet['with']:.2f}",
            f"{figures['unet_speed_up']:.2f}x faster",
        ),
        ("seconds, table", "-", f"{figures['table_seconds']:.2f}", ""),
        ("hit rate", "-", f"{figures['hit_rate']:.1%}", ""),
        ("x, views from the cache", "-", f"{figures['x']:.1%}", ""),
    ]
    if quality["with"] and quality["without"]:
        for name, digits, unit in (("psnr", 2, " dB"), ("ssim", 3, "")):
            one, two = quality["without"][name], quality["with"][name]
            difference = f"{two - one:+.{digits}f}{unit}"
            rows.append(
                (
                    f"{name.upper()} against the truth",
                    f"{one:.{digits}f}{unit}",
                    f"{two:.{digits}f}{unit}",
                    difference,
                )
            )
    agreement = figures["agreement"]
    rows.append(("agreement of the two", "", "", f"PSNR {agreement['psnr']:.2f} dB, SSIM {agreement['ssim']:.3f}"))
    return rows


def bound_sentence(figures: Mapping[str, Any]) -> str:
    """What speed-up this x allows, in one sentence."""
    if figures["bound_step"] is None and figures["x"]:
        return "No bound: what a hit costs was not measured, since decisions on the device hide it."
    if figures["bound_step"] is None:
        return "No view was served from the cache, so no speed-up is possible; raise --eta or the cells."
    allowed = f"{figures['bound_unet']:.2f}x on the U-Net (1/(1-x(1-r)))"
    share, step = f"{figures['unet_share_of_step']:.0%}", f"{figures['bound_step']:.2f}x"
    measured = f"{figures['unet_speed_up']:.2f}x and {figures['speed_up']:.2f}x"
    return (
        f"bound: x = {figures['x']:.3f} and r = {figures['hit_cost_r']:.3f} allow {allowed}; "
        f"the U-Net is {share} of a step, so {step} on a step. Measured: {measured}. "
        f"Everything but the U-Net, the same work in both runs, differs by a factor of {figures['drift']:.2f}: that "
        "much is the machine's and not the cache's."
    )
