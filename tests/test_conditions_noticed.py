"""What the cache notices by itself: after each change its answer is right, and that of one that did not look is not.

What must be told with ``views(condition=...)`` is tested in test_adapters_conditions.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tiny_pipelines import SMALL
from torch import Tensor
from unet_shapes import build_inputs, build_residuals, build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import apply_hash3d

HERE = {"elevation": 0.0, "azimuth": 0.0, "radius": 2.0, "timestep": 500}
Inputs = dict[str, Any]
Step = Callable[[UNet2DConditionModel, Inputs], Any]  # changes the model, or the inputs in place


def nothing(unet: UNet2DConditionModel, inputs: Inputs) -> None: ...


def write_weight(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    with torch.no_grad():
        unet.mid_block.resnets[0].conv1.weight.mul_(3)


def exchange_block(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    unet.mid_block = build_unet("sd15", seed=7, **SMALL).mid_block


class Scaling:
    """An attention processor with an argument of its own."""

    def __init__(self, inner: Any, factor: float = 1.0) -> None:
        self.inner, self.factor = inner, factor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        strength: float = 1.0,
    ) -> Tensor:
        factor = self.factor * strength
        return factor * self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)


def scale_attention(factor: float) -> Step:
    def step(unet: UNet2DConditionModel, inputs: Inputs) -> None:
        unet.set_attn_processor({name: Scaling(inner, factor) for name, inner in unet.attn_processors.items()})

    return step


def give(**more: Any) -> Step:
    return lambda unet, inputs: inputs.update(more)


def add_control(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    inputs.update(build_residuals(unet, dict(inputs)))


def freeu(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)


MASK = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0]] * 2)
MODEL: dict[str, tuple[Step, Step]] = {
    "a weight written to": (nothing, write_weight),
    "a block exchanged": (nothing, exchange_block),
    "attention processors": (nothing, scale_attention(3.0)),
    "attention processors back": (scale_attention(3.0), lambda unet, inputs: unet.set_attn_processor(AttnProcessor())),
    "cross_attention_kwargs": (scale_attention(1.0), give(cross_attention_kwargs={"strength": 3.0})),
    "FreeU": (nothing, freeu),
    "FreeU off": (freeu, lambda unet, inputs: unet.disable_freeu()),
    "a mask that comes": (nothing, give(encoder_attention_mask=MASK)),
    "a ControlNet that comes": (nothing, add_control),
}


def lora(*names: str, active: str = "a") -> Step:
    def step(unet: UNet2DConditionModel, inputs: Inputs) -> None:
        peft = pytest.importorskip("peft")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            for name in names:
                unet.add_adapter(peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "conv1"]), name)
        unet.set_adapters(active)

    return step


def after(*steps: Step) -> Step:
    def step(unet: UNet2DConditionModel, inputs: Inputs) -> None:
        for one in steps:
            one(unet, inputs)

    return step


def fuse(*names: str, scale: float = 1.0) -> Step:
    return lambda unet, inputs: unet.fuse_lora(lora_scale=scale, adapter_names=list(names))


def activate(name: str, weight: float = 1.0) -> Step:
    return lambda unet, inputs: unet.set_adapters(name, [weight])


def do(name: str) -> Step:
    return lambda unet, inputs: getattr(unet, name)()


LORA: dict[str, tuple[Step, Step]] = {
    "loaded": (nothing, lora("a")),
    "scaled for a call": (lora("a"), give(cross_attention_kwargs={"scale": 0.2})),
    "weighed": (lora("a"), activate("a", 0.2)),
    "another": (lora("a", "b"), activate("b")),
    "disabled": (lora("a"), do("disable_lora")),
    "enabled": (after(lora("a"), do("disable_lora")), do("enable_lora")),
    "fused at a scale": (lora("a"), fuse("a", scale=0.2)),
    "a second one fused": (after(lora("a", "b"), fuse("a")), fuse("b")),
    "unfused": (after(lora("a", "b"), fuse("a"), activate("b")), do("unfuse_lora")),
    "deleted": (lora("a"), lambda unet, inputs: unet.delete_adapters("a")),
}
CASES = MODEL | {f"LoRA {name}": steps for name, steps in LORA.items()}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()  # peft's layers want gradients
def test_a_change_is_noticed(case: str) -> None:
    prepare, change = CASES[case]
    unet = build_unet("sd15", **SMALL)
    inputs = build_inputs(unet, rows=2)
    prepare(unet, inputs)
    cache = apply_hash3d(unet, Hash3DConfig(eta=1.0, position=2, capacity=4, max_conditions=2))

    def ask() -> Tensor:
        with cache.views(**HERE):
            return unet(**inputs).sample

    ask()
    [(_, seen)] = cache._hooked.cached.store._tables  # the fingerprint that the entry was filed under
    change(unet, inputs)
    with cache.bypass():
        expected = unet(**inputs).sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache._hooked.state, "look", lambda: False)
        patch.setattr(cache._hooked.state, "fingerprint", lambda call: seen)
        stale = ask()
        assert cache.last.kind == "hit" and (stale - expected).abs().max() > 1e-4
    assert torch.equal(ask(), expected) and cache.last.kind == "miss"
    assert torch.equal(ask(), expected) and cache.last.kind == "hit"
    cache.remove()
