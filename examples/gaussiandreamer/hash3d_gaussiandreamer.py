"""Hash3D under GaussianDreamer's guidance. GaussianDreamer is a fork of an early threestudio that has no ``custom/``
folder for add-ons; importing this module adds the guidance ``stable-diffusion-guidance:hash3d`` to it.

In launch.py, one line after ``import threestudio``: ``import hash3d_gaussiandreamer``. README.md has the rest.

Cameras are drawn on the CPU and then moved to the GPU, so their poses are noted before that; timesteps are drawn here,
on the host. So nothing is copied back.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from typing import Any

import threestudio
import torch
from threestudio.data.uncond import RandomCameraIterableDataset
from threestudio.models.guidance.stable_diffusion_guidance import StableDiffusionGuidance
from torch import Tensor

from hash3d_cuda.add_on import GuidanceCache, content_id, make_config

POSES = "hash3d_poses"  # the entry of a batch


@threestudio.register("stable-diffusion-guidance:hash3d")
class CachedGuidance(StableDiffusionGuidance):
    """Upstream's guidance with its U-Net under the cache. ``guidance_eval`` runs without it.

    Options, under ``system.guidance.hash3d``: those of :class:`hash3d_cuda.Hash3DConfig`, and ``repair_perp_neg``.
    """

    @dataclass
    class Config(StableDiffusionGuidance.Config):
        hash3d: dict = field(default_factory=dict)

    def configure(self) -> None:
        super().configure()
        options = dict(self.cfg.hash3d)
        self._repair = bool(options.pop("repair_perp_neg", False))
        if make_config(options).decide != "host":  # wrong options are refused here, before the first step
            raise ValueError(
                'decide: expected "host", as poses and timesteps are there anyway, got "device"; leave it out'
            )
        self._options = options
        self._poses: dict[str, list[float]] | None = None
        self._interleave = False
        self.hash3d: GuidanceCache | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._poses = kwargs.pop(POSES, None)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._poses = None

    def compute_grad_sds(self, latents: Tensor, t: Tensor, prompt_utils: Any, *pose: Tensor) -> Any:
        return self._cached(super().compute_grad_sds, latents, t, prompt_utils, *pose)

    def compute_grad_sjc(self, latents: Tensor, t: Tensor, prompt_utils: Any, *pose: Tensor) -> Any:
        return self._cached(super().compute_grad_sjc, latents, t, prompt_utils, *pose)

    def forward_unet(self, latents: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        if self._interleave:
            latents, t = interleave_negatives(latents), interleave_negatives(t)
        return super().forward_unet(latents, t, encoder_hidden_states)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        super().update_step(epoch, global_step, on_load_weights)
        if self.hash3d is not None and global_step % 100 == 0:
            threestudio.info(f"hash3d: {self.hash3d.cache.served()}")  # waits for nothing

    def _cached(self, compute: Any, latents: Tensor, t: Tensor, prompt_utils: Any, *pose: Tensor) -> Any:
        """``compute(latents, t, prompt_utils, elevation, azimuth, camera_distances)`` under the cache."""
        perp_neg, batch = prompt_utils.use_perp_neg, len(t)
        if self.hash3d is None:
            self.hash3d = self._apply(perp_neg)
        if perp_neg and batch > 1 and not self._repair:
            warnings.warn(
                "hash3d: with perp-neg and several views, upstream gives negative prompts the latents of other views, "
                "so the U-Net runs uncached; pass system.guidance.hash3d.repair_perp_neg=true or data.batch_size=1",
                stacklevel=2,
            )
            return compute(latents, t, prompt_utils, *pose)
        views = self._poses or self.hash3d.on_host(**dict(zip(("elevation", "azimuth", "radius"), pose, strict=True)))
        views = {**views, "condition": conditions_of(self.cfg, prompt_utils, views)}
        # Upstream's draw is thrown away, so that all other random numbers are as without the cache.
        steps = [self.hash3d.coin.randint(self.min_step, self.max_step) for _ in range(batch)]
        views["timestep"], t = steps, torch.tensor(steps, dtype=t.dtype).to(t.device, non_blocking=True)
        self._interleave = perp_neg and batch > 1
        try:
            with self.hash3d.during(lambda number: views):
                return compute(latents, t, prompt_utils, *pose)
        finally:
            self._interleave = False

    def _apply(self, perp_neg: bool) -> GuidanceCache:
        """[text, uncond], or [text B, uncond B, negatives of view 0, of view 1, ...]; a table for each wording."""
        rows = {"groups": 4, "rows": "perp-neg"} if perp_neg else {"groups": 2}
        wordings = (6 if perp_neg else 4) if self.cfg.view_dependent_prompting else 1
        return GuidanceCache(self.unet, make_config(self._options, max_conditions=wordings, **rows))


def conditions_of(cfg: Any, prompt_utils: Any, views: dict[str, Any]) -> Any:
    """Per view what its features depend on beside the key: the prompt, and the direction that it is worded for."""
    told = content_id(prompt_utils.text_embeddings, prompt_utils.uncond_text_embeddings)
    if not cfg.view_dependent_prompting:
        return told
    pose = [torch.as_tensor(views[name]) for name in ("elevation", "azimuth", "radius")]
    names = [""] * len(pose[0])
    for direction in prompt_utils.directions:
        names = [direction.name if yes else name for yes, name in zip(direction.condition(*pose), names, strict=True)]
    if prompt_utils.use_perp_neg:  # its negatives change places at the sides
        halves = ["front" if abs((azimuth + 180) % 360 - 180) < 90 else "back" for azimuth in pose[1]]
        names = [f"{name}, {half}" for name, half in zip(names, halves, strict=True)]
    return [(told, name) for name in names]


def interleave_negatives(rows: Tensor) -> Tensor:
    """``cat([x] * 4)`` -> ``x, x, x0, x0, x1, x1, ...``: as the embeddings of perp-neg lie."""
    x = rows[: len(rows) // 4]
    return torch.cat([x, x, x.repeat_interleave(2, dim=0)])


def note_poses(collate: Any) -> Any:
    """``RandomCameraIterableDataset.collate`` with the poses once more, as numbers, which stay on the host."""

    @functools.wraps(collate)
    def noting(self: Any, batch: Any) -> dict[str, Any]:
        made = collate(self, batch)
        names = {"elevation": "elevation", "azimuth": "azimuth", "radius": "camera_distances"}
        return {**made, POSES: {ours: made[theirs].tolist() for ours, theirs in names.items()}}

    return noting


RandomCameraIterableDataset.collate = note_poses(RandomCameraIterableDataset.collate)
