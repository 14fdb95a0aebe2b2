"""A call of a U-Net that has a cache: through the cache's road where that can be, or plain, and what is kept of it.

What the cache cannot treat (gradients wanted, another shape, foreign code in the way, ...) goes to the U-Net's own
forward, so that the answer is always right. The handle that users hold is in :mod:`.hook`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .cached import CachedForward
from .config import Hash3DConfig
from .device_forward import DeviceForward
from .device_inputs import DeviceViews
from .fingerprint import ModelState
from .parts import FeatureParts, NoiseParts
from .plain import Notices, is_transformed, signature, why_parted, why_unfit
from .poses import HostCopies, Views
from .root_hook import RootHook, is_bare
from .rows import RowLayout
from .sampled import SampledForward
from .sampling import Sampling
from .scopes import Scopes
from .stats import Decision
from .unet import Adapter
from .unet.adapter import Call
from .unet.layout import runs_in_parts

if TYPE_CHECKING:
    from .distributed.exchange import Exchange


class HookedForward:
    """Takes the place of a U-Net's forward. Calls inside ``views`` or ``sampling`` run one at a time.

    Args:
        adapter: of the model, which is left alone until ``hook.install()``.
        config: of the cache.

    Attributes:
        last: what became of the items of the last call.
        scopes: of the calling thread: which views were told, and whether to bypass.
        lock: held during a call inside views.
        copies: what was copied from a GPU for a decision, and counts it.
        counts: calls, items by kind, and rows that skipped the deep part.
        cached: the cache's road; with ``decide="device"`` it is ``device``.
        exchange: with other ranks, or None.
        signature: the shape per item that the tables are built for.
        relearn: whether another shape may take their place.
        state: of the model, to notice what changes in it.
    """

    def __init__(self, adapter: Adapter, config: Hash3DConfig) -> None:
        unet = adapter.model
        self.config = config
        self.adapter = adapter
        self.unet: nn.Module | None = unet
        self.last = Decision(plain="no forward yet")
        self.scopes = Scopes()
        self.lock = threading.RLock()
        self.copies = HostCopies(config.strict)
        self.counts: Counter[str] = Counter()
        self.signature: tuple[Any, ...] | None = None
        self.relearn = False
        self.hook = RootHook(unet, self, adapter.forward)
        self.parts = FeatureParts(adapter, config) if config.mode == "feature" else NoiseParts(adapter)
        self.can_cut = True
        told = config, RowLayout(config.rows, config.groups), self.parts, adapter.latent_channels, self.copies
        self.device = DeviceForward(unet, *told) if config.decide == "device" else None
        self.exchange = make_exchange(config)
        kind = CachedForward if config.interval is None else SampledForward
        self.cached: CachedForward | DeviceForward = self.device or kind(*told, self.exchange)
        self.state = ModelState(unet)
        self.notices = Notices()

    def remove(self) -> None:
        """Takes the hook off and lets go of the model; a second call does nothing.

        Raises:
            RuntimeError: something else was wrapped around its forward since.
        """
        with self.lock:
            if self.unet is None:
                return
            self.hook.uninstall()
            self.cached.forget_shapes()
            self.cached.release()
            self.unet = None
            del self.adapter, self.hook, self.parts, self.state  # all hold the U-Net

    def __call__(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The hooked forward; ``original`` is the one below."""
        views = self.scopes.current
        if views is None:
            self.last = Decision(plain="outside views")
            return original(*args, **kwargs)
        with self.lock, contextlib.nullcontext() if self.exchange is None else self.exchange.turn():
            if self.unet is None:  # removed by another thread meanwhile
                return original(*args, **kwargs)
            self.counts["forward"] += 1
            if is_transformed():
                return self._run_plain("transforms", args, kwargs)
            if self.state.look():
                self.cut_anew()
            if not self.can_cut:
                return self._run_plain("blocks", args, kwargs)
            beneath = self.hook.beneath()
            if not (
                beneath.surround and all(is_bare(block) and runs_in_parts(block) for block in self.parts.cut_blocks)
            ):
                return self._run_plain("hooks", args, kwargs)
            try:
                inner_args, inner_kwargs = beneath.before(args, kwargs)
                call = self.adapter.bind(inner_args, inner_kwargs)
            except TypeError:  # an argument of a later diffusers, or the model's own complaint
                return self._run_plain("arguments", args, kwargs)
            if isinstance(views, Sampling):
                self._follow(views, call)
            reason = self._why_plain(call)
            if reason is not None:
                return self._run_plain(reason, args, kwargs)
            output = self.run_cached(call, views)
            return beneath.after(self.adapter.wrap(output, call))

    def _follow(self, run: Sampling, call: Call) -> None:
        """The call is a step of a sampler: its batch is one item, of whatever size."""
        if not isinstance(call.sample, Tensor) or len(call.sample) == 0:
            return
        run.follow(call)
        assert isinstance(self.cached, CachedForward)
        self.cached.take_as_one(len(call.sample))
        self.relearn = True  # another shape is another run, and has no use for the entries of the last
        if run.never_goes_on:
            self.notices.never_goes_on()

    def run_cached(self, call: Call, views: Views | Sampling) -> Tensor:
        """The output of a call that nothing keeps from the cache; counts what became of its items."""
        if self.device is not None:
            assert isinstance(views, DeviceViews)
            output, self.last = self.device(call, views, self.state.fingerprint(call))
            self.signature, self.relearn = signature(call), False
            return output
        assert isinstance(self.cached, CachedForward)
        rows, state = len(call.sample), self.state.fingerprint(call)
        if isinstance(views, Sampling):
            assert isinstance(self.cached, SampledForward)
            batch = 1
            output, self.last = self.cached.step(call, views, state)
        else:
            batch = rows // self.cached.layout.groups
            firsts = [rows_of_item[0] for rows_of_item in self.cached.layout.items(batch)]
            keys = views.keys(call.timestep, firsts, rows)
            conditions = [(condition, state) for condition in views.conditions(batch)]
            output, self.last = self.cached(call, keys, conditions)
        for kind in self.last.kinds:  # Counter.update() takes as long as a look-up
            self.counts[kind] += 1
        self.counts["saved"] += self.last.kinds.count("hit") * (rows // batch)
        self.signature, self.relearn = self.signature or signature(call), False  # equal, if there was one
        return output

    def cut_anew(self) -> None:
        """Follows an exchange of modules: the parts are other ones, and the feature may have another shape."""
        self.cached.forget_shapes()
        self.signature = None
        try:
            self.parts.cut()
            self.can_cut = True
        except (TypeError, ValueError):
            self.can_cut = False

    def _run_plain(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the U-Net as if there were no cache, though inside ``views``."""
        sample = self.adapter.sample_of(args, kwargs)
        rows = len(sample) if isinstance(sample, Tensor) and sample.dim() > 0 else 0
        self.counts["bypass"] += 1 if self.config.interval is not None else max(rows // self.config.groups, 1)
        self.last = Decision(plain=reason)
        # Where all ranks run plain, none tosses, as a process alone does not.
        if self.exchange is not None and self.exchange.abstain():
            assert isinstance(self.cached, CachedForward)
            self.cached.sit_out()
        self.notices.plain(reason)
        return self.hook.original(*args, **kwargs)

    def _why_plain(self, call: Call) -> str | None:
        """Why this call cannot go through the cache, or None."""
        reason = why_unfit(call, self.cached.layout, self.state)
        if reason is not None:
            return reason
        if self.signature is not None and signature(call) != self.signature:
            if not self.relearn:
                return "shape"
            self.cached.forget_shapes()
            self.signature = None
        return self.adapter.why_plain(call) or why_parted(call, self.cached.layout, self.adapter)

    def counted(self, wait: bool) -> Counter[str]:
        """Items by what became of them, also those that only the device has counted, and the rows that were saved."""
        if self.device is None:
            return Counter(self.counts)
        counts = Counter(self.device.counts(wait))
        counts["saved"] *= self.config.groups
        return self.counts + counts


def make_exchange(config: Hash3DConfig) -> Exchange | None:
    """With the other ranks of the configuration's group; None where this process keeps to itself."""
    if config.process_group is None:
        return None
    from .distributed.exchange import Exchange

    exchange = Exchange(config.process_group)
    return exchange if exchange.size > 1 else None
