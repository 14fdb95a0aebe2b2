"""Is a sampler as fast under ``cache.sampling()`` as under DeepCache's helper, and as near to the full one?

Same interval, same cut (DeepCache's branch b is position b + 1), same weights: each side has a U-Net object of its own
on them, hooked once and warm. Rounds of short runs: DeepCache, ours and DeepCache once more, the order moved on by one
each time. The ratio is the median of the rounds' ratios to the mean of the two DeepCaches; beside it stands theirs to
each other, which no difference but noise can move from 1. Times are the processor's on a CPU, so that waiting for it is
not counted. Stable Diffusion's weights are random: there only the times mean something.

OMP_NUM_THREADS=1 HASH3D_BENCH_SIDE=8 python benchmarks/pipelines.py > benchmarks/results/pipelines.md
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import axes
import report
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, StableDiffusionPipeline
from sd_unet import SIDE, make_unet, twin
from torch import Tensor

import hash3d_cuda as h3d

ROUNDS = int(os.environ.get("HASH3D_BENCH_ROUNDS", "30"))
SCHEDULE: dict[str, Any] = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
)
COLUMNS = (
    "Model", "Steps", "Interval", "Branch", "Rounds", "Full, s", "DeepCache, s", "Ours, s", "Ours / DeepCache",
    "DeepCache / DeepCache", "Full / ours", "PSNR DeepCache, dB", "PSNR ours, dB", "Equal",
)  # fmt: skip


@dataclass
class Sampler:
    """A sampler of ``unet`` or a twin of it, which ``draw`` is given; it gives the same result each time.
    ``scheduler`` is as DeepCache looks at it."""

    name: str
    unet: Any
    scheduler: Any
    steps: int
    draw: Callable[[Any], Tensor]


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

    def draw(unet: Any) -> Tensor:
        pipe.unet = unet
        given = dict(prompt_embeds=text, negative_prompt_embeds=other, num_inference_steps=steps, output_type="latent")
        return pipe(**given, height=8 * side, width=8 * side, generator=seeded()).images

    return Sampler(f"SD 1.5, random weights, latents {side}x{side}", unet, pipe.scheduler, steps, draw)


def shipped_prior(steps: int, name: str = "horse", views: int = 2, guidance: float = 2.0) -> Sampler:
    """The prior of the package, an object from several sides in one batch, with guidance; pictures out."""
    prior = h3d.prior.load_prior()
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type=prior.prediction_type)
    subject, noise = prior.resolve(name), torch.randn(views, *prior.latent_shape, generator=seeded())

    @torch.no_grad()
    def draw(unet: Any) -> Tensor:
        around = [360.0 * view / views for view in range(views)]
        condition = prior.conditioning(subject, [20.0] * views, around, [2.0] * views)
        scheduler.set_timesteps(steps)
        latents = noise
        for t in scheduler.timesteps:
            output = unet(prior.model_input(latents, subject), t, **condition).sample
            conditioned, plain = output.chunk(2)
            latents = scheduler.step(plain + guidance * (conditioned - plain), t, latents).prev_sample
        return prior.decode(latents).clamp(0, 1)

    return Sampler(f"shipped prior, {name}, {views} views", prior.unet, scheduler, steps, draw)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@contextlib.contextmanager
def by_deepcache(sampler: Sampler, interval: int, branch: int) -> Iterator[Callable[[], Tensor]]:
    """What draws under DeepCache's helper."""
    unet = twin(sampler.unet)
    helper = DeepCacheSDHelper(SimpleNamespace(unet=unet, scheduler=sampler.scheduler))
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    yield lambda: sampler.draw(unet)
    helper.disable()


@contextlib.contextmanager
def by_us(sampler: Sampler, interval: int, branch: int) -> Iterator[Callable[[], Tensor]]:
    """What draws under our cache; that it served all it should is checked at the end."""
    unet = twin(sampler.unet)
    cache = h3d.apply_hash3d(unet, h3d.Hash3DConfig.every(interval, position=branch + 1))
    with cache.sampling():
        yield lambda: sampler.draw(unet)
    found, served = cache.stats(), sampler.steps - len(range(0, sampler.steps, interval))
    assert found.hits * sampler.steps == found.forwards * served, found
    cache.remove()


def timed(draw: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Seconds and result."""
    start = now(device)
    result = draw()
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
    device, setting = next(sampler.unet.parameters()).device, (sampler, interval, branch)
    times: list[list[float]] = [[], [], []]  # DeepCache's, ours, DeepCache's again
    with by_deepcache(*setting) as rival, by_us(*setting) as ours, by_deepcache(*setting) as again:
        sides = (rival, ours, again)
        results = [draw() for draw in sides]  # warm
        whole = [timed(lambda: sampler.draw(sampler.unet), device) for _ in range(min(rounds, 3))]
        for turn in range(rounds):
            for place in range(turn, turn + len(sides)):
                times[place % len(sides)].append(timed(sides[place % len(sides)], device)[0])
    theirs, mine, others = times
    full, reference = statistics.median(seconds for seconds, _ in whole), whole[0][1]
    seconds = full, statistics.median(theirs + others), statistics.median(mine)
    ratio = statistics.median(2 * own / (one + two) for one, own, two in zip(*times, strict=True))
    null = statistics.median(two / one for one, two in zip(theirs, others, strict=True))
    equal, error = torch.equal(results[1], results[0]), float((results[1] - results[0]).abs().max())
    return (
        sampler.name, str(sampler.steps), str(interval), str(branch), str(rounds),
        *(f"{value:.3g}" for value in seconds), f"{ratio:.3f}", f"{null:.3f}", f"{full / seconds[2]:.2f}",
        f"{psnr(results[0], reference):.2f}", f"{psnr(results[1], reference):.2f}",
        "bit for bit" if equal else f"to {error:.1g}",
    )  # fmt: skip


def main() -> None:
    """Prints the page."""
    print(f"Machine: {report.machine_line(axes.machine())}.\n", flush=True)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    prior = shipped_prior(steps=10)
    for setting in ((2, 1), (5, 0), (5, 1)):
        print("| " + " | ".join(row(prior, *setting)) + " |", flush=True)
    sampler = stable_diffusion(steps=3, device=axes.devices()[-1])
    print("| " + " | ".join(row(sampler, 3, 1)) + " |", flush=True)


if __name__ == "__main__":
    main()
