"""Where a step's time goes, with Stable Diffusion's KL encoder, a light one (TAESD) and latents instead of pictures,
each without the cache and with it: SD 1.5's U-Net and the encoders in their public configurations with random weights,
at small latents; and the shipped prior. All runs of a table take turns step by step: the machine is alike for all.

``python benchmarks/step_split.py --out benchmarks/results/step-split.md``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from sd_unet import make_unet
from sds_step import UnetAlone
from torch import Tensor

from hash3d_cuda.bounds import step_bound
from hash3d_cuda.prior import load_prior
from hash3d_cuda.prior.tiny import encode_light
from hash3d_cuda.reproduce.ablations import EVERYWHERE
from hash3d_cuda.reproduce.sweep import take_turns, with_own_hooks
from hash3d_cuda.reproduce.written import machine, table_lines
from hash3d_cuda.sds.metrics import cache_metrics, time_metrics
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.sds.timing import StepLog
from hash3d_cuda.unet.cost import KL_CONFIG

PIXELS = 8  # per latent and side
ETA = 0.9
# One cell for everything: after the first step every retrieval hits, so x is eta's.
ALWAYS = dict(grids=(EVERYWHERE,), match="bucket", num_buckets=1, capacity=4, memory_budget=None)
PARTS = ("render", "encode", "unet_full", "unet_hit", "table", "backward", "optimizer", "other")


class Encoded(UnetAlone):
    """A U-Net with random weights behind a real encoder."""

    def __init__(self, unet: Any, side: int, kind: str):
        super().__init__(unet, side)
        torch.manual_seed(3)
        vae = AutoencoderKL(**KL_CONFIG) if kind == "KL-VAE" else AutoencoderTiny()
        self.vae = vae.eval().requires_grad_(False)
        self.vae.decoder = None
        self.image_size, self.kind = side * PIXELS, kind

    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents."""
        if self.kind == "KL-VAE":
            return self.vae.encode(images * 2 - 1).latent_dist.mean * self.vae.config.scaling_factor
        return encode_light(self.vae, images)


def split_rows(runs: Mapping[str, tuple[Any, GenerateSettings]], pairs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Milliseconds a step by part, of (prior, settings) by name; ``pairs`` says which run is another without the cache.
    The first step, which warms up and is a miss, is left out."""
    with ExitStack() as stack:
        running = {}
        for name, (prior, settings) in runs.items():
            own = with_own_hooks(prior)
            subject = own.resolve("teddy bear")
            running[name] = stack.enter_context(SdsRun(own, subject, settings, clock=time.process_time))
        take_turns(list(running.values()))
        logs = {name: StepLog(run.log.array()[1:]) for name, run in running.items()}
        return [row(name, logs, pairs) for name in running]


def row(name: str, logs: Mapping[str, StepLog], pairs: Mapping[str, str]) -> dict[str, Any]:
    """One run's line."""
    times, _ = time_metrics(logs[name])
    found: dict[str, Any] = {"step": name, **{part: 1000 * times["per_step_split_s"][part] for part in PARTS}}
    found["ms a step"] = 1000 * times["per_step_s"]
    before, _ = time_metrics(logs[pairs.get(name, name)])
    share = before["split_s"]["unet_full"] / before["total_s"]
    found["U-Net's share without cache"] = f"{share:.0%}"
    if name in pairs:
        served = {kind: int(logs[name].column(kind).sum()) for kind in ("hits", "misses", "bypasses")}
        x, r = cache_metrics(served)["x"], times["unet_hit_per_view_s"] / before["unet_full_per_view_s"]
        found |= {"x": x, "r": r, "speed-up": before["total_s"] / times["total_s"]}
        found |= {"bound": step_bound(x, r, share), "bound at x = 1": step_bound(1.0, r, share)}
    return found


def sd_runs(side: int, steps: int) -> tuple[dict[str, tuple[Any, GenerateSettings]], dict[str, str]]:
    """SD 1.5's U-Net with each way to its latents, without and with the cache."""
    unet = make_unet("cpu")
    base = GenerateSettings(steps=steps, views_per_step=1, scene_size=24, schedule="uniform", t_low=0.02, **ALWAYS)
    ways = {
        "KL encoder": (Encoded(unet, side, "KL-VAE"), base),
        "TAESD": (Encoded(unet, side, "TAESD"), base),
        "latent scene": (UnetAlone(unet, side), replace(base, latent=True)),
    }
    return with_and_without(ways)


def with_and_without(ways: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, GenerateSettings]], dict[str, str]]:
    """Each way without the cache and with it, and which belongs to which."""
    runs = {name: (prior, replace(settings, cache=False)) for name, (prior, settings) in ways.items()}
    cached = {f"{name}, cache": (prior, replace(settings, eta=ETA)) for name, (prior, settings) in ways.items()}
    return runs | cached, {f"{name}, cache": name for name in ways}


def main() -> None:
    """Prints both tables as Markdown and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--side", type=int, default=8, help="of SD 1.5's latents (default 8: pictures of 64 pixels)")
    parser.add_argument("--steps", type=int, default=11, help="of every run, the first not counted (default 11)")
    parser.add_argument("--out", type=Path, help="write the tables there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shipped = GenerateSettings(steps=4 * options.steps, views_per_step=2, **ALWAYS)
    tables = {
        "The shipped prior, 2 views a step": with_and_without({"shipped prior": (load_prior(), shipped)}),
        f"SD 1.5's U-Net, random weights, {options.side}x{options.side} latents, 1 view a step": sd_runs(
            options.side, options.steps
        ),
    }
    lines = ["Milliseconds of the processor a step, one thread; `encode` is the encoder forward and backward.", ""]
    lines += [f"eta {ETA}, one cell for everything, k = 2. {machine()}.", ""]
    for title, (runs, pairs) in tables.items():
        lines += [f"## {title}", "", *table_lines(split_rows(runs, pairs)), ""]
        print("\n".join(lines), flush=True)
    if options.out is not None:
        options.out.write_text("# Where a step's time goes\n\n" + "\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
