"""Hash3D under DreamGaussian's guidance: Zero123, Stable-Zero123, Stable Diffusion, MVDream, ImageDream.

First stage, in main.py: ``attach(self)`` at the end of ``prepare_train``, and before the guidance losses
``self.hash3d.look(vers, hors, radii)``. Second stage, in main2.py: ``attach_refine(self)``. README.md has the lines.

Poses are the host's own integers, and so are annealed timesteps: nothing is copied from a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import hash3d_cuda as h3d
from hash3d_cuda.add_on import GuidanceCache, content_id, make_config
from hash3d_cuda.unet import multi_view


def attach(gui: Any, **options: Any) -> FirstStage:
    """Caches the guidance of a ``GUI`` of main.py, as ``gui.hash3d``; one that is there from an earlier start goes.

    Args:
        gui: after ``prepare_train`` has loaded its guidance.
        options: of :class:`hash3d_cuda.Hash3DConfig`.
    """
    return _replace(gui, FirstStage, options)


def attach_refine(gui: Any, interval: int = 5, **options: Any) -> SecondStage:
    """The same for a ``GUI`` of main2.py, whose pictures are refined by denoising: of every ``interval`` denoising
    steps of a picture one runs in full, and the others reuse its feature."""
    return _replace(gui, SecondStage, {"interval": interval, **options})


def _replace(gui: Any, stage: type, options: dict[str, Any]) -> Any:
    if (earlier := vars(gui).get("hash3d")) is not None:
        earlier.remove()
    gui.hash3d = None  # if what follows fails
    gui.hash3d = stage(gui, **options)
    return gui.hash3d


class Stage:
    """What both stages share: a cache for each guidance that the ``GUI`` has loaded."""

    def __init__(self, gui: Any, options: dict[str, Any], **defaults: Any) -> None:
        self._gui = gui
        self._frames = 5 if gui.opt.imagedream else 4 if gui.opt.mvdream else 1
        self.caches: dict[str, GuidanceCache] = {}
        for seed, (name, frames) in enumerate((("sd", self._frames), ("zero123", 1))):
            guidance = getattr(gui, f"guidance_{name}")
            if guidance is not None and getattr(gui, f"enable_{name}"):
                rows = multi_view(frames) if frames > 1 else {}
                config = make_config(options, seed=seed, **rows, **defaults)
                self.caches[name] = GuidanceCache(unet_of(guidance), config)

    def __str__(self) -> str:
        return "\n".join(f"{name}: {cache}" for name, cache in self.caches.items())

    def remove(self) -> None:
        """Takes the caches away."""
        for cache in self.caches.values():
            cache.remove()


class FirstStage(Stage):
    """``train_step`` of every guidance runs under the cache."""

    def __init__(self, gui: Any, **options: Any) -> None:
        super().__init__(gui, options)
        self._seen: dict[str, list[float]] | None = None
        for name, cache in self.caches.items():
            guidance = getattr(gui, f"guidance_{name}")
            cache.wrap(guidance, "train_step", functools.partial(self._step, name, guidance))

    def look(self, vers: list[float], hors: list[float], radii: list[float]) -> None:
        """Tells where the next ``train_step`` looks from: main.py's lists, one number per view, of multi-view guidance
        per set of views. ``vers`` and ``radii`` are offsets from ``opt.elevation`` and ``opt.radius``."""
        self._seen = pose_of(self._gui.opt, vers, hors, radii)

    @contextlib.contextmanager
    def _step(self, name: str, guidance: Any, call: dict[str, Any]) -> Iterator[None]:
        """Around ``train_step(...)`` with the arguments ``call``."""
        if name == "zero123":
            pose = pose_of(self._gui.opt, call["elevation"], call["azimuth"], call["radius"])
        else:
            pose, self._seen = self._seen, None
        if pose is None:
            warnings.warn("hash3d: look(vers, hors, radii) was not called before train_step: no cache", stacklevel=4)
            yield
            return
        views = {**pose, "condition": condition_of(guidance, call)}
        frames = self._frames if name == "sd" else 1
        with timestep_of(self.caches[name], guidance, call, frames) as timestep:
            told = None if timestep is None else {**views, **timestep}
            with self.caches[name].during(lambda number: told):
                yield


class SecondStage(Stage):
    """``refine`` of every guidance reuses features from one denoising step to the next, of the same picture only.

    The key's timestep is the number of the denoising step, so a cell is ``interval`` of them. The pose only keeps the
    pictures of a batch apart, and every call of ``refine`` is a condition of its own.
    """

    def __init__(self, gui: Any, interval: int, **options: Any) -> None:
        grids = (h3d.Grid(timestep=float(interval)),)
        small = {"grids": grids, "queue_length": 1, "num_buckets": 1009, "capacity": gui.opt.batch_size, "eta": 1.0}
        super().__init__(gui, options, **small)
        self._pictures = 0
        for name in self.caches:
            self.caches[name].wrap(getattr(gui, f"guidance_{name}"), "refine", functools.partial(self._refine, name))

    @contextlib.contextmanager
    def _refine(self, name: str, call: dict[str, Any]) -> Iterator[None]:
        """Around ``refine(...)`` with the arguments ``call``."""
        self._pictures += 1
        items = items_of(len(call["pred_rgb"]), self._frames if name == "sd" else 1)
        apart = [10.0 * item for item in range(items)]  # a cell of its own for each
        views = {"elevation": apart, "azimuth": 0.0, "radius": 1.0, "condition": self._pictures}
        with self.caches[name].during(lambda number: {**views, "timestep": number}):
            yield


def unet_of(guidance: Any) -> Any:
    """The U-Net of a guidance: diffusers' own, or ldm's inside its wrapper."""
    return guidance.unet if hasattr(guidance, "unet") else guidance.model.model.diffusion_model


def pose_of(opt: Any, vers: list[float], hors: list[float], radii: list[float]) -> dict[str, list[float]]:
    """Keyword arguments of ``views``. DreamGaussian's elevations grow downwards (``orbit_camera``), the cache's
    upwards, so that they agree with :func:`hash3d_cuda.unet.pose_from_camera`."""
    return {
        "elevation": [-float(opt.elevation + ver) for ver in vers],
        "azimuth": [float(hor) for hor in hors],
        "radius": [float(opt.radius + radius) for radius in radii],
    }


def condition_of(guidance: Any, call: dict[str, Any]) -> Any:
    """What the features depend on beside the key: the embeddings of prompt and picture, which a new one exchanges; and,
    where directions are told, which prompt a view has."""
    told = content_id(guidance.embeddings, getattr(guidance, "image_embeddings", None))
    if call.get("hors") is None:
        return told
    return [(told, "front" if abs(hor) < 60 else "side" if abs(hor) < 120 else "back") for hor in call["hors"]]


def items_of(pictures: int, frames: int) -> int:
    """Items in a batch of rendered pictures. ImageDream is given 4 of its 5 frames; the last is the input picture."""
    return pictures // min(frames, 4)


@contextlib.contextmanager
def timestep_of(
    cache: GuidanceCache, guidance: Any, call: dict[str, Any], frames: int
) -> Iterator[dict[str, float] | None]:
    """What ``views`` is to be told of the timestep that ``train_step`` will take, or None for no cache."""
    ratio, items = call["step_ratio"], items_of(len(call["pred_rgb"]), frames)
    if ratio is not None:  # annealed: upstream's own arithmetic, on the host
        steps = round((1 - ratio) * guidance.num_train_timesteps)
        yield {"timestep": min(max(steps, guidance.min_step), guidance.max_step)}
    elif items == 1:
        with cache.drawn_timestep(guidance) as timestep:
            yield {"timestep": timestep}
    else:
        # One each, drawn on the GPU: copied. The frames of several sets of views get mixed ones upstream, so that no
        # one timestep stands for a set.
        yield {} if frames == 1 else None
