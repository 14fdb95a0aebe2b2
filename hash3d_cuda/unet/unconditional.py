"""The adapter of diffusers' ``UNet2DModel``: no prompt, perhaps class labels. Positions are as for its big sister."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from torch import Tensor, nn

from ..checks import check_int
from .adapter import Call, SplitModel
from .layout import PLAIN_DOWN_TYPES, PLAIN_UP_TYPES, check_blocks, count_resnets, cut_blocks
from .ldm import Shallow
from .twin import TwinAdapter, answering, recording, run_on, run_until_stop, stopping


class UnconditionalAdapter(TwinAdapter):
    """Blocks of types DownBlock2D, AttnDownBlock2D, UpBlock2D and AttnUpBlock2D; others are refused."""

    looked_for = "a diffusers UNet2DModel"

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return isinstance(model, UNet2DModel)

    def count_positions(self) -> int:
        unet = self.model
        check_blocks(unet.down_blocks, PLAIN_DOWN_TYPES)
        check_blocks([] if unet.mid_block is None else [unet.mid_block], (UNetMidBlock2D,))
        check_blocks(unet.up_blocks, PLAIN_UP_TYPES)
        return count_resnets(unet.up_blocks)

    def cut(self, position: int) -> SplitModel:
        return UnconditionalSplit(self.model, check_int("position", position, 1, self.count_positions()))

    @property
    def latent_channels(self) -> int:
        return self.model.config.out_channels

    def wrap(self, output: Tensor, call: Call) -> Any:
        return UNet2DOutput(sample=output) if call.return_dict else (output,)


class UnconditionalSplit:
    """A ``UNet2DModel`` in three parts."""

    def __init__(self, unet: UNet2DModel, position: int) -> None:
        self._unet = unet
        self._layout = cut_blocks(unet, position)
        self.cut_blocks = self._layout.cut_blocks

    def head(self, call: Call) -> tuple[Tensor, Shallow, Tensor]:
        """``conditioning`` is the embedding ``[R, D]``."""
        first: list[Tensor] = []
        made: list[tuple[Tensor, tuple[Tensor, ...]]] = []
        parts = [recording(part, made) for part in self._layout.head_down]
        stand_ins = {"conv_in": recording(self._unet.conv_in, first), "down_blocks": [*parts, stopping()]}
        _, given = run_until_stop(self._unet, stand_ins, call)
        skips = (*first, *(skip for _, skips in made for skip in skips))
        return given["hidden_states"], Shallow(skips, call), given["temb"]

    def deep(self, hidden: Tensor, conditioning: Tensor) -> Tensor:
        skips: tuple[Tensor, ...] = ()
        for part in self._layout.deep_down:
            hidden, made = part(hidden_states=hidden, temb=conditioning)
            skips += made
        if self._unet.mid_block is not None:
            hidden = self._unet.mid_block(hidden, conditioning)
        for part in self._layout.deep_up:
            count = len(part.resnets)
            hidden, skips = part(hidden, skips[-count:], conditioning), skips[:-count]
        return hidden

    def tail(self, feature: Tensor, skips: Shallow, conditioning: Tensor) -> Tensor:
        stand_ins = {
            "conv_in": answering(skips.skips[0]),
            "down_blocks": [answering((feature, skips.skips[1:]))],
            "mid_block": answering(feature),
            "up_blocks": self._layout.tail_up,
        }
        return run_on(self._unet, stand_ins, skips.call)
