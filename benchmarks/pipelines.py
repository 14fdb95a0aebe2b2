"""Is a sampler as fast under ``cache.sampling()`` as under DeepCache's helper, and as near to the full one?

Same interval, same cut (DeepCache's branch b is position b + 1), same weights. In each round DeepCache runs before and
after ours; the ratio is the median of the rounds' ratios to the mean of the two. Times are the processor's on a CPU, so
that other work beside it is not counted. Stable Diffusion's weights are random: there only the times mean something.

OMP_NUM_THREADS=1 HASH3D_BENCH_SIDE=8 python benchmarks/pipelines.py > benchmarks/results/pipelines.md
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import axes
import report
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, StableDiffusionPipeline
from sd_unet import SIDE, make_unet
from torch import Tensor

import hash3d_cuda as h3d

ROUNDS = int(os.environ.get("HASH3D_BENCH_ROUNDS", "3"))
SCHEDULE: dict[str, Any] = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
)
COLUMNS = (
    "Model", "Steps", "Interval", "Branch", "Full, s", "DeepCache, s", "Ours, s", "Ours / DeepCache", "Full / ours",
    "PSNR DeepCache, dB", "PSNR ours, dB", "Equal",
)  # fmt: skip


@dataclass
class Sampler:
    """A sampler around ``unet``; ``draw()`` gives the same result each time, ``scheduler`` as DeepCache looks at it."""

    name: str
    unet: Any
    scheduler: Any
    steps: int
    draw: Callable[[], Tensor]


def stable_diffusion(steps: int, device: str = "cpu", side: int = SIDE, **config: Any) -> Sampler:
    """diffusers' pipeline, one prompt with guidance, random weights; latents out."""
    unet = make_unet(device, **config)
    none: dict[str, Any] = dict(vae=None, text_encoder=None, tokenizer=None, safety_checker=None)
    pipe = StableDiffusionPipeline(
        unet=unet, scheduler=DDIMScheduler(**SCHEDULE), feature_extractor=None, requires_safety_checker=False, **none
    )
    pipe.set_progress_bar_config(disable=True)
    text, other = torch.randn(2, 1, 77, unet.config.cross_attention_dim, generator=seeded(), dtype=unet.dtype).to(
        device
    )

    def draw() -> Tensor:
        given = dict(prompt_embeds=text, negative_prompt_embeds=other, num_inference_steps=steps, output_type="latent")
        return pipe(**given, height=8 * side, width=8 * side, generator=seeded()).images

    return Sampler(f"SD 1.5, random weights, latents {side}x{side}", unet, pipe.scheduler, steps, draw)


def shipped_prior(steps: int, name: str = "horse", views: int = 2, guidance: float = 2.0) -> Sampler:
    """The prior of the package, an object from several sides in one batch, with guidance; pictures out."""
    prior = h3d.prior.load_prior()
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type=prior.prediction_type)
    subject, noise = prior.resolve(name), torch.randn(views, *prior.latent_shape, generator=seeded())

    @torch.no_grad()
    def draw() -> Tensor:
        around = [360.0 * view / views for view in range(views)]
        condition = prior.conditioning(subject, [20.0] * views, around, [2.0] * views)
        scheduler.set_timesteps(steps)
        latents = noise
        for t in scheduler.timesteps:
            output = prior.unet(prior.model_input(latents, subject), t, **condition).sample
            conditioned, plain = output.chunk(2)
            latents = scheduler.step(plain + guidance * (conditioned - plain), t, latents).prev_sample
        return prior.decode(latents).clamp(0, 1)

    return Sampler(f"shipped prior, {name}, {views} views", prior.unet, scheduler, steps, draw)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def full(sampler: Sampler) -> tuple[float, Tensor]:
    """Seconds and result."""
    return timed(sampler)


def by_deepcache(sampler: Sampler, interval: int, branch: int) -> tuple[float, Tensor]:
    """Seconds and result."""
    helper = DeepCacheSDHelper(SimpleNamespace(unet=sampler.unet, scheduler=sampler.scheduler))
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        return timed(sampler)
    finally:
        helper.disable()


def by_us(sampler: Sampler, interval: int, branch: int) -> tuple[float, Tensor]:
    """Seconds and result."""
    cache = h3d.apply_hash3d(sampler.unet, h3d.Hash3DConfig.every(interval, position=branch + 1))
    try:
        with cache.sampling():
            found = timed(sampler)
        expected = sampler.steps - len(range(0, sampler.steps, interval))
        assert cache.stats().hits == expected, cache.stats()
        return found
    finally:
        cache.remove()


def timed(sampler: Sampler) -> tuple[float, Tensor]:
    device = next(sampler.unet.parameters()).device
    start = now(device)
    result = sampler.draw()
    return now(device) - start, result


def now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def psnr(result: Tensor, reference: Tensor) -> float:
    """In dB, of the reference's own range."""
    span = reference.max() - reference.min()
    return float(10 * torch.log10(span**2 / (result.double() - reference.double()).square().mean()))


def row(sampler: Sampler, interval: int, branch: int, rounds: int = ROUNDS) -> tuple[str, ...]:
    """One line of the table."""
    setting = interval, branch
    by_us(sampler, *setting)  # warm
    times: dict[str, list[float]] = {"full": [], "theirs": [], "ours": [], "ratio": []}
    for _ in range(rounds):
        before, theirs = by_deepcache(sampler, *setting)
        mine, ours = by_us(sampler, *setting)
        after, _ = by_deepcache(sampler, *setting)
        whole, reference = full(sampler)
        found = {"full": whole, "theirs": (before + after) / 2, "ours": mine, "ratio": 2 * mine / (before + after)}
        for name, value in found.items():
            times[name].append(value)
    median = {name: statistics.median(values) for name, values in times.items()}
    seconds = (f"{median[name]:.3g}" for name in ("full", "theirs", "ours"))
    speed_up = statistics.median(a / b for a, b in zip(times["full"], times["ours"], strict=True))
    return (
        sampler.name, str(sampler.steps), str(interval), str(branch), *seconds, f"{median['ratio']:.3f}",
        f"{speed_up:.2f}", f"{psnr(theirs, reference):.2f}", f"{psnr(ours, reference):.2f}",
        "bit for bit" if torch.equal(ours, theirs) else f"to {float((ours - theirs).abs().max()):.1g}",
    )  # fmt: skip


def main() -> None:
    """Prints the page."""
    print(f"Machine: {report.machine_line(axes.machine())}. {ROUNDS} rounds.\n", flush=True)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    prior = shipped_prior(steps=20)
    for setting in ((2, 1), (5, 0), (5, 1)):
        print("| " + " | ".join(row(prior, *setting)) + " |", flush=True)
    sampler = stable_diffusion(steps=3, device=axes.devices()[-1])
    print("| " + " | ".join(row(sampler, 3, 1)) + " |", flush=True)


if __name__ == "__main__":
    main()
