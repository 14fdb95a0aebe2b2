"""A fingerprint of what shapes a U-Net's features besides the key: features are reused only under an equal one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .unet import UNetCall

_FREEU = ("s1", "s2", "b1", "b2")


class _Same:
    """Equal only to a wrapper of the very same object, which it keeps alive so that no other can take its place."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


class ModelState:
    """Watches a U-Net's weights, attention processors, LoRA layers and FreeU, and which inputs a call has.

    It sees what is cheap to see (tens of microseconds). It does not read the values of input tensors: prompt or pose
    embeddings that follow the view are expected to differ from call to call. What is neither in the key nor seen here
    must be told apart by ``views(condition=...)``.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._unet = unet
        self._adapters: tuple[Hashable, ...] | None = None
        self._walk()

    def fingerprint(self, call: UNetCall) -> Hashable:
        """Returns a hashable value, equal for two calls only if the state they ran in looks the same."""
        adapters = self._adapter_names()
        if adapters != self._adapters:  # layers were put in or taken out
            self._walk()
        return (self._model(), _inputs(call))

    def _walk(self) -> None:
        """Looks for the modules to watch."""
        modules = list(self._unet.modules())
        self._adapters = self._adapter_names()
        self._parameters = list(self._unet.parameters())
        self._attentions = [module for module in modules if hasattr(module, "processor")]
        self._lora_layers = [module for module in modules if hasattr(module, "scaling") and hasattr(module, "merged")]

    def _adapter_names(self) -> tuple[Hashable, ...]:
        return tuple(getattr(self._unet, "peft_config", None) or ())

    def _model(self) -> Hashable:
        unet = self._unet
        return (
            unet.training,
            self._adapters,
            _weight_version(self._parameters),
            tuple(_processor_state(module.processor) for module in self._attentions),
            tuple(_lora_state(layer) for layer in self._lora_layers),
            tuple(getattr(block, name, None) for block in unet.up_blocks for name in _FREEU),
            _Same(unet.encoder_hid_proj),
        )


def _weight_version(parameters: list[nn.Parameter]) -> int:
    """Grows with every change of a weight in place: an optimiser's step, ``load_state_dict``."""
    try:
        return sum(parameter._version for parameter in parameters)
    except RuntimeError:  # weights made under inference_mode count no versions, and cannot be changed outside it
        return -1


def _processor_state(processor: Any) -> Hashable:
    """An attention processor, and its scale (an IP-Adapter's)."""
    return _Same(processor), _shape(getattr(processor, "scale", None))


def _lora_state(layer: Any) -> Hashable:
    return (
        tuple(getattr(layer, "active_adapters", ())),
        tuple(layer.scaling.items()),
        bool(layer.merged),
        bool(getattr(layer, "disable_adapters", False)),
    )


def _inputs(call: UNetCall) -> Hashable:
    """Which inputs there are, and how large per row. A ControlNet or an adapter that comes or goes is seen here."""
    return (
        _shape(call.encoder_hidden_states),
        _shape(call.class_labels),
        _shape(call.timestep_cond),
        call.attention_mask is None,
        call.encoder_attention_mask is None,
        _shape(call.added_cond_kwargs),
        _shape(call.cross_attention_kwargs),
        call.down_block_additional_residuals is None,
        call.mid_block_additional_residual is None,
        call.down_intrablock_additional_residuals is None,
    )


def _shape(value: Any) -> Hashable:
    """Sizes without the batch for a tensor, itself for a number or string (such as a LoRA scale)."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape[1:]), value.dtype)
    if isinstance(value, dict):
        return tuple((name, _shape(item)) for name, item in sorted(value.items(), key=lambda pair: str(pair[0])))
    if isinstance(value, (tuple, list)):
        return tuple(_shape(item) for item in value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else _Same(value)
