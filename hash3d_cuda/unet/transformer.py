"""The adapter of diffusers' transformers that are one list of blocks: DiT, PixArt, SD3.

There are no skips. Position k means that the first k and the last k of N blocks run on a hit; the cached tensor is what
the middle ones add: the tokens after block N - k minus those after block k, [R, tokens, D]. Blocks that carry the
prompt's tokens along (SD3) have them behind the picture's. Adding a difference again rounds, so a hit equals the full
forward to the last bits only (a few 1e-7 of its size in float32); a forward whose items all miss is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ..checks import check_int, fail
from .adapter import Call, SplitModel
from .twin import StandIn, TwinAdapter, answering, run_on, run_until_stop, stopping

# Arguments that reach nothing but the embeddings and the blocks. Others (a ControlNet's residuals, LoRA scale and
# IP-Adapter in the attention arguments, layers to skip) act in between.
_ARGUMENTS = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "class_labels",
    "pooled_projections",
    "added_cond_kwargs",
)


class TransformerAdapter(TwinAdapter):
    """``forward(hidden_states, ..., timestep, ...)`` on pictures ``[R, C, H, W]``."""

    looked_for = "a diffusers transformer (a list transformer_blocks, and pos_embed and proj_out or proj_out_2)"

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        blocks = getattr(model, "transformer_blocks", None)
        ends = any(isinstance(getattr(model, name, None), nn.Module) for name in ("proj_out", "proj_out_2"))
        inside = isinstance(getattr(model, "pos_embed", None), nn.Module)
        return isinstance(blocks, nn.ModuleList) and ends and inside and not hasattr(model, "single_transformer_blocks")

    def count_positions(self) -> int:
        blocks = len(self.model.transformer_blocks)
        if blocks < 3:
            fail(TypeError, "unet", "3 transformer blocks or more", f"{blocks}", "a cut leaves one in the middle")
        return (blocks - 1) // 2

    def cut(self, position: int) -> SplitModel:
        return TransformerSplit(self.model, check_int("position", position, 1, self.count_positions()))

    def why_plain(self, call: Call) -> str | None:
        unknown = [name for name, value in call.given().items() if name not in _ARGUMENTS and value is not None]
        return "arguments" if unknown or call.sample.dim() != 4 else super().why_plain(call)

    def wrap(self, output: Tensor, call: Call) -> Any:
        return Transformer2DModelOutput(sample=output) if call.return_dict else (output,)


class Tokens(NamedTuple):
    """The running tokens: the picture's, and the prompt's if the blocks carry them along."""

    picture: Tensor  # [R, tokens, D]
    prompt: Tensor | None

    def joined(self) -> Tensor:
        return self.picture if self.prompt is None else torch.cat([self.picture, self.prompt], dim=1)


class Latest:
    """What ``deep`` returned last, and the tokens it stands for: these are taken where nothing else was cached."""

    feature: Tensor | None = None
    tokens: Tokens | None = None


class BlockInputs(NamedTuple):
    """What the middle blocks are given: arguments by position, by name, both without the running tokens."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    prompt: Tensor | None
    latest: Latest


class Early(NamedTuple):
    """What the tail is given besides the feature."""

    tokens: Tokens  # after block k
    call: Call


class TransformerSplit:
    """A list of transformer blocks in three parts."""

    cut_blocks: Sequence[nn.Module] = ()

    def __init__(self, model: nn.Module, position: int) -> None:
        self._model = model
        blocks = list(model.transformer_blocks)
        self._first, self._middle, self._last = blocks[:position], blocks[position:-position], blocks[-position:]

    def head(self, call: Call) -> tuple[Tensor, Early, BlockInputs]:
        carried: list[bool] = []
        blocks = [_noting(block, carried) for block in self._first]
        stop = stopping(self._middle[0])
        args, kwargs = run_until_stop(self._model, {"transformer_blocks": [*blocks, stop]}, call)
        kwargs = dict(kwargs)
        hidden, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), args)
        prompt = kwargs.pop("encoder_hidden_states") if carried[-1] else None
        early = Early(Tokens(hidden, prompt), call)
        return hidden, early, BlockInputs(args, kwargs, prompt, Latest())

    def deep(self, hidden: Tensor, conditioning: BlockInputs) -> Tensor:
        before = tokens = Tokens(hidden, conditioning.prompt)
        for block in self._middle:
            tokens = _run(block, tokens, conditioning)
        conditioning.latest.tokens = tokens
        conditioning.latest.feature = tokens.joined() - before.joined()
        return conditioning.latest.feature

    def tail(self, feature: Tensor, skips: Early, conditioning: BlockInputs) -> Tensor:
        tokens = skips.tokens
        if feature is conditioning.latest.feature:
            tokens = conditioning.latest.tokens
        elif tokens.prompt is None:
            tokens = Tokens(tokens.picture + feature, None)
        else:
            picture, prompt = feature.split([tokens.picture.shape[1], tokens.prompt.shape[1]], dim=1)
            tokens = Tokens(tokens.picture + picture, tokens.prompt + prompt)
        answer = tokens.picture if tokens.prompt is None else (tokens.prompt, tokens.picture)
        blocks = [answering(answer, self._first[0]), *self._last]
        return run_on(self._model, {"transformer_blocks": blocks}, skips.call)


def _noting(block: nn.Module, carried: list[bool]) -> StandIn:
    """Runs ``block``, and notes whether it returns the prompt's tokens too."""

    def run(*args: Any, **kwargs: Any) -> Any:
        output = block(*args, **kwargs)
        carried.append(isinstance(output, tuple))
        return output

    return StandIn(run, block)


def _run(block: nn.Module, tokens: Tokens, conditioning: BlockInputs) -> Tokens:
    kwargs = conditioning.kwargs
    if tokens.prompt is None:
        args = (tokens.picture, *conditioning.args) if conditioning.args else (tokens.picture,)
        return Tokens(block(*args, **kwargs), None)
    prompt, picture = block(hidden_states=tokens.picture, encoder_hidden_states=tokens.prompt, **kwargs)
    return Tokens(picture, prompt)
