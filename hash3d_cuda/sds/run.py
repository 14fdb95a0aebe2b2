"""The state of one generation and what one step does to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.sds.attach import attach_caches, check_priors, make_guidance
from hash3d_cuda.sds.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from hash3d_cuda.sds.compiled import check_compiler, compiled
from hash3d_cuda.sds.finite import LossWatch
from hash3d_cuda.sds.guidance import Guidance
from hash3d_cuda.sds.renderer import Renderer
from hash3d_cuda.sds.sampler import ViewSampler
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.sds.tally import Tally
from hash3d_cuda.sds.timing import StepLog, TimeSplit

if TYPE_CHECKING:
    from hash3d_cuda.distributed import Ranks


class SdsRun:
    """One object in the making. Close it (or use ``with``) to take the cache off the prior's U-Net again.

    Args:
        prior: the prior.
        subject: from ``prior.resolve``.
        settings: the options.
        note: JSON values kept in checkpoints for the caller.
        previous: the scene that the stage before left, or None.
        second: another prior and what it is asked for, where ``second_weight`` is not 0. It may be the same prior with
            another subject.
        ranks: those that share the step's views (:class:`hash3d_cuda.distributed.Ranks`); None for this process alone.
        clock: as for :class:`hash3d_cuda.sds.timing.TimeSplit`.

    Raises:
        ValueError: the settings want a second prior and there is none, or a latent scene and there is a picture.
    """

    def __init__(
        self,
        prior: Prior,
        subject: Subject,
        settings: GenerateSettings,
        note: Mapping[str, Any] | None = None,
        *,
        previous: Any = None,
        second: tuple[Prior, Subject] | None = None,
        ranks: Ranks | None = None,
        clock: Callable[[], float] | None = None,
    ):
        from hash3d_cuda.sds.stages import stage_scene

        check_priors(prior, subject, settings, second)
        self.prior, self.subject, self.settings, self.note = prior, subject, settings, dict(note or {})
        self.device = torch.device(settings.device)
        self.ranks = ranks
        if ranks is not None:
            ranks.check_views(settings.views_per_step)
        self.scene = stage_scene(prior, settings, previous, together=ranks is not None)
        self.sampler = ViewSampler(settings, prior.elevation_range, prior.radius_range, len(prior.alphas_cumprod))
        self.generator = torch.Generator(device=self.device)
        self.log = StepLog()
        self.log.late = settings.decide == "device"
        self.time = TimeSplit(self.device, self.log, clock)
        self.watch = LossWatch(self.device)
        asked = [(prior, subject)] + ([second] if second is not None and settings.second_weight else [])
        group = None if ranks is None else ranks.group
        self.caches = attach_caches([prior for prior, _ in asked], settings, group)
        self.cache = self.caches[0] if self.caches else None
        self.guidance = make_guidance(prior, subject, self.cache, settings)
        self.second: Guidance | None = None
        if len(asked) > 1:
            cache = self.caches[-1] if self.caches else None
            self.second = Guidance(*asked[1], cache, settings.second_guidance_scale, settings.weighting)
        self._compile()
        self.optimizer = self._make_optimizer()
        self.step = 0
        self.tally = Tally(self.caches, self.time, ranks)
        self.warned = False  # that checkpoints cannot be written

    def __enter__(self) -> SdsRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the prior's U-Net as it was."""
        for cache in self.caches:
            cache.remove()

    @property
    def served(self) -> dict[str, int]:
        """Views by what became of them, of all ranks."""
        return self.tally.served

    def _compile(self) -> None:
        """What the steps call: the scene's rendering (of latents themselves, where it holds some), encoders, U-Nets."""
        wanted = self.settings.compile
        if wanted:
            check_compiler(self.device.type)
        drawn = self.scene.scene if self.settings.latent else self.scene
        draw = compiled("scene", wanted, drawn.render)
        self.renderer = Renderer(draw, self.prior, self.subject, self.settings, self.device)
        for guidance, _ in self.terms():
            guidance.encode = compiled("encoder", wanted, guidance.encode)
            if guidance.cache is None:  # a cache compiles the parts of the U-Net that it runs
                guidance.unet = compiled("unet", wanted, guidance.unet)

    def train_step(self) -> Tensor:
        """Render, ask the prior, pull the scene; returns the loss, a scalar on the scene's device."""
        views = self.sampler.views(self.step)
        views = views if self.ranks is None else self.ranks.part(views)
        self.generator.manual_seed(self.sampler.noise_seed(self.step))
        self._set_learning_rate()
        with self.time.step() as row:
            terms = self.terms()
            with self.time.measure("render"):
                lit = self.sampler.shading(self.step, views.whole or views)
                images, alpha = self.renderer.draw(views, *lit)
            rendered = images[: len(views.azimuth)]
            seen = self._see(rendered, [guidance for guidance, _ in terms])
            with self.time.measure("unet"):
                targets = [
                    guidance.target(latents.detach(), views, self.generator)
                    for (guidance, _), latents in zip(terms, seen, strict=True)
                ]
            self._prefetch()
            with self.time.measure("backward"):
                loss = self.scene.regularisation()
                for (guidance, weight), latents, target in zip(terms, seen, targets, strict=True):
                    loss = loss + weight * guidance.loss(latents, target, views)
                if self.subject.image is not None:
                    loss = loss + self.settings.reference_weight * self.renderer.reference_loss(images[-1], alpha[-1])
                self.watch.check(loss, self.step)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if self.ranks is not None:
                    share = len(views.azimuth) / self.settings.views_per_step
                    self.ranks.sum_gradients(self._parameters(), share)
            with self.time.measure("optimizer"):
                self.optimizer.step()
                if self.scene.on_step(self.step, self.settings.steps):
                    self.optimizer = self._make_optimizer()
            self.tally.count(row, sum(guidance.forwards for guidance, _ in terms) * len(views.azimuth))
        self.step += 1
        return loss.detach()

    def _see(self, rendered: Tensor, asked: Sequence[Guidance]) -> list[Tensor]:
        """What each guidance looks at, from images float [B,3,R,R]; one prior that is asked twice encodes once."""
        if self.settings.latent:
            return [rendered for _ in asked]
        seen: dict[tuple[int, type], Tensor] = {}
        keys = [(id(guidance.prior), type(guidance)) for guidance in asked]
        for key, guidance in zip(keys, asked, strict=True):
            guidance.time = self.time
            if key not in seen:
                seen[key] = guidance.see(rendered)
        return [seen[key] for key in keys]

    def _prefetch(self) -> None:
        """Names the next step's views to the host tier, if there is one: what they want is copied meanwhile."""
        if self.settings.host_budget is not None and self.step + 1 < self.settings.steps:
            for guidance, _ in self.terms():
                guidance.prefetch(self.sampler.views(self.step + 1))

    def terms(self) -> list[tuple[Guidance, float]]:
        """Who is asked, and with what weight."""
        first = [(self.guidance, self.settings.sds_weight)]
        return first if self.second is None else [*first, (self.second, self.settings.second_weight)]

    def settle(self) -> None:
        """Waits for the device, so that times and counts are those of all steps so far."""
        self.time.collect(wait=True)
        self.tally.settle()

    def save(self, folder: Path, with_cache: bool = True) -> None:
        """Writes everything that :meth:`restore` needs; raises OSError."""
        optimizer, groups = pack_optimizer(self.optimizer)
        self.settle()
        tensors = {f"scene.{name}": value for name, value in self.scene.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
        tensors["log"] = torch.from_numpy(self.log.array())
        about = {
            "subject": self.subject.label, "step": self.step, "settings": self.settings.as_dict(),
            "optimizer": groups, "served": self.served, "note": self.note,
        }  # fmt: skip
        save_checkpoint(folder, about, tensors, self.caches if with_cache else ())

    def restore(self, folder: Path) -> None:
        """Goes on from the checkpoint in ``folder``; raises ValueError when it belongs to another run."""
        saved = load_checkpoint(folder)
        self._require_same(saved.about, folder)
        self.scene.load_state_dict(part(saved.tensors, "scene."))
        self.optimizer = self._make_optimizer()
        unpack_optimizer(self.optimizer, part(saved.tensors, "optimizer."), saved.about["optimizer"])
        self.log.rows = np.asarray(saved.tensors["log"]).tolist()
        self.step = saved.about["step"]
        for cache, file in zip(self.caches, saved.caches, strict=False):
            cache.load(file, device=self.device)
        self.tally.resume(saved.about["served"])

    def _make_optimizer(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.scene.parameter_groups(self.settings.lr_scale), betas=(0.9, 0.99), eps=1e-15)
        for group in optimizer.param_groups:
            group["first_lr"] = group["lr"]
        return optimizer

    def _set_learning_rate(self) -> None:
        progress = self.step / max(self.settings.steps - 1, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = group["first_lr"] * (1 + (self.settings.lr_end - 1) * progress)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _require_same(self, about: dict[str, Any], folder: Path) -> None:
        before = GenerateSettings.from_dict({**about["settings"], "device": self.settings.device})
        different = before.differences(self.settings)
        if about["subject"] != self.subject.label:
            different.insert(0, "subject")
        if different:
            raise ValueError(
                f"resume: the run in {str(folder)!r} was started with another {', '.join(different)}; "
                "give the same, or --force to start over"
            )


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
