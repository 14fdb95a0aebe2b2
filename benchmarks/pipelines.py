"""Is a sampler as fast under ``cache.sampling()`` as under DeepCache's helper, and as near to the full one?

Same interval, same cut (DeepCache's branch b is position b + 1), same weights: each side has a U-Net object of its own
on them, hooked once and warm. In each round DeepCache, ours, DeepCache and ours once more draw the same, in turn after
every step: what slows the machine for a while slows all, and each side's step follows one of the other's. The ratio is
the median of the rounds' ratios of the two sums; beside it stands the second DeepCache's to the first, which nothing
but noise can move from 1. Times are those of the threads on a CPU. Stable Diffusion's weights are random: there only
the times mean something.

OMP_NUM_THREADS=1 HASH3D_BENCH_SIDE=8 python benchmarks/pipelines.py > benchmarks/results/pipelines.md
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

ROUNDS = int(os.environ.get("HASH3D_BENCH_ROUNDS", "12"))
SCHEDULE: dict[str, Any] = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
)
COLUMNS = (
    "Model", "Steps", "Interval", "Branch", "Rounds", "Full, s", "DeepCache, s", "Ours, s", "Ours / DeepCache",
    "DeepCache / DeepCache", "Full / ours", "PSNR DeepCache, dB", "PSNR ours, dB", "Equal",
)  # fmt: skip


OnStep = Callable[[], None]  # called after each step
Draw = Callable[[OnStep], Tensor]


@dataclass
class Sampler:
    """A sampler of ``unet`` or a twin of it: ``on(unet)`` is its scheduler and what draws, the same each time."""

    name: str
    unet: Any
    steps: int
    on: Callable[[Any], tuple[Any, Draw]]


def stable_diffusion(steps: int, device: str = "cpu", side: int = SIDE, **config: Any) -> Sampler:
    """diffusers' pipeline, one prompt with guidance, random weights; latents out."""
    unet = make_unet(device, **config)
    none: dict[str, Any] = dict(
        vae=None, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None
    )
    width = unet.config.cross_attention_dim
    text, other = torch.randn(2, 1, 77, width, generator=seeded(), dtype=unet.dtype).to(device)
    given = dict(prompt_embeds=text, negative_prompt_embeds=other, num_inference_steps=steps, output_type="latent")

    def on(unet: Any) -> tuple[Any, Draw]:
        scheduler = DDIMScheduler(**SCHEDULE)
        pipe = StableDiffusionPipeline(unet=unet, scheduler=scheduler, requires_safety_checker=False, **none)
        pipe.set_progress_bar_config(disable=True)

        def draw(on_step: OnStep) -> Tensor:
            def after(pipe: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
                on_step()
                return kept

            size = dict(height=8 * side, width=8 * side)
            return pipe(**given, **size, generator=seeded(), callback_on_step_end=after).images

        return scheduler, draw

    return Sampler(f"SD 1.5, random weights, latents {side}x{side}", unet, steps, on)


def shipped_prior(steps: int, name: str = "horse", views: int = 2, guidance: float = 2.0) -> Sampler:
    """The prior of the package, an object from several sides in one batch, with guidance; pictures out."""
    prior = h3d.prior.load_prior()
    subject, noise = prior.resolve(name), torch.randn(views, *prior.latent_shape, generator=seeded())
    around = [360.0 * view / views for view in range(views)]

    def on(unet: Any) -> tuple[Any, Draw]:
        scheduler = DDIMScheduler(**SCHEDULE, prediction_type=prior.prediction_type)

        @torch.no_grad()
        def draw(on_step: OnStep) -> Tensor:
            condition = prior.conditioning(subject, [20.0] * views, around, [2.0] * views)
            scheduler.set_timesteps(steps)
            latents = noise
            for t in scheduler.timesteps:
                output = unet(prior.model_input(latents, subject), t, **condition).sample
                conditioned, plain = output.chunk(2)
                latents = scheduler.step(plain + guidance * (conditioned - plain), t, latents).prev_sample
                on_step()
            return prior.decode(latents).clamp(0, 1)

        return scheduler, draw

    return Sampler(f"shipped prior, {name}, {views} views", prior.unet, steps, on)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@contextlib.contextmanager
def by_deepcache(sampler: Sampler, interval: int, branch: int) -> Iterator[Draw]:
    """What draws under DeepCache's helper."""
    unet = twin(sampler.unet)
    scheduler, draw = sampler.on(unet)
    helper = DeepCacheSDHelper(SimpleNamespace(unet=unet, scheduler=scheduler))
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    yield draw
    helper.disable()


@contextlib.contextmanager
def by_us(sampler: Sampler, interval: int, branch: int) -> Iterator[Draw]:
    """What draws under our cache; that it served all it should is checked at the end."""
    unet = twin(sampler.unet)
    _, draw = sampler.on(unet)
    cache = h3d.apply_hash3d(unet, h3d.Hash3DConfig.every(interval, position=branch + 1))

    def draw_sampling(on_step: OnStep) -> Tensor:
        with cache.sampling():  # of the thread
            return draw(on_step)

    yield draw_sampling
    found, served = cache.stats(), sampler.steps - len(range(0, sampler.steps, interval))
    assert found.hits * sampler.steps == found.forwards * served, found
    cache.remove()


def in_turn(draws: Sequence[Draw], device: torch.device, first: int = 0) -> list[tuple[float, Tensor]]:
    """Seconds and result of each: step by step in turn, each in a thread of its own, of which one runs at a time."""
    order = [*range(first, len(draws)), *range(first)]
    turns, running, seconds = [threading.Semaphore(0) for _ in draws], set(order), [0.0] * len(draws)

    def pass_on(place: int) -> None:
        after = order.index(place) + 1
        following = next((other for other in (*order[after:], *order[:after]) if other in running), None)
        if following is not None:
            turns[following].release()

    def work(place: int) -> Tensor:
        start = 0.0

        def wait() -> None:
            nonlocal start
            turns[place].acquire()
            start = now(device)

        def on_step() -> None:
            seconds[place] += now(device) - start
            pass_on(place)
            wait()

        wait()
        try:
            result = draws[place](on_step)
            seconds[place] += now(device) - start
            return result
        finally:
            running.discard(place)
            pass_on(place)

    with ThreadPoolExecutor(len(draws)) as pool:
        found = [pool.submit(work, place) for place in range(len(draws))]
        turns[order[0]].release()
        results = [future.result() for future in found]
    return list(zip(seconds, results, strict=True))


def now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def psnr(result: Tensor, reference: Tensor) -> float:
    """In dB, of the reference's own range."""
    span = reference.max() - reference.min()
    return float(10 * torch.log10(span**2 / (result.double() - reference.double()).square().mean()))


def row(sampler: Sampler, interval: int, branch: int, rounds: int = ROUNDS) -> tuple[str, ...]:
    """One line of the table."""
    device, setting = next(sampler.unet.parameters()).device, (sampler, interval, branch)
    plain = sampler.on(sampler.unet)[1]
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(kind(*setting)) for kind in (by_deepcache, by_us) * 2]
        theirs, ours = [result for _, result in in_turn(sides, device)][:2]  # warm
        times = [[seconds for seconds, _ in in_turn(sides, device, turn % len(sides))] for turn in range(rounds)]
    whole = [in_turn([plain], device)[0] for _ in range(min(rounds, 3))]
    full, reference = statistics.median(seconds for seconds, _ in whole), whole[0][1]
    rival, mine = (statistics.median((line[side] + line[side + 2]) / 2 for line in times) for side in (0, 1))
    ratio = statistics.median((line[1] + line[3]) / (line[0] + line[2]) for line in times)
    null = statistics.median(line[2] / line[0] for line in times)
    equal, error = torch.equal(ours, theirs), float((ours - theirs).abs().max())
    return (
        sampler.name, str(sampler.steps), str(interval), str(branch), str(rounds), f"{full:.3g}", f"{rival:.3g}",
        f"{mine:.3g}", f"{ratio:.3f}", f"{null:.3f}", f"{full / mine:.2f}", f"{psnr(theirs, reference):.2f}",
        f"{psnr(ours, reference):.2f}", "bit for bit" if equal else f"to {error:.1g}",
    )  # fmt: skip


def main() -> None:
    """Prints the page."""
    print(f"Machine: {report.machine_line(axes.machine())}.\n", flush=True)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    prior = shipped_prior(steps=10)
    for setting in ((2, 1), (5, 0), (5, 1)):
        print("| " + " | ".join(row(prior, *setting)) + " |", flush=True)
    sampler = stable_diffusion(steps=3, device=axes.devices()[-1])
    print("| " + " | ".join(row(sampler, 3, 1, max(ROUNDS // 3, 1))) + " |", flush=True)


if __name__ == "__main__":
    main()
