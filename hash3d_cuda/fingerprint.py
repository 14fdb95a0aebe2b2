"""A fingerprint of what shapes a U-Net's features besides the key: features are reused only under an equal one."""

from __future__ import annotations

from collections.abc import Hashable
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

from . import _C
from .unet import UNetCall
from .unet.adapter import Call
from .watch import ModelWatch

_MODULE = set(vars(nn.Module())) - {"training"}  # torch's own attributes
_FREEU = ("s1", "s2", "b1", "b2")
_processor = attrgetter("processor")


class Same:
    """Equal only to a wrapper of the very same object, which it keeps alive so that no other can take its place."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def portable(self) -> dict[str, Any]:
        """What another process can compare: the object's class and its attributes; of a module, those that are no
        weights or parts of it.

        Raises:
            TypeError: they do not tell what the object does: it is a function or the like, or has none of its own.
        """
        kind = type(self._value)
        if kind.__module__ in ("builtins", "functools"):
            raise TypeError(f"expected an object whose attributes tell what it does, got a {kind.__qualname__}")
        attributes = vars(self._value)
        if isinstance(self._value, nn.Module):
            attributes = {name: value for name, value in attributes.items() if name not in _MODULE}
        return {"class": f"{kind.__module__}.{kind.__qualname__}", **attributes}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


class Hashed(tuple):
    """A tuple whose hash is computed once: its parts are asked for theirs in Python, and several times per forward."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


class ModelState:
    """Watches a U-Net's modules and weights (see :class:`.watch.ModelWatch`), attention processors, LoRA layers,
    FreeU and forwards patched over those of inner modules, and which inputs a call has.

    All that there is much of is read in C++ (``python/watch.h``); each LoRA layer adds some microseconds to a forward.
    The values of input tensors are not read: prompt or pose embeddings that follow the view are expected to differ from
    call to call. What is neither in the key nor seen here must be told apart by ``views(condition=...)``, or be
    followed by ``clear()``.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._unet = unet
        self._watch = ModelWatch(unet)
        self._last: Hashed | None = None
        self._note_modules()

    def look(self) -> bool:
        """To be called before a forward. Returns whether modules were exchanged since the last time."""
        exchanged = self._watch.look()
        if exchanged:
            self._note_modules()
        return exchanged

    def fingerprint(self, call: Call) -> Hashable:
        """Returns a hashable value, equal for two calls only if the state they ran in looked the same."""
        found = (self._model(), _inputs(call))
        if found != self._last:  # the same object again: who compares it, or asks for its hash, has nothing to do
            self._last = Hashed(found)
        return self._last

    def weights(self) -> Hashable:
        """Equal at two moments only if nothing was exchanged or written to in between."""
        return self._watch.state()

    @staticmethod
    def without_weights(fingerprint: Any, weights: Hashable) -> Hashable | None:
        """``fingerprint`` without what :meth:`weights` was, which another process cannot know; None when that was not
        ``weights``."""
        (training, found, *rest), inputs = fingerprint
        return (training, *rest, inputs) if found == weights else None

    def wants_gradients(self) -> bool:
        """Whether some weight requires a gradient."""
        return self._watch.wants_gradients()

    def _note_modules(self) -> None:
        modules = self._watch.modules
        self._attentions = [module for module in modules if hasattr(module, "processor")]
        self._image_attentions = [module for module in modules if hasattr(module, "ip_weight")]  # ImageDream
        self._lora_layers = [module for module in modules if hasattr(module, "scaling") and hasattr(module, "merged")]
        # Not the model itself, whose forward is the cache's.
        self._inner = [vars(module) for module in modules if module is not self._unet]
        self._by_address = sorted(self._inner, key=id)  # read faster so
        self._up_blocks = [vars(block) for block in getattr(self._unet, "up_blocks", ())]
        self._sizes: list[int] = []
        self._patchable: list[int] = []
        self._note_processors([*map(_processor, self._attentions)])

    def _note_processors(self, processors: list[Any]) -> None:
        self._processors = Hashed(Same(processor) for processor in processors)
        self._known_processors = processors
        self._scaled = [processor for processor in processors if hasattr(processor, "scale")]  # IP-Adapters

    def _model(self) -> Hashable:
        processors = [*map(_processor, self._attentions)]
        if not all(map(is_, processors, self._known_processors)):
            self._note_processors(processors)
        return (
            self._unet.training,
            self._watch.state(),
            self._processors,
            tuple(_shape(processor.scale) for processor in self._scaled),
            tuple(_lora_state(layer) for layer in self._lora_layers),
            tuple([block.get(name) for block in self._up_blocks for name in _FREEU]),
            tuple(module.ip_weight for module in self._image_attentions),
            self._patched(),
        )

    def _patched(self) -> Hashable:
        """Forwards that were put over those of inner modules' classes: how code made for ldm exchanges attention.
        accelerate's, which only move weights, do not count."""
        if not _C.are_sizes_of(self._by_address, self._sizes):  # at every forward, a look into each would be felt
            self._sizes = _C.sizes_of(self._by_address)
            self._patchable = [place for place, members in enumerate(self._inner) if "forward" in members]
        if not self._patchable:
            return ()
        found = ((place, self._inner[place]) for place in self._patchable)
        return tuple(
            (place, Same(members["forward"]))
            for place, members in found
            if "forward" in members and "_hf_hook" not in members
        )


def _lora_state(layer: Any) -> Hashable:
    # diffusers multiplies the scaling by a call's scale and divides it again, which is off by a last bit at times.
    scaling = ((name, round(scale, 9)) for name, scale in layer.scaling.items())
    disabled = bool(getattr(layer, "disable_adapters", False))
    merged = tuple(getattr(layer, "merged_adapters", ()))  # fusing one more writes to weights where nothing counts it
    return tuple(getattr(layer, "active_adapters", ())), tuple(scaling), bool(layer.merged), merged, disabled


def _inputs(call: Call) -> Hashable:
    """Which inputs there are, and how large per row. A ControlNet or an adapter that comes or goes is seen here."""
    if not isinstance(call, UNetCall):
        return _shape(call.given())
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
    return value if isinstance(value, (bool, int, float, str, type(None))) else Same(value)
