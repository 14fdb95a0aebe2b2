"""The cache under a diffusion model: ``apply_hash3d`` and the handle it returns (section 3 of the paper).

The hook is one named root hook in diffusers' ``HookRegistry``; what it does with a call is in :mod:`.hooked`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from . import cache_state
from .cached import CachedForward
from .checks import fail
from .config import Hash3DConfig
from .control import Audit
from .device_inputs import DeviceViews
from .hooked import HookedForward
from .poses import Views
from .root_hook import has_hook
from .sampling import Sampling
from .stats import CacheStats, Decision
from .table import HashTable
from .unet import Adapter, find_adapter


def apply_hash3d(unet: nn.Module, config: Hash3DConfig | None = None) -> Hash3DCache:
    """Puts a cache under ``unet`` and returns its handle. The user's own calls of the U-Net stay as they are.

    Args:
        unet: a diffusers U-Net, or another model that an adapter fits (:mod:`hash3d_cuda.unet`); it is changed in
            place, until ``remove()``.
        config: see :class:`Hash3DConfig`; by default all its defaults.

    Raises:
        TypeError: a model that no adapter fits, or one whose blocks cannot be cut.
        ValueError: the U-Net has a cache already, or has no such position.
    """
    config = Hash3DConfig() if config is None else config
    if not isinstance(config, Hash3DConfig):
        fail(TypeError, "config", "a Hash3DConfig", config, "pass hash3d_cuda.Hash3DConfig(...)")
    adapter = find_adapter(unet)
    positions = adapter.count_positions()
    if config.position > positions:
        fail(ValueError, "position", f"1 to {positions} for this U-Net", config.position, "choose one of these")
    if has_hook(unet):
        raise ValueError(
            "apply_hash3d: expected a U-Net without a cache, got one that has one; use its handle, or call remove() "
            "on it first"
        )
    return Hash3DCache(adapter, config)


class Hash3DCache:
    """The handle of a cache under a U-Net. Poses are told per thread; forwards inside ``views`` run one at a time.

    Attributes:
        config: the configuration; do not change it.
    """

    def __init__(self, adapter: Adapter, config: Hash3DConfig) -> None:
        self.config = config
        self._hooked = HookedForward(adapter, config)
        self._hooked.hook.install()

    @property
    def last(self) -> Decision:
        """What became of the items of the last forward."""
        return self._hooked.last

    @contextlib.contextmanager
    def views(
        self, elevation: Any, azimuth: Any, radius: Any, timestep: Any = None, condition: Any = None
    ) -> Iterator[Hash3DCache]:
        """Tells the poses of the items that the U-Net is called with inside the block; the innermost one counts.

        Args:
            elevation, azimuth, radius: degrees, degrees, scene units: a number, or B of them in a sequence, array or
                tensor. Host values cost nothing; a CUDA tensor is waited for.
            timestep: the same. None: taken from the U-Net's own argument.
            condition: a hashable id of everything else the features depend on - prompt, class labels, input image,
                ControlNet picture - or a list of B ids. Entries are only reused under an equal id. None is an id too:
                under it, as under any one id, another prompt or picture of the same shape is answered with the
                features of the first. Exchanged or updated weights and modules, attention processors, LoRA scales,
                FreeU and which inputs are given are noticed without it; weights written through ``.data``, as
                diffusers' ``EMAModel.copy_to`` does, are not: call ``clear()`` after that.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        if self.config.interval is not None:
            expected = "a cache whose Hash3DConfig has no interval"
            fail(RuntimeError, "views", expected, self.config.interval, "use sampling(), or another configuration")
        kind = Views if self._hooked.device is None else DeviceViews
        with self._told(kind(elevation, azimuth, radius, timestep, condition, self._hooked.copies)):
            yield self

    def prefetch(self, elevation: Any, azimuth: Any, radius: Any, timestep: Any, condition: Any = None) -> None:
        """Tells the poses of the next forward inside ``views`` ahead of it, as there; a second call before it, those of
        the one after. With ``host_budget`` the entries that these want and only the host has are then on their way to
        the GPU, and come in time if there is other work in between. A hint: a forward with other views is answered
        as well, and without a host tier nothing happens.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        if self.config.host_budget is None:
            return
        hints = Views(elevation, azimuth, radius, timestep, condition, self._hooked.copies).hints()
        with self._hooked.lock:
            if isinstance(self._hooked.cached, CachedForward):
                self._hooked.cached.prefetch(*hints)

    @contextlib.contextmanager
    def sampling(self) -> Iterator[Hash3DCache]:
        """The calls inside are the steps of a sampler, such as those of a diffusers pipeline: every ``interval``-th is
        computed in full, those between reuse its feature (:meth:`Hash3DConfig.every`). The whole batch is one item.

        A pipeline may be called any number of times inside: a call that does not go on where the last one was - other
        embeddings, another tensor of timesteps, another shape - starts a run of its own and reuses nothing. In a loop
        of your own, enter one block for each run, and make the embeddings before the loop.

        Raises:
            RuntimeError: the cache's configuration has no ``interval``.
        """
        if self.config.interval is None:
            remedy = "apply_hash3d(unet, Hash3DConfig.every(3)), or use views()"
            fail(RuntimeError, "sampling", "a cache whose Hash3DConfig has an interval", None, remedy)
        with self._told(Sampling(self._hooked.copies)):
            yield self

    @contextlib.contextmanager
    def _told(self, views: Views | Sampling) -> Iterator[None]:
        entered = self._hooked.scopes.views
        entered.append(views)
        try:
            yield
        finally:
            entered.remove(views)  # not always the last: blocks may be left in another order

    @contextlib.contextmanager
    def bypass(self) -> Iterator[Hash3DCache]:
        """Inside the block the U-Net is as if there were no cache: nothing is looked up, stored or counted, also inside
        ``views``, whichever is the outer one."""
        self._hooked.scopes.bypasses += 1
        try:
            yield self
        finally:
            self._hooked.scopes.bypasses -= 1

    @property
    def table(self) -> HashTable | None:
        """The table, that of the last condition when there are several; None before the first forward."""
        return None if self._hooked.cached.store is None else self._hooked.cached.store.current

    @property
    def tables(self) -> list[HashTable]:
        """The tables of all conditions that are remembered, the one used last at the end."""
        return [] if self._hooked.cached.store is None else self._hooked.cached.store.tables

    def stats(self) -> CacheStats:
        """The counters; see :class:`CacheStats`. How many a table on a GPU rejected is known there, and waited for;
        inside a loop use :meth:`served`."""
        counts, cached = self._hooked.counted(wait=True), self._hooked.cached
        control = cached.control if isinstance(cached, CachedForward) else None
        return CacheStats(
            forwards=counts["forward"],
            hits=counts["hit"],
            misses=counts["miss"],
            bypasses=counts["bypass"],
            rejected=cached.rejected,
            rows_saved=counts["saved"],
            nbytes=0 if cached.store is None else cached.store.nbytes,
            host_syncs=self._hooked.copies.count,
            audits=0 if control is None else control.audited,
            audited_error=None if control is None else control.mean_error,
            host_tier=cached.host_tier if isinstance(cached, CachedForward) else None,
        )

    @property
    def eta(self) -> float:
        """The probability of a retrieval now: the configured one, or where a target has moved it."""
        return self._hooked.cached.control.eta if isinstance(self._hooked.cached, CachedForward) else self.config.eta

    def audits(self) -> list[Audit]:
        """The latest audits, oldest first, see :class:`hash3d_cuda.control.Audit`. A GPU is waited for."""
        return self._hooked.cached.control.audits() if isinstance(self._hooked.cached, CachedForward) else []

    def eta_course(self) -> list[tuple[int, float]]:
        """How ``target_x`` or ``target_quality`` moved eta: ``(forward, eta)`` from forward 1 on, evenly thinned to 256
        points at most. Empty without a target."""
        return list(self._hooked.cached.control.course.rows) if isinstance(self._hooked.cached, CachedForward) else []

    def served(self) -> dict[str, int]:
        """``hits``, ``misses`` and ``bypasses`` as in :meth:`stats`, in items: host numbers, nothing is waited for.
        With ``decide="device"`` they lag behind: they are what the device has reported by now."""
        counts = self._hooked.counted(wait=False)
        return {"hits": counts["hit"], "misses": counts["miss"], "bypasses": counts["bypass"]}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later process needs to go on with the same decisions: coin, counters, tables and what
        their entries belong to. Plain values and CPU tensors, so that it goes into any checkpoint and comes back
        through ``torch.load(weights_only=True)``. Waits for a GPU, and takes host memory for one copy of the live
        entries; see :mod:`hash3d_cuda.cache_state`.

        Raises:
            TypeError: a condition id is made of other things than strings, numbers, None and tuples of these.
            RuntimeError: the cache was removed.
        """
        return cache_state.collect(self)

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str | None = None) -> None:
        """Goes on from :meth:`state_dict`; what the cache held is forgotten. Load the U-Net's weights first.

        Args:
            state: it is not changed.
            device: where to put the tables; None is the device they were on.

        Raises:
            ValueError: the state is damaged, or of other options or weights; then the cache stays as it was.
            RuntimeError: the cache was removed.
        """
        cache_state.restore(self, state, device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes :meth:`state_dict` to ``path``: one safetensors file, atomically, with checksums and without pickle.

        Raises:
            OSError: it cannot be written; what was there stays. Further as :meth:`state_dict`.
        """
        cache_state.save(self, path)

    def load(self, path: str | os.PathLike[str], device: torch.device | str | None = None) -> None:
        """Goes on from a file that :meth:`save` wrote; see :meth:`load_state_dict`."""
        cache_state.load(self, path, device)

    def clear(self) -> None:
        """Forgets every entry. The coin goes on, the counters stay, and the next forward may have another shape."""
        with self._hooked.lock:
            if self._hooked.cached.store is not None:
                self._hooked.cached.store.clear()
            self._hooked.relearn = True

    def remove(self) -> None:
        """Takes the cache away: the U-Net is as it was before, and the tables' memory is free. The counters stay
        readable, and the handle does not keep the U-Net alive. A second call does nothing.

        Raises:
            RuntimeError: something else was wrapped around the U-Net's forward since; take that away first.
        """
        self._hooked.remove()

    def __repr__(self) -> str:
        config = self.config
        place = f"at position {config.position}" if config.mode == "feature" else "of the output"
        reused = f"eta {self.eta:g}" if config.interval is None else f"every {config.interval} steps"
        counts = ", ".join(f"{count} {name}" for name, count in self.served().items())  # a GPU is not waited for
        return f"Hash3DCache({place}, {reused}: {counts})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Hash3DCache cannot be copied or pickled; apply_hash3d puts a new one under a copied U-Net")
