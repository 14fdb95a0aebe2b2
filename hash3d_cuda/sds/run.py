"""The state of one generation and what one step does to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.sds.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from hash3d_cuda.sds.finite import LossWatch
from hash3d_cuda.sds.guidance import Guidance
from hash3d_cuda.sds.sampler import StepViews, ViewSampler
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.sds.timing import COUNTS, StepLog, TimeSplit


class SdsRun:
    """One object in the making. Close it (or use ``with``) to take the cache off the prior's U-Net again.

    Args:
        prior: the prior.
        subject: from ``prior.resolve``.
        settings: the options.
        note: JSON values kept in checkpoints for the caller.
    """

    def __init__(
        self,
        prior: Prior,
        subject: Subject,
        settings: GenerateSettings,
        note: Mapping[str, Any] | None = None,
    ):
        from hash3d_cuda.sds.scenes import make_scene

        self.prior, self.subject, self.settings, self.note = prior, subject, settings, dict(note or {})
        self.device = torch.device(settings.device)
        size = {} if settings.scene_size is None else {"size": settings.scene_size}
        self.scene = make_scene(settings.scene, **size, seed=settings.seed, device=self.device)
        self.sampler = ViewSampler(settings, prior.elevation_range, prior.radius_range, len(prior.alphas_cumprod))
        # Once, for every step would wait for the copy.
        self._picture = [None if v is None else v.to(self.device) for v in (subject.image, subject.alpha)]
        self.generator = torch.Generator(device=self.device)
        self.log = StepLog()
        self.time = TimeSplit(self.device, self.log)
        self.watch = LossWatch(self.device)
        self.cache = attach_cache(prior, settings) if settings.cache else None
        self.guidance = Guidance(prior, subject, self.cache, settings.guidance_scale, settings.weighting)
        self.optimizer = self._make_optimizer()
        self.step = 0
        self.served = dict.fromkeys(COUNTS, 0)
        self.warned = False  # that checkpoints cannot be written
        self._table: Any = None

    def __enter__(self) -> SdsRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the prior's U-Net as it was."""
        if self.cache is not None:
            self.cache.remove()

    def train_step(self) -> Tensor:
        """Render, ask the prior, pull the scene; returns the loss, a scalar on the scene's device."""
        views = self.sampler.views(self.step)
        self.generator.manual_seed(self.sampler.noise_seed(self.step))
        self._set_learning_rate()
        with self.time.step() as row:
            with self.time.measure("render"):
                images, alpha = self._render(views)
                latents = self.prior.encode(images[: len(views.azimuth)])
            with self.time.measure("unet"):
                target = self.guidance.target(latents.detach(), views, self.generator)
            with self.time.measure("backward"):
                loss = self.guidance.loss(latents, target, views) + self.scene.regularisation()
                if self.subject.image is not None:
                    loss = loss + self.settings.reference_weight * self._reference_loss(images[-1], alpha[-1])
                self.watch.check(loss, self.step)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
                if self.scene.on_step(self.step, self.settings.steps):
                    self.optimizer = self._make_optimizer()
            self._count(row, len(views.azimuth))
        self.step += 1
        return loss.detach()

    def save(self, folder: Path, with_cache: bool = True) -> None:
        """Writes everything that :meth:`restore` needs; raises OSError."""
        optimizer, groups = pack_optimizer(self.optimizer)
        self.time.collect(wait=True)
        tensors = {f"scene.{name}": value for name, value in self.scene.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
        tensors["log"] = torch.from_numpy(self.log.array())
        about = {
            "subject": self.subject.label, "step": self.step, "settings": self.settings.as_dict(),
            "optimizer": groups, "served": self.served, "note": self.note,
        }  # fmt: skip
        save_checkpoint(folder, about, tensors, self.cache if with_cache else None)

    def restore(self, folder: Path) -> None:
        """Goes on from the checkpoint in ``folder``; raises ValueError when it belongs to another run."""
        saved = load_checkpoint(folder)
        self._require_same(saved.about, folder)
        self.scene.load_state_dict(part(saved.tensors, "scene."))
        self.optimizer = self._make_optimizer()
        unpack_optimizer(self.optimizer, part(saved.tensors, "optimizer."), saved.about["optimizer"])
        self.log.rows = np.asarray(saved.tensors["log"]).tolist()
        self.step, self.served = saved.about["step"], saved.about["served"]
        if self.cache is not None and saved.cache is not None:
            self.cache.load(saved.cache, device=self.device)

    def _render(self, views: StepViews) -> tuple[Tensor, Tensor]:
        """Images [B,3,S,S] and alphas [B,1,S,S] of the step's views; a picture's own pose comes last."""
        poses = [views.elevation, views.azimuth, views.radius]
        if self.subject.image is not None:
            poses = [[*values, own] for values, own in zip(poses, self._own_pose(), strict=True)]
        elevation, azimuth, radius = (torch.tensor(p).to(self.device, non_blocking=True) for p in poses)
        result = self.scene.render(elevation, azimuth, radius, self.prior.image_size)
        return result.image, result.alpha

    def _own_pose(self) -> tuple[float, float, float]:
        middle = sum(self.prior.radius_range) / 2
        pose = (self.subject.elevation, self.subject.azimuth, self.subject.radius)
        return tuple(v if v is not None else d for v, d in zip(pose, (0.0, 0.0, middle), strict=True))  # type: ignore

    def _reference_loss(self, image: Tensor, alpha: Tensor) -> Tensor:
        """How far the view from the picture's own pose, [3,S,S] and [1,S,S], is from the picture."""
        picture, outline = self._picture
        loss = (image - picture).square().mean()
        if outline is not None:
            loss = loss + (alpha - outline).square().mean()
        return loss

    def _make_optimizer(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.scene.parameter_groups(self.settings.lr_scale), betas=(0.9, 0.99), eps=1e-15)
        for group in optimizer.param_groups:
            group["first_lr"] = group["lr"]
        return optimizer

    def _set_learning_rate(self) -> None:
        progress = self.step / max(self.settings.steps - 1, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = group["first_lr"] * (1 + (self.settings.lr_end - 1) * progress)

    def _count(self, row: int, items: int) -> None:
        """Files what the cache did in this step; its counters are host integers."""
        before = dict(self.served)
        if self.cache is None:
            self.served["bypasses"] += items
        else:
            self.served = self.cache.served()
        for name in COUNTS:
            self.log.add(row, name, self.served[name] - before[name])
        if self._table is None and self.cache is not None and self.cache.table is not None:
            self._table = self.cache.table
            self.time.watch_table(self._table)

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


def attach_cache(prior: Prior, settings: GenerateSettings) -> Any:
    """Puts the cache on the prior's U-Net."""
    from hash3d_cuda import Hash3DConfig, apply_hash3d

    config = Hash3DConfig(
        eta=settings.eta, position=settings.position, groups=prior.groups, grids=settings.grids,
        memory_budget=settings.memory_budget, seed=settings.seed,
    )  # fmt: skip
    return apply_hash3d(prior.unet, config)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
