"""A U-Net's forward in three parts: head (all rows), deep (rows that miss), tail (all rows).

The parts call the model's own modules and embedding methods; no weight is copied. ``tail(deep(head))`` is the model's
forward bit for bit, which ``tests/test_unet_parity.py`` holds every diffusers release to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from .call import UNetCall, lora_scale
from .layout import BlockPart, count_positions, cut

MODEL_FORWARD = UNet2DConditionModel.forward  # what this module restates, as diffusers wrote it


Made = dict[str, Any]  # "class": the embedding of class labels; "added": what ``get_aug_embed`` returned


class Residuals(NamedTuple):
    """What a ControlNet or T2I-Adapter adds, for ``R`` rows."""

    skips: tuple[Tensor, ...] | None = None  # ControlNet, one per skip
    mid: Tensor | None = None  # ControlNet
    blocks: tuple[Tensor, ...] = ()  # T2I-Adapter, one per down block, perhaps one more for the mid block


NO_RESIDUALS = Residuals()


class Conditioning(NamedTuple):
    """What every block is given besides the running sample, and what is added between them, for ``R`` rows."""

    emb: Tensor  # [R, D], time and added embeddings
    encoder_hidden_states: Any  # [R, tokens, D]; with an IP-Adapter, that and its image embeddings
    attention_mask: Tensor | None  # bias [R, 1, tokens]
    encoder_attention_mask: Tensor | None  # bias [R, 1, tokens]
    cross_attention_kwargs: dict[str, Any] | None
    odd_size: bool  # the sample does not divide by the upsampling factor: sizes must be handed to the upsamplers
    residuals: Residuals = NO_RESIDUALS


class SplitUNet:
    """A ``UNet2DConditionModel`` cut at ``position`` (1 to ``count_positions(unet)``, see :mod:`.layout`).

    ``head``, ``deep`` and ``tail`` have no side effects and compile with ``torch.compile(fullgraph=True)``. LoRA scale
    is the caller's matter: :func:`.call.lora_scale`. GLIGEN is refused.
    """

    def __init__(self, unet: UNet2DConditionModel, position: int) -> None:
        self.layout = cut(unet, position)
        self.cut_blocks = self.layout.cut_blocks
        self.unet = unet
        self.position = position
        self.positions = count_positions(unet)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's forward by way of the three parts: its arguments in, ``[R, out_channels, H, W]`` out."""
        call = UNetCall(*args, **kwargs)
        with lora_scale(self.unet, call.cross_attention_kwargs) as attention_kwargs:
            residuals = gather_residuals(call)
            hidden, skips, conditioning = self.head(*head_inputs(call, attention_kwargs), residuals)
            feature = self.deep(hidden, conditioning)
            return self.tail(feature, skips, conditioning)

    def head(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
        residuals: Residuals = NO_RESIDUALS,
        made: Made | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...], Conditioning]:
        """Embeddings, conv_in and the down modules that make skips 0..k-1.

        ``made`` is what came of class labels and added conditions at an earlier step with the very same ones and the
        same weights; what is not in it yet is put there.

        Returns:
            The running sample (for ``deep``), the ``k`` skips (for ``tail``), and what both are given besides.
        """
        unet = self.unet
        if cross_attention_kwargs is not None and cross_attention_kwargs.get("gligen") is not None:
            raise ValueError("cross_attention_kwargs: expected no 'gligen' entry; run GLIGEN on the plain U-Net")
        factor = 2**unet.num_upsamplers
        odd_size = any(size % factor != 0 for size in sample.shape[-2:])
        attention_mask = _mask_bias(attention_mask, sample)
        encoder_attention_mask = _mask_bias(encoder_attention_mask, sample)
        if unet.config.center_input_sample:
            sample = 2 * sample - 1.0
        made = {} if made is None else made
        if "class" not in made:
            made["class"] = unet.get_class_embed(sample=sample, class_labels=class_labels)
        emb, hint = self._embed(sample, timestep, encoder_hidden_states, timestep_cond, added_cond_kwargs, made)
        if hint is not None:
            sample = torch.cat([sample, hint], dim=1)
        encoder_hidden_states = unet.process_encoder_hidden_states(
            encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        )
        conditioning = Conditioning(
            emb,
            encoder_hidden_states,
            attention_mask,
            encoder_attention_mask,
            cross_attention_kwargs,
            odd_size,
            residuals,
        )
        sample = unet.conv_in(sample)
        sample, skips = self._down(self.layout.head_down, sample, (sample,), conditioning, residuals)
        # The running sample goes on without the ControlNet's residuals, which the model adds at the very end.
        return sample, _add(skips, residuals.skips, 0), conditioning

    def deep(self, hidden: Tensor, conditioning: Conditioning) -> Tensor:
        """The rest of the way down, the mid block and the up-resnets before the cut: ``head``'s running sample in, the
        feature ``[R, C, H', W']`` out. Rows may be any subset, if both arguments have the same."""
        unet, residuals = self.unet, conditioning.residuals
        sample, skips = self._down(self.layout.deep_down, hidden, (), conditioning, residuals)
        skips = _add(skips, residuals.skips, self.position)
        if unet.mid_block is not None:
            sample = self._mid(sample, conditioning)
            extra = residuals.blocks[len(unet.down_blocks) :]
            if extra and sample.shape == extra[0].shape:  # T2I-Adapter-XL
                sample = sample + extra[0]
        if residuals.mid is not None:
            sample = sample + residuals.mid
        return self._up(self.layout.deep_up, sample, skips, conditioning, hidden.shape[2:])

    def tail(self, feature: Tensor, skips: tuple[Tensor, ...], conditioning: Conditioning) -> Tensor:
        """The last k up-resnets and conv_out: the feature and ``head``'s skips in, ``[R, out_channels, H, W]`` out.
        Under FreeU the feature is scaled in place, as the model does."""
        unet = self.unet
        sample = self._up(self.layout.tail_up, feature, skips, conditioning, None)
        if unet.conv_norm_out:
            sample = unet.conv_act(unet.conv_norm_out(sample))
        return unet.conv_out(sample)

    def _embed(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None,
        timestep_cond: Tensor | None,
        added_cond_kwargs: dict[str, Any] | None,
        made: Made,
    ) -> tuple[Tensor, Tensor | None]:
        """The embedding ``[R, D]`` of time, class and added conditions, and an image hint if the model takes one."""
        unet = self.unet
        emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond)
        class_emb = made["class"]
        if class_emb is not None:
            concat = unet.config.class_embeddings_concat
            emb = torch.cat([emb, class_emb], dim=-1) if concat else emb + class_emb
        if "added" not in made:  # of the embedding so far only the dtype matters
            made["added"] = unet.get_aug_embed(
                emb=emb, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
            )
        added, hint = made["added"], None
        if unet.config.addition_embed_type == "image_hint":
            added, hint = added
        emb = emb if added is None else emb + added
        return (emb if unet.time_embed_act is None else unet.time_embed_act(emb)), hint

    def _down(
        self,
        parts: list[BlockPart],
        sample: Tensor,
        skips: tuple[Tensor, ...],
        conditioning: Conditioning,
        residuals: Residuals,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Runs down parts; returns the running sample and ``skips`` with theirs behind."""
        for part in parts:
            extra = residuals.blocks[part.index] if part.index < len(residuals.blocks) else None
            if part.has_cross_attention:
                more = {"additional_residuals": extra} if extra is not None and part.has_last_resnet else {}
                sample, made = part(hidden_states=sample, **_block_kwargs(conditioning), **more)
            else:
                sample, made = part(hidden_states=sample, temb=conditioning.emb)
                if extra is not None and part.has_end:
                    sample += extra  # in place, as the model does: the block's last skip is this tensor
            skips = skips + made
        return sample, skips

    def _mid(self, sample: Tensor, conditioning: Conditioning) -> Tensor:
        mid = self.unet.mid_block
        if getattr(mid, "has_cross_attention", False):
            return mid(sample, **_block_kwargs(conditioning))
        return mid(sample, conditioning.emb)

    def _up(
        self,
        parts: list[BlockPart],
        sample: Tensor,
        skips: tuple[Tensor, ...],
        conditioning: Conditioning,
        floor: torch.Size | None,
    ) -> Tensor:
        """Runs up parts, which take ``skips`` from the end. ``floor`` is the size of the skip below the lowest."""
        for part in parts:
            taken = skips[-len(part.resnets) :]
            skips = skips[: -len(part.resnets)]
            size = None
            if conditioning.odd_size and part.upsamplers is not None:
                size = skips[-1].shape[2:] if skips else floor
            kwargs = _block_kwargs(conditioning) if part.has_cross_attention else {"temb": conditioning.emb}
            sample = part(hidden_states=sample, res_hidden_states_tuple=taken, upsample_size=size, **kwargs)
        return sample


def head_inputs(call: UNetCall, cross_attention_kwargs: dict[str, Any] | None) -> tuple[Any, ...]:
    """The arguments of :meth:`SplitUNet.head` up to ``residuals``. ``cross_attention_kwargs`` has no LoRA scale."""
    return (
        call.sample,
        call.timestep,
        call.encoder_hidden_states,
        call.class_labels,
        call.timestep_cond,
        call.attention_mask,
        call.encoder_attention_mask,
        cross_attention_kwargs,
        call.added_cond_kwargs,
    )


def gather_residuals(call: UNetCall) -> Residuals:
    """ControlNet's and T2I-Adapter's residuals of a call, told apart as the model does."""
    skips, mid = call.down_block_additional_residuals, call.mid_block_additional_residual
    blocks = call.down_intrablock_additional_residuals
    if skips is not None and mid is not None:
        return Residuals(tuple(skips), mid, tuple(blocks or ()))
    if blocks is None and skips is not None:  # T2I-Adapters were once handed over under the ControlNet's name
        blocks = skips
    return Residuals(None, None, tuple(blocks or ()))


def _mask_bias(mask: Tensor | None, sample: Tensor) -> Tensor | None:
    """A mask ``[R, tokens]`` (1 = keep) as a bias ``[R, 1, tokens]`` on attention scores."""
    if mask is None:
        return None
    return ((1 - mask.to(sample.dtype)) * -10000.0).unsqueeze(1)


def _block_kwargs(conditioning: Conditioning) -> dict[str, Any]:
    """The arguments that every block with cross-attention takes."""
    return {
        "temb": conditioning.emb,
        "encoder_hidden_states": conditioning.encoder_hidden_states,
        "attention_mask": conditioning.attention_mask,
        "encoder_attention_mask": conditioning.encoder_attention_mask,
        "cross_attention_kwargs": conditioning.cross_attention_kwargs,
    }


def _add(skips: Sequence[Tensor], residuals: tuple[Tensor, ...] | None, first: int) -> tuple[Tensor, ...]:
    """Adds a ControlNet's residuals to skips ``first``, ``first`` + 1, ..."""
    if residuals is None:
        return tuple(skips)
    return tuple(skip + residuals[first + index] for index, skip in enumerate(skips))
