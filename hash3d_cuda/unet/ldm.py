"""The U-Net of latent-diffusion code bases (Zero123, Stable-Zero123, stable-dreamfusion), and its multi-view kin
(MVDream, ImageDream): lists of blocks, of which each makes, or takes, one skip.

Position k is, as for diffusers, the number of output blocks that still run on a hit; the cached tensor is the input of
the first of them before its skip is concatenated, and a hit needs the first k input blocks. Neither package is needed:
the class is recognised by its lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import check_int
from .adapter import Call, SplitModel
from .twin import BlockArguments, TwinAdapter, answering, recording, run_on, run_until_stop, stopping

# Arguments of the known forwards. Others, such as a ControlNet's residuals, act between the blocks.
_ARGUMENTS = ("context", "y", "camera", "num_frames", "ip", "ip_img")


class Shallow(NamedTuple):
    """What the tail is given besides the feature: the first k skips, and the call, of which it embeds the time anew."""

    skips: tuple[Tensor, ...]
    call: Call


class LdmAdapter(TwinAdapter):
    """``forward(x, timesteps, context, y)``; multi-view also ``camera``, ``num_frames``, ``ip``, ``ip_img``."""

    looked_for = (
        "an ldm UNetModel (lists input_blocks and output_blocks of equal length, middle_block, time_embed and out)"
    )

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        ins, outs = (getattr(model, name, None) for name in ("input_blocks", "output_blocks"))
        lists = isinstance(ins, nn.ModuleList) and isinstance(outs, nn.ModuleList) and 0 < len(ins) == len(outs)
        return lists and all(
            isinstance(getattr(model, name, None), nn.Module) for name in ("middle_block", "time_embed", "out")
        )

    def count_positions(self) -> int:
        return len(self.model.output_blocks)

    def cut(self, position: int) -> SplitModel:
        return LdmSplit(self.model, check_int("position", position, 1, self.count_positions()))

    @property
    def latent_channels(self) -> int:
        channels = getattr(self.model, "out_channels", None)
        if isinstance(channels, int):
            return channels
        return [module.out_channels for module in self.model.out.modules() if hasattr(module, "out_channels")][-1]

    def rows_at_once(self, call: Call) -> int:
        return int(call.as_kwargs().get("num_frames") or 1)

    def why_plain(self, call: Call) -> str | None:
        unknown = [name for name, value in call.given().items() if name not in _ARGUMENTS and _acts(value)]
        return "arguments" if unknown else super().why_plain(call)


class LdmSplit:
    """An ldm U-Net in three parts. The way into and out of the blocks is the model's own forward."""

    cut_blocks: Sequence[nn.Module] = ()

    def __init__(self, model: nn.Module, position: int) -> None:
        self._model = model
        self._position = position
        kept = len(model.output_blocks) - position
        self._head_blocks, self._deep_inputs = model.input_blocks[:position], model.input_blocks[position:]
        self._deep_outputs, self._tail_blocks = model.output_blocks[:kept], model.output_blocks[kept:]

    def head(self, call: Call) -> tuple[Tensor, Shallow, BlockArguments]:
        skips: list[Tensor] = []
        blocks = [recording(block, skips) for block in self._head_blocks]
        stand_ins = {"input_blocks": [*blocks, stopping()], "middle_block": stopping()}
        (hidden, *args), kwargs = run_until_stop(self._model, stand_ins, call)
        return hidden, Shallow(tuple(skips), call), BlockArguments(tuple(args), kwargs)

    def deep(self, hidden: Tensor, conditioning: BlockArguments) -> Tensor:
        args, kwargs = conditioning
        skips = []
        for block in self._deep_inputs:
            hidden = block(hidden, *args, **kwargs)
            skips.append(hidden)
        hidden = self._model.middle_block(hidden, *args, **kwargs)
        for block in self._deep_outputs:
            hidden = block(torch.cat([hidden, skips.pop()], dim=1), *args, **kwargs)
        return hidden

    def tail(self, feature: Tensor, skips: Shallow, conditioning: BlockArguments) -> Tensor:
        stand_ins = {
            "input_blocks": [answering(skip) for skip in skips.skips],
            "middle_block": answering(feature),
            "output_blocks": list(self._tail_blocks),
        }
        return run_on(self._model, stand_ins, skips.call)


def _acts(value: Any) -> bool:
    return value is not None and value is not False
