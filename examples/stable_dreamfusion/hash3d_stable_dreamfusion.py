"""Hash3D under stable-dreamfusion's guidance: Stable Diffusion, with and without perp-neg, and Zero123 with one or more
reference pictures.

In main.py, after the ``Trainer`` for training is made: ``hash3d_stable_dreamfusion.attach(trainer)``. README.md has the
lines.

Its poses are drawn on the GPU. They are copied to the host once per step, right where upstream waits for the GPU
itself: to choose the prompt by azimuth, or to weigh the reference pictures.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from hash3d_cuda.add_on import GuidanceCache, content_id, make_config


def attach(trainer: Any, **options: Any) -> Attached:
    """Caches the guidance of a ``Trainer``, as ``trainer.hash3d``.

    Args:
        trainer: made with its guidance, so that prompt and pictures are embedded.
        options: of :class:`hash3d_cuda.Hash3DConfig`, for every guidance alike.

    Raises:
        ValueError: there is neither Stable Diffusion nor Zero123 among its guidance.
    """
    trainer.hash3d = Attached(trainer, options)
    return trainer.hash3d


class Attached:
    """The caches of a ``Trainer`` by the name of the guidance, ``"SD"`` and ``"zero123"``. DeepFloyd IF and CLIP have
    none: IF is a cascade of pixel models, CLIP has no U-Net."""

    def __init__(self, trainer: Any, options: dict[str, Any]) -> None:
        self.caches: dict[str, GuidanceCache] = {}
        self._opt, self._data = trainer.opt, None
        if "SD" in trainer.guidance:
            self._attach_sd(trainer, options)
        if "zero123" in trainer.guidance:
            self._attach_zero123(trainer, options)
        if not self.caches:
            raise ValueError(
                f"trainer: expected guidance SD or zero123, got {list(trainer.guidance)}; choose one of these"
            )

    def __str__(self) -> str:
        return "\n".join(f"{name}: {cache}" for name, cache in self.caches.items())

    def remove(self) -> None:
        """Takes the caches away."""
        for cache in self.caches.values():
            cache.remove()

    def _attach_sd(self, trainer: Any, options: dict[str, Any]) -> None:
        perpneg = self._opt.perpneg
        rows = {"groups": 4, "max_conditions": 2} if perpneg else {"groups": 2}  # [uncond B, K * B]: K is 3, or 1
        guidance, config = trainer.guidance["SD"], make_config(options, **rows)
        if perpneg and config.decide != "host":
            raise ValueError(
                'decide: expected "host" with perp-neg, whose prompts go by azimuth, got "device"; leave it out'
            )
        cache = self.caches["SD"] = GuidanceCache(guidance.unet, config)
        cache.wrap(trainer, "train_step", self._note)
        method = "train_step_perpneg" if perpneg else "train_step"
        cache.wrap(guidance, method, functools.partial(self._sd_step, guidance))

    def _attach_zero123(self, trainer: Any, options: dict[str, Any]) -> None:
        guidance, pictures = trainer.guidance["zero123"], len(self._opt.images)
        config = make_config(options, seed=1, max_conditions=pictures)  # [uncond, cond], once for each picture
        cache = self.caches["zero123"] = GuidanceCache(guidance.model.model.diffusion_model, config)
        cache.wrap(guidance, "train_step", functools.partial(self._zero123_step, guidance))

    @contextlib.contextmanager
    def _note(self, call: dict[str, Any]) -> Iterator[None]:
        """Around ``Trainer.train_step(data)``: Stable Diffusion's is not told the pose."""
        self._data = call["data"]
        try:
            yield
        finally:
            self._data = None

    @contextlib.contextmanager
    def _sd_step(self, guidance: Any, call: dict[str, Any]) -> Iterator[None]:
        cache, opt, data = self.caches["SD"], self._opt, self._data
        if data is None:  # called by other code than the trainer
            yield
            return
        seen = cache.on_host(**{name: data[name] for name in ("polar", "azimuth", "radius")})
        condition: Any = (opt.text, opt.negative, bool(call["as_latent"]))
        if opt.perpneg:  # the two negatives change places at the sides
            halves = ["front" if -90 <= azimuth < 90 else "back" for azimuth in seen["azimuth"]]
            condition = [(*condition, half) for half in halves]
        views = {**pose_of(opt, **seen), "condition": condition}
        with timestep_of(cache, guidance, call) as timestep, cache.during(lambda number: {**views, **timestep}):
            yield

    @contextlib.contextmanager
    def _zero123_step(self, guidance: Any, call: dict[str, Any]) -> Iterator[None]:
        cache, pictures = self.caches["zero123"], call["embeddings"]
        seen = cache.on_host(**{name: call[name] for name in ("polar", "azimuth", "radius")})
        pose = pose_of(self._opt, **seen)
        told = [content_id(*pair) for pair in zip(pictures["c_crossattn"], pictures["c_concat"], strict=True)]
        with timestep_of(cache, guidance, call) as timestep:
            views = {**pose, **timestep}
            with cache.during(lambda number: {**views, "condition": told[number]}):
                yield


def pose_of(opt: Any, polar: Any, azimuth: Any, radius: Any) -> dict[str, Any]:
    """Keyword arguments of ``views`` from the trainer's offsets to the default view. Its polar angle is 0 above the
    object and 90 at its height."""
    return {
        "elevation": 90 - (polar + opt.default_polar),
        "azimuth": azimuth + opt.default_azimuth,
        "radius": radius + opt.default_radius,
    }


@contextlib.contextmanager
def timestep_of(cache: GuidanceCache, guidance: Any, call: dict[str, Any]) -> Iterator[dict[str, int]]:
    """What ``views`` is to be told of the timestep: of one view it is drawn on the host; of several, which draw one
    each on the GPU, it is copied from the U-Net's argument."""
    if len(call["pred_rgb"]) > 1:
        yield {}
        return
    with cache.drawn_timestep(guidance) as timestep:
        yield {"timestep": timestep}
