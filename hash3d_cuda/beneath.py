"""Hooks of others below the cache's on the same U-Net: their before and after are honoured around the split forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_Before = Callable[..., tuple[Any, Any]]  # (module, *args, **kwargs) -> args, kwargs
_After = Callable[[nn.Module, Any], Any]  # (module, output) -> output


class HooksBeneath:
    """What is hooked in between the cache and the model's own forward.

    Known are diffusers' ``ModelHook`` and accelerate's (such as CPU offloading) that surround the forward.
    ``surround`` is False when anything else is there, a hook that replaces the forward, or a subclass's own forward:
    then the split must not run.
    """

    def __init__(
        self,
        module: nn.Module,
        hooks: dict[str, Any],
        order: list[str],
        lowest: Callable[..., Any],
        models: Callable[..., Any],
    ) -> None:
        """``hooks`` and ``order`` (lowest first) are the registry's below the cache's; ``lowest`` is what the lowest of
        them, or the cache, calls as the forward; ``models`` is the function that the split stands for."""
        self._module = module
        self._before: list[_Before] = []  # outermost first
        self._after: list[_After] = []
        self.surround = True
        for name in reversed(order):
            reference = hooks[name].fn_ref
            self._before.append(reference.pre_forward)
            self._after.append(reference.post_forward)
            self.surround &= reference.original_forward is None
            lowest = reference.forward
        if _is_bound(lowest, models, module):
            return
        accelerate = vars(module).get("_hf_hook")
        own = vars(module).get("_old_forward")
        if accelerate is None or getattr(lowest, "__wrapped__", None) != own or not _is_bound(own, models, module):
            self.surround = False
            return
        self._before.append(accelerate.pre_forward)
        self._after.append(accelerate.post_forward)

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Runs what they do before the forward; returns the arguments they leave."""
        for before in self._before:
            args, kwargs = before(self._module, *args, **kwargs)
        return args, kwargs

    def after(self, output: Any) -> Any:
        """Runs what they do after the forward; returns the output they leave."""
        for after in reversed(self._after):
            output = after(self._module, output)
        return output


def is_own_forward(module: nn.Module, forward: Any) -> bool:
    """Whether ``forward`` is the method of the module's class, bound to it."""
    return _is_bound(forward, type(module).forward, module)


def _is_bound(forward: Any, function: Any, module: nn.Module) -> bool:
    return getattr(forward, "__func__", None) is function and getattr(forward, "__self__", None) is module
