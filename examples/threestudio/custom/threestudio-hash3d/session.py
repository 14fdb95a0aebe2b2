"""The cache of one guidance: made at its first step, when the prompt and the number of rows are known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import threestudio
import torch
from torch import Tensor

import hash3d_cuda as h3d

from .conditions import PictureConditions, PromptConditions
from .kinds import Kind
from .options import Options
from .poses import HostPoses, poses_of
from .timesteps import HostTimesteps

_PERP_NEG_ROWS = 4
_MIXED_ROWS = (
    "hash3d: off for perp-neg with more than one view a step: there the rows of the negative prompts have latents and "
    "timesteps of other views; system.guidance.hash3d.repair_perp_neg: true gives them their own"
)
_SHARED = (
    "hash3d: off: VSD trains an adapter inside the pretrained U-Net, whose weights so change in every step; give phi a "
    "U-Net of its own by system.guidance.vsd_phi_model_name_or_path"
)


class Session:
    """What the mix-in asks before, within and after a guidance's call.

    Attributes:
        unet: the pretrained U-Net.
        cache: the handle; None before the first step, and while the cache is off.
        repairs: whether the rows of negative prompts are to be put right just now.
    """

    def __init__(self, guidance: Any, kind: Kind, options: Options) -> None:
        self.cache: h3d.Hash3DCache | None = None
        self._kind, self._options = kind, options
        self.unet = kind.find_unet(guidance)
        self._prompts, self._pictures = PromptConditions(), PictureConditions(kind.picture)
        self._shared = getattr(guidance, "vsd_share_model", False) and guidance.cfg.vsd_use_lora
        self._step: dict[str, Any] | None = None  # what to tell the cache in this call
        self._scope: contextlib.ExitStack | None = None
        self._loaded: Mapping[str, Any] | None = None  # a state that waits for the cache
        self._copies, self._calls, self._warned = 0, 0, set[str]()
        self.repairs = False
        self.timesteps = HostTimesteps(torch.initial_seed() + options.cache.get("seed", 0))
        if options.host_timesteps and not self._tells_timesteps:
            self.timesteps.watch(guidance.scheduler, self._enter_whole)

    @contextlib.contextmanager
    def step(self, guidance: Any, arguments: Mapping[str, Any], kept: HostPoses | None) -> Iterator[None]:
        """Surrounds a call of the guidance with these ``arguments``, by name."""
        batch = len(arguments["rgb"])
        self._step = self._look(guidance, arguments, kept, batch)
        if self._step is not None and self._options.host_timesteps:
            self.timesteps.begin(guidance.min_step, guidance.max_step, batch, self._kind.one_timestep)
        try:
            with contextlib.ExitStack() as self._scope:
                self._enter_whole()
                yield
        finally:
            self._step = self._scope = None
            self.timesteps.end()
        self._calls += 1
        self._report()

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        """Surrounds the part of a call in which the U-Net is asked for the gradient."""
        if self._step is None or self.cache is None:
            yield
            return
        self.repairs = self._step["repair"]
        try:
            with self.cache.views(**self._step["views"], timestep=self.timesteps.written):
                yield
        finally:
            self.repairs = False
        self._copies += int(self.timesteps.written is None and self._on_gpu)

    @contextlib.contextmanager
    def without(self) -> Iterator[None]:
        """Surrounds what must see the U-Net as it is."""
        with contextlib.nullcontext() if self.cache is None else self.cache.bypass():
            yield

    def figures(self) -> dict[str, float]:
        """For the guidance's output, which systems log: numbers the host knows."""
        if self.cache is None:
            return {}
        served = self.cache.served()
        items, tried = sum(served.values()), served["hits"] + served["misses"]
        return {
            "hash3d_served": served["hits"] / max(items, 1),
            "hash3d_hit_rate": served["hits"] / max(tried, 1),
            "hash3d_host_syncs": float(self._copies),
        }

    def remove(self) -> None:
        """Leaves U-Net and scheduler as they were."""
        self._drop()
        self.timesteps.leave()

    def state_dict(self) -> dict[str, Any] | None:
        """For a checkpoint: plain values and CPU tensors; None when the options want none."""
        if not self._options.checkpoint:
            return None
        drawn = {"timesteps": self.timesteps.generator.get_state()}
        if self._loaded is not None:  # it was not needed since
            return {**self._loaded, **drawn}
        cache = self.cache
        if cache is None:
            return {"cache": None, "groups": None, **drawn}
        return {"cache": cache.state_dict(), "groups": cache.config.groups, **drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`, as soon as there is a cache."""
        self.timesteps.generator.set_state(state["timesteps"])
        self._loaded = state if state["cache"] is not None else None
        if self.cache is not None:
            self._take_over(self.cache)

    @property
    def _on_gpu(self) -> bool:
        return next(self.unet.parameters()).is_cuda

    @property
    def _tells_timesteps(self) -> bool:
        return "compute_grad_sds" in self._kind.methods

    def _enter_whole(self) -> None:
        """Where a guidance has no method of its own for the U-Net's call: tells the views until the call's end, anew
        when the timesteps become known."""
        if not self._kind.methods and self._scope is not None:
            self._scope.enter_context(self.within())

    def _look(
        self, guidance: Any, arguments: Mapping[str, Any], kept: HostPoses | None, batch: int
    ) -> dict[str, Any] | None:
        """What the cache is to be told; None: it stays out of this call."""
        prompt = None if self._kind.picture else arguments["prompt_utils"]
        perp_neg = prompt is not None and prompt.use_perp_neg
        repair = perp_neg and batch > 1
        if self._shared or (repair and not self._options.repair_perp_neg):
            self._warn(_SHARED if self._shared else _MIXED_ROWS)
            return None
        poses, copies = poses_of(arguments, kept)
        if copies and self._options.cache.get("strict"):
            raise ValueError(
                "system.guidance.hash3d.strict: expected poses on the host, got some on a GPU; put :hash3d-system "
                "behind system.system_type, or set strict: false"
            )
        self._copies += copies
        directed = getattr(guidance.cfg, "view_dependent_prompting", True)
        if prompt is None:
            ids, limit = self._pictures.id(guidance), 1
        else:
            ids, limit = self._prompts.ids(prompt, poses, directed), self._prompts.limit(prompt, directed)
        self._prepare(_PERP_NEG_ROWS if perp_neg else 2, limit)
        elevation, azimuth, radius = poses.T
        return {
            "views": {"elevation": elevation, "azimuth": azimuth, "radius": radius, "condition": ids},
            "repair": repair,
        }

    def _prepare(self, groups: int, limit: int) -> None:
        """Puts the cache under the U-Net; a new one when a view has another number of rows than before."""
        if self.cache is not None and self.cache.config.groups == groups:
            return
        self._drop()
        rows = "perp-neg" if groups == _PERP_NEG_ROWS else "group-major"
        told = {"max_conditions": limit, **self._options.cache}
        self.cache = h3d.apply_hash3d(self.unet, h3d.Hash3DConfig(**told, groups=groups, rows=rows))
        if self._loaded is not None:
            self._take_over(self.cache)

    def _take_over(self, cache: h3d.Hash3DCache) -> None:
        state, self._loaded = self._loaded, None
        if state is None or state["groups"] != cache.config.groups:
            return
        try:
            cache.load_state_dict(state["cache"], device=next(self.unet.parameters()).device)
        except ValueError as error:
            threestudio.warn(f"hash3d: starts with an empty table: {error}")

    def _drop(self) -> None:
        if self.cache is not None:
            self.cache.remove()
            self.cache = None

    def _report(self) -> None:
        every = self._options.log_every
        if self.cache is not None and every and self._calls % every == 0:
            figures = ", ".join(f"{name.removeprefix('hash3d_')} {value:.3f}" for name, value in self.figures().items())
            threestudio.info(f"hash3d after {self._calls} steps: {figures}")

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            threestudio.warn(text)


def repair_rows(rows: Tensor, batch: int) -> Tensor:
    """Rows ``[4B, ...]`` of perp-neg in which the negative prompts of view i, at 2B + 2i and the next, get view i's own
    latents or timesteps: the first ``batch`` rows are the views'."""
    views = rows[:batch]
    return torch.cat([views, views, views.repeat_interleave(_PERP_NEG_ROWS - 2, dim=0)])
