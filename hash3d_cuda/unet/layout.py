"""Where a U-Net is cut: which modules a hit still runs, and which it skips.

Position k is the number of up-resnets that still run on a hit. The cached tensor is the input of the first of them,
before its skip is concatenated; so a hit needs skips 0..k-1, and of the way down only the modules that make them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from diffusers import UNet2DConditionModel
from diffusers.models.unets import unet_2d_blocks
from torch import nn

from ..checks import check_int, fail

_DOWN_TYPES = (unet_2d_blocks.CrossAttnDownBlock2D, unet_2d_blocks.DownBlock2D)
_UP_TYPES = (unet_2d_blocks.CrossAttnUpBlock2D, unet_2d_blocks.UpBlock2D)
_MID_TYPES = (unet_2d_blocks.UNetMidBlock2DCrossAttn, unet_2d_blocks.UNetMidBlock2D)
PLAIN_DOWN_TYPES = (unet_2d_blocks.AttnDownBlock2D, unet_2d_blocks.DownBlock2D)  # of UNet2DModel
PLAIN_UP_TYPES = (unet_2d_blocks.AttnUpBlock2D, unet_2d_blocks.UpBlock2D)
_ALL_DOWN_TYPES = (*_DOWN_TYPES, *PLAIN_DOWN_TYPES)
_CUT_FORWARDS = [kind.forward for kind in (*_ALL_DOWN_TYPES, *_UP_TYPES, *PLAIN_UP_TYPES)]  # as diffusers wrote them


class BlockPart:
    """A run of a block's resnets (with their attentions) and, at its end, the resampler.

    Calling it runs the block's own ``forward`` on this run of its modules: the loop over resnets, FreeU and all else is
    the model's code, not a copy of it. A part that covers its block calls the block as a module, hooks included.
    """

    def __init__(self, block: nn.Module, index: int, start: int, stop: int) -> None:
        sampler = "downsamplers" if isinstance(block, _ALL_DOWN_TYPES) else "upsamplers"
        resnets = len(block.resnets)
        samplers = getattr(block, sampler)
        units = _count_units(block)
        self.block = block
        self.index = index  # of the block among its siblings
        self.has_cross_attention = getattr(block, "has_cross_attention", False)
        self.whole = start == 0 and stop == units
        self.has_last_resnet = start < resnets <= stop
        self.has_end = stop == units
        self.resnets = block.resnets[start:stop]
        if hasattr(block, "attentions"):
            self.attentions = block.attentions[start:stop]
        keeps_sampler = stop >= resnets if sampler == "upsamplers" else stop > resnets
        setattr(self, sampler, samplers if keeps_sampler else None)

    def __getattr__(self, name: str) -> Any:
        # Only what is not set above: FreeU's factors, gradient_checkpointing, resolution_idx.
        return getattr(self.__dict__["block"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.whole:
            return self.block(*args, **kwargs)
        return type(self.block).forward(self, *args, **kwargs)


class Layout(NamedTuple):
    """The parts of a U-Net cut at one position, in the order in which they run."""

    head_down: list[BlockPart]
    deep_down: list[BlockPart]
    deep_up: list[BlockPart]
    tail_up: list[BlockPart]

    @property
    def cut_blocks(self) -> list[nn.Module]:
        """Blocks that lie on both sides of the cut (at most one on the way down and one on the way up)."""
        return [part.block for part in (*self.head_down, *self.tail_up) if not part.whole]


def runs_in_parts(block: nn.Module) -> bool:
    """Whether the forward of a block's class is one that may run on a part of its modules."""
    return type(block).forward in _CUT_FORWARDS


def count_positions(unet: UNet2DConditionModel) -> int:
    """Returns the number of positions, that is of up-resnets: 12 for SD 1.5, SD 2.1 and Zero123, 9 for SDXL.

    Raises:
        TypeError: not a ``UNet2DConditionModel``, or one with blocks that cannot be cut.
    """
    if not isinstance(unet, UNet2DConditionModel):
        remedy = "pass the plain model (pipe.unet); a compiled one is unwrapped with ._orig_mod"
        fail(TypeError, "unet", "a diffusers UNet2DConditionModel", type(unet), remedy)
    mid = [] if unet.mid_block is None else [unet.mid_block]
    check_blocks(unet.down_blocks, _DOWN_TYPES)
    check_blocks(mid, _MID_TYPES)
    check_blocks(unet.up_blocks, _UP_TYPES)
    return count_resnets(unet.up_blocks)


def check_blocks(blocks: Iterable[nn.Module], types: tuple[type[nn.Module], ...]) -> None:
    """Raises TypeError unless all blocks are of ``types``."""
    for block in blocks:
        if not isinstance(block, types):
            names = " or ".join(kind.__name__ for kind in types)
            fail(TypeError, "unet", f"blocks of type {names}", type(block).__name__, "use another U-Net")


def count_resnets(blocks: Iterable[nn.Module]) -> int:
    return sum(len(block.resnets) for block in blocks)


def cut(unet: UNet2DConditionModel, position: int) -> Layout:
    """Cuts ``unet`` at ``position``, an int from 1 to ``count_positions(unet)``."""
    return cut_blocks(unet, check_int("position", position, 1, count_positions(unet)))


def cut_blocks(unet: nn.Module, position: int) -> Layout:
    """Cuts the blocks of ``unet``, which were checked before, at a ``position`` that was."""
    # conv_in makes skip 0, so k - 1 units of the way down are kept; of the way up all but the last k.
    head_down, deep_down = _divide(unet.down_blocks, position - 1)
    deep_up, tail_up = _divide(unet.up_blocks, count_resnets(unet.up_blocks) - position)
    return Layout(head_down, deep_down, deep_up, tail_up)


def _count_units(block: nn.Module) -> int:
    """Steps of a block at which it may be cut: resnets, and a down block's resampler (it makes a skip too)."""
    return len(block.resnets) + (isinstance(block, _ALL_DOWN_TYPES) and block.downsamplers is not None)


def _divide(blocks: nn.ModuleList, count: int) -> tuple[list[BlockPart], list[BlockPart]]:
    """Splits a sequence of blocks after ``count`` units."""
    before, after = [], []
    for index, block in enumerate(blocks):
        units = _count_units(block)
        taken = min(max(count, 0), units)
        if taken > 0:
            before.append(BlockPart(block, index, 0, taken))
        if taken < units:
            after.append(BlockPart(block, index, taken, units))
        count -= units
    return before, after
