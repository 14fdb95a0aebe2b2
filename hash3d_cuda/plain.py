"""When a call inside ``views`` goes to the plain U-Net all the same, why, and how the user hears of it."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .checks import FEATURE_DTYPES
from .fingerprint import ModelState
from .rows import RowLayout
from .unet import Adapter
from .unet.adapter import Call

REASONS = {
    "arguments": "the call has arguments that this version of hash3d-cuda does not know, or cannot split",
    "blocks": "blocks of the U-Net were exchanged for some that cannot be cut at this position",
    "dtype": "the sample is not a float32, float16 or bfloat16 tensor",
    "device": "the sample is neither on a CPU nor on a CUDA device",
    "frames": "num_frames rows must stay together, and an item's do not; pass Hash3DConfig(**multi_view(num_frames))",
    "gligen": "GLIGEN's grounding (cross_attention_kwargs) is not split",
    "gradients": "gradients are wanted through it; run it under torch.no_grad(), or call unet.requires_grad_(False)",
    "rows": "the batch does not divide by Hash3DConfig.groups; check groups, or wrap the call in cache.bypass()",
    "hooks": "other code is wrapped around the U-Net's forward, or around the block that is cut, or the class of one "
    "has a forward of its own; apply it after the cache, or choose another position",
    "shape": "the call differs from the first in shape, dtype, device or autocast; call cache.clear() to start anew "
    "with it, or use one cache per shape",
    "wiring": "the model's own forward does something between its blocks that the adapter's parts leave out",
    "transforms": "it runs under forward-mode differentiation or a torch.func transform (vmap, jvp, grad)",
}
"""Why, and the remedies."""
_NEVER_GOES_ON = (
    "hash3d: sampling: each call counts as a run of its own and is computed in full, because its embeddings are new "
    "tensors, or written to, from step to step; make them once, before the loop"
)
_NOT_THE_USERS = ("hash3d_cuda", "torch", "diffusers", "accelerate")


class Notices:
    """Warnings that are given once each, at the line of the user's that led to them."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def plain(self, reason: str) -> None:
        """The plain U-Net runs, for one of ``REASONS``."""
        self._give(reason, f"hash3d: the plain U-Net runs, uncached: {REASONS[reason]}")

    def never_goes_on(self) -> None:
        """No call of a sampler goes on where the last one was."""
        self._give("sampling", _NEVER_GOES_ON)

    def _give(self, key: str, text: str) -> None:
        if key not in self._given:
            self._given.add(key)
            warnings.warn(text, RuntimeWarning, stacklevel=_stacklevel())


def is_transformed() -> bool:
    """Whether tensors may carry tangents, or be those of a ``torch.func`` transform."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def why_unfit(call: Call, layout: RowLayout, state: ModelState) -> str | None:
    """What of the call no table could treat, or None."""
    if not isinstance(call.sample, Tensor) or call.sample.dtype not in FEATURE_DTYPES:
        return "dtype"
    if call.sample.device.type not in ("cpu", "cuda"):
        return "device"
    if torch.is_grad_enabled() and (any(t.requires_grad for t in call.tensors()) or state.wants_gradients()):
        return "gradients"
    if len(call.sample) == 0 or len(call.sample) % layout.groups != 0:
        return "rows"
    return None


def why_parted(call: Call, layout: RowLayout, adapter: Adapter) -> str | None:
    """Rows that attend to each other must be neighbours among an item's rows too."""
    at_once = adapter.rows_at_once(call)
    if at_once == 1:
        return None
    items = layout.items(len(call.sample) // layout.groups)
    runs = [rows[first : first + at_once] for rows in items for first in range(0, len(rows), at_once)]
    together = all(run == tuple(range(run[0], run[0] + at_once)) and run[0] % at_once == 0 for run in runs)
    return None if together else "frames"


def signature(call: Call) -> tuple[Any, ...]:
    """What must be the same for all calls of one table."""
    sample = call.sample
    kind = sample.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return (sample.shape[1:], sample.dtype, sample.device, autocast)


def _stacklevel() -> int:
    """Of the innermost line that is the user's own, for a warning given by the caller."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    return level
