"""A cache under the U-Net of another code base's guidance object, told the views from outside of that code.

Such code calls the U-Net deep inside a method (``train_step``), where no ``with cache.views(...)`` can be written
without changing it. :class:`GuidanceCache` wraps the method on that one object instead.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import DTYPE_NAMES, check_choice, fail
from .config import Hash3DConfig
from .fingerprint import Same
from .hook import apply_hash3d
from .stats import CacheStats
from .unet.call import leaves

Views = dict[str, Any]  # keyword arguments of Hash3DCache.views
Describe = Callable[[int], Views | None]
Around = Callable[[dict[str, Any]], contextlib.AbstractContextManager[Any]]
_ABSENT = object()


class GuidanceCache:
    """A cache under ``unet``, and the methods of other objects that were wrapped for it.

    Args:
        unet: as for :func:`hash3d_cuda.apply_hash3d`.
        config: see :func:`make_config`.

    Attributes:
        cache: the handle, a :class:`hash3d_cuda.hook.Hash3DCache`.
        coin: draws timesteps on the host; its stream is its own, and follows from ``config.seed``.

    Raises:
        TypeError, ValueError: as ``apply_hash3d``.
    """

    def __init__(self, unet: nn.Module, config: Hash3DConfig) -> None:
        self.cache = apply_hash3d(unet, config)
        self.coin = random.Random(f"timesteps {config.seed}")  # not the stream that decides on retrievals
        self._describe: Describe | None = None
        self._calls = 0
        self._entered = contextlib.ExitStack()
        self._wrapped: list[tuple[Any, str, Any, Any]] = []
        self._unet: nn.Module | None = unet
        self._listen(unet)

    @contextlib.contextmanager
    def during(self, describe: Describe) -> Iterator[None]:
        """Inside the block the ``number``-th call of the U-Net (0, 1, ...) runs in ``cache.views(**describe(number))``,
        or without the cache where that is None. Outside of all such blocks the U-Net is as if there were no cache."""
        before = self._describe, self._calls
        self._describe, self._calls = describe, 0
        try:
            yield
        finally:
            self._entered.close()  # a call that raised
            self._describe, self._calls = before

    def wrap(self, owner: Any, method: str, around: Around) -> None:
        """Makes ``owner.method(...)`` run inside ``around(arguments)``; the class and other objects stay as they are.

        Args:
            owner: any object with attributes of its own.
            method: the name.
            around: is given the call's arguments by name, defaults included, and returns a context manager.

        Raises:
            AttributeError: there is no such method.
        """
        original = getattr(owner, method)
        signature = inspect.signature(original)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            with around(dict(bound.arguments)):
                return original(*args, **kwargs)

        self._wrapped.append((owner, method, vars(owner).get(method, _ABSENT), wrapped))
        vars(owner)[method] = wrapped

    def on_host(self, **values: Any) -> dict[str, Any]:
        """``values`` for ``views``: tensors ``[B]`` among them that lie on a GPU come to the host in one copy, which is
        waited for and counted in ``stats().host_syncs``. With ``decide="device"`` they stay where they are.

        Raises:
            ValueError: one lies on a GPU, and ``strict=True``.
        """
        there = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.is_cuda}
        if not there or self.cache.config.decide == "device":
            return values
        stacked = torch.stack([value.detach().float().reshape(-1) for value in there.values()])
        copied = self.cache._hooked.copies.fetch(", ".join(there), stacked)
        return {**values, **dict(zip(there, copied, strict=True))}

    @contextlib.contextmanager
    def drawn_timestep(self, guidance: Any) -> Iterator[int]:
        """Draws a timestep of ``guidance.min_step`` to ``guidance.max_step`` on the host, and makes both of them that
        one for the block: whoever draws between them on a GPU draws it, and nothing need be copied back. The law is the
        same for one view. Several views of a batch would all get it: for them, leave the drawing as it is."""
        low, high = guidance.min_step, guidance.max_step
        timestep = self.coin.randint(low, high)
        guidance.min_step = guidance.max_step = timestep
        try:
            yield timestep
        finally:
            guidance.min_step, guidance.max_step = low, high

    def stats(self) -> CacheStats:
        """What the cache has done; see :meth:`hash3d_cuda.hook.Hash3DCache.stats`."""
        return self.cache.stats()

    def remove(self) -> None:
        """Takes everything away: U-Net and wrapped objects are as they were. A second call does nothing.

        Raises:
            RuntimeError: something else was wrapped around a method, or the U-Net's forward, since.
        """
        for owner, method, _, wrapped in self._wrapped:
            if vars(owner).get(method) is not wrapped:
                raise RuntimeError(
                    f"remove: expected {type(owner).__name__}.{method} as this cache left it, got one replaced since; "
                    "put it back first"
                )
        if self._unet is None:
            return
        for hook in self._hooks:
            hook.remove()
        try:
            self.cache.remove()
        except RuntimeError:
            self._listen(self._unet)
            raise
        for owner, method, before, _ in reversed(self._wrapped):
            del vars(owner)[method]
            if before is not _ABSENT:
                vars(owner)[method] = before
        self._wrapped, self._unet = [], None

    def __str__(self) -> str:
        return f"hash3d: {self.stats()}"

    def _listen(self, unet: nn.Module) -> None:
        self._hooks = [
            unet.register_forward_pre_hook(_Hook(self._before_call)),
            unet.register_forward_hook(_Hook(self._after_call)),
        ]

    def _before_call(self, unet: nn.Module, args: tuple[Any, ...]) -> None:
        self._entered.close()  # a call before raised
        if self._describe is None:
            return
        number, self._calls = self._calls, self._calls + 1
        views = self._describe(number)
        if views is not None:
            self._entered.enter_context(self.cache.views(**views))

    def _after_call(self, unet: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._entered.close()


class _Hook:
    """A hook on the U-Net. Copies of the U-Net (``copy.deepcopy``, pickle) have no cache, and get one that does
    nothing."""

    def __init__(self, function: Callable[..., None] | None = None) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        if self._function is not None:
            self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Hook, ())


def make_config(options: Mapping[str, Any], **defaults: Any) -> Hash3DConfig:
    """:class:`hash3d_cuda.Hash3DConfig` of a system's ``defaults``, and of ``options`` in their place. Mappings and
    sequences of configuration files (OmegaConf's) are taken; ``grids`` may also be a name or a text, and
    ``feature_dtype`` a name, as for ``hash3d plan``.

    Raises:
        TypeError, ValueError: an option is unknown, or as ``Hash3DConfig``.
    """
    given = _plain(options)
    known = Hash3DConfig.__dataclass_fields__
    if unknown := [name for name in given if name not in known]:
        fail(
            TypeError, unknown[0], f"an option of Hash3DConfig: {', '.join(known)}", given[unknown[0]], "check its name"
        )
    if isinstance(given.get("grids"), str):
        from .sds.settings import parse_grids

        given["grids"] = parse_grids(given["grids"])
    if isinstance(given.get("feature_dtype"), str):
        given["feature_dtype"] = DTYPE_NAMES[check_choice("feature_dtype", given["feature_dtype"], tuple(DTYPE_NAMES))]
    if "memory_budget" in given:
        defaults.pop("capacity", None)
    return Hash3DConfig(**{**defaults, **given})


def content_id(*values: Any) -> Hashable:
    """A condition id that is equal only while ``values`` (tensors, numbers and strings, in nested tuples, lists and
    dicts) are the very same: of tensors the same objects, not written to since. Nothing is read from a GPU."""
    return tuple(_content(value) for value in leaves(values))


def _content(value: Any) -> Hashable:
    if not isinstance(value, Tensor):
        return value
    return Same(value), 0 if value.is_inference() else value._version


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, tuple)):
        return [_plain(item) for item in value]
    return value
