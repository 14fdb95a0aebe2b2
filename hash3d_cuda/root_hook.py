"""The one hook on a U-Net: put into diffusers' ``HookRegistry``, and taken out without a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from .beneath import HooksBeneath, is_own_forward

HOOK_NAME = "hash3d_cache"
_REGISTRY = "_diffusers_hook"  # where diffusers keeps a module's registry
_STATE = "__getstate__"  # what copy and pickle ask an object for


def has_hook(unet: nn.Module) -> bool:
    """Whether a U-Net carries a cache."""
    registry = getattr(unet, _REGISTRY, None)
    return registry is not None and registry.get_hook(HOOK_NAME) is not None


class RootHook(ModelHook):
    """Hands a U-Net's calls to ``forward(original, args, kwargs)``.

    Args:
        unet: the U-Net; nothing is changed before ``install()``.
        forward: takes the place of the U-Net's forward; ``original`` is what it replaced.
        models: the forward that the split stands for, a function.
    """

    def __init__(
        self,
        unet: nn.Module,
        forward: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
        models: Callable[..., Any],
    ) -> None:
        super().__init__()
        self._unet = unet
        self._forward = forward
        self._models = models

    def install(self) -> None:
        """Puts the hook on the U-Net."""
        self._had_registry = hasattr(self._unet, _REGISTRY)
        self._had_forward = "forward" in vars(self._unet)
        HookRegistry.check_if_exists_or_initialize(self._unet).register_hook(self, HOOK_NAME)
        self._installed = self._unet.forward
        vars(self._unet)[_STATE] = self._state_without_cache

    def uninstall(self) -> None:
        """Takes the hook off: the U-Net has the attributes it had before.

        Raises:
            RuntimeError: something that is not in diffusers' registry was wrapped around the forward since.
        """
        registry = getattr(self._unet, _REGISTRY)
        is_last = registry._hook_order[-1] == HOOK_NAME
        if is_last and self._unet.forward is not self._installed:
            raise RuntimeError(
                "remove: expected the U-Net's forward as apply_hash3d left it, got one wrapped by other code since; "
                "take that away first (for accelerate: remove_hook_from_module)"
            )
        del vars(self._unet)[_STATE]
        registry.remove_hook(HOOK_NAME, recurse=False)
        if not self._had_registry and not registry.hooks:
            delattr(self._unet, _REGISTRY)
        if not self._had_forward and is_bare(self._unet):
            del self._unet.forward

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """The forward below this hook, with whatever else is hooked in there."""
        return self.fn_ref.original_forward(*args, **kwargs)

    def beneath(self) -> HooksBeneath:
        """What else is hooked in between this hook and the model's own forward."""
        registry = getattr(self._unet, _REGISTRY)
        order = registry._hook_order[: registry._hook_order.index(HOOK_NAME)]
        return HooksBeneath(self._unet, registry.hooks, order, self.fn_ref.original_forward, self._models)

    def _state_without_cache(self) -> dict[str, Any]:
        """What ``copy.deepcopy(unet)`` and pickle take of the U-Net: all but the cache. Another's hook in the registry
        would go on running the original from within the copy.

        Raises:
            TypeError: there is such a hook, or the forward was wrapped by other code since.
        """
        state = dict(vars(self._unet))
        if len(state[_REGISTRY].hooks) > 1 or self._unet.forward is not self._installed:
            raise TypeError(
                "copy or pickle: expected a U-Net with no hook above or below its cache, got one that has some; take "
                "them away, or call the cache's remove(), before copying"
            )
        del state[_STATE], state[_REGISTRY], state["forward"]
        if self._had_forward:
            state["forward"] = self.fn_ref.original_forward
        return state

    # diffusers calls this in place of the forward. Compiled code must not look inside: the choice is the host's.
    @torch.compiler.disable
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self.original, args, kwargs)


def is_bare(module: nn.Module) -> bool:
    """Whether calling ``module`` runs its class's forward and nothing else."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and is_own_forward(module, module.forward)
