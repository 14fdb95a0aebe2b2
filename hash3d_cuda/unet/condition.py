"""The adapter of diffusers' ``UNet2DConditionModel``: Stable Diffusion, SDXL, Zero123 in diffusers' format."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from .adapter import Adapter
from .call import UNetCall, lora_scale
from .layout import count_positions
from .split import MODEL_FORWARD, SplitUNet, gather_residuals, head_inputs


class ConditionAdapter(Adapter):
    """The forward is restated in :mod:`.split`, so that its parts compile; GLIGEN runs plain."""

    looked_for = "a diffusers UNet2DConditionModel"
    compiles = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return isinstance(model, UNet2DConditionModel)

    def count_positions(self) -> int:
        return count_positions(self.model)

    def split(self, position: int) -> SplitUNet:
        return SplitUNet(self.model, position)

    @property
    def keeps_made(self) -> bool:
        """Where it saves something, diffusers' own methods make it, and nobody's hooks wait for it at each step."""
        own = (getattr(self.model, name, None) for name in ("class_embedding", "add_embedding"))
        modules = [module for embedding in own if embedding is not None for module in embedding.modules()]
        if not modules or any(module._forward_hooks or module._forward_pre_hooks for module in modules):
            return False
        names = "get_class_embed", "get_aug_embed"  # another's could make something of the timestep, too
        made_by = (getattr(getattr(self.model, name), "__func__", None) for name in names)
        return all(method is getattr(UNet2DConditionModel, name) for method, name in zip(made_by, names, strict=True))

    @property
    def forward(self) -> Callable[..., Any]:
        return MODEL_FORWARD  # also for a subclass: one with a forward of its own is not split

    @property
    def latent_channels(self) -> int:
        return self.model.config.out_channels

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UNetCall:
        return UNetCall(*args, **kwargs)

    def why_plain(self, call: UNetCall) -> str | None:
        return "gligen" if (call.cross_attention_kwargs or {}).get("gligen") is not None else None

    def takes_rows(self, call: UNetCall, conditioning: Any) -> bool:
        return call.can_take

    def during(self, call: UNetCall) -> contextlib.AbstractContextManager[Any]:
        return lora_scale(self.model, call.cross_attention_kwargs)

    def inputs(self, call: UNetCall, entered: Any) -> tuple[Any, ...]:
        return *head_inputs(call, entered), gather_residuals(call)

    def wrap(self, output: Tensor, call: UNetCall) -> Any:
        return UNet2DConditionOutput(sample=output) if call.return_dict else (output,)
