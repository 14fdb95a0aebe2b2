"""An entry is reused only under the condition and the model state it was made in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from unet_shapes import build_adapter, build_inputs, build_residuals, build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d

HERE = {"elevation": 0.0, "azimuth": 0.0, "radius": 2.0, "timestep": 500}


def apply(unet: UNet2DConditionModel, **options: Any) -> Hash3DCache:
    return apply_hash3d(unet, Hash3DConfig(**{"eta": 1.0, "position": 7, "capacity": 4, **options}))


def kinds_of(cache: Hash3DCache, unet: UNet2DConditionModel, inputs: dict[str, Any], ids: str) -> list[str]:
    found = []
    for condition in ids:
        with cache.views(**HERE, condition=condition):
            unet(**inputs)
        found += cache.last.kinds
    return found


def test_a_change_forgets(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    """With room for one condition, a new id empties the table; the old one coming back finds nothing."""
    cache = apply(unet)
    assert kinds_of(cache, unet, inputs, "aabba") == ["miss", "hit", "miss", "hit", "miss"]
    assert len(cache.table) == 1
    cache.remove()


def test_conditions_side_by_side(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    cache = apply(unet, max_conditions=2)
    assert kinds_of(cache, unet, inputs, "abab") == ["miss", "miss", "hit", "hit"]
    # c takes the place of a, not used for longest; then a that of b
    assert kinds_of(cache, unet, inputs, "cbac") == ["miss", "hit", "miss", "miss"]
    assert cache.table.capacity == 2
    cache.remove()


def test_answers_are_of_their_own_condition(unet: UNet2DConditionModel) -> None:
    """Two prompts alternate under two ids: every answer is what the plain U-Net says to that prompt."""
    prompts = {name: build_inputs(unet, rows=2, seed=seed) for seed, name in enumerate("ab")}
    expected = {name: unet(**inputs).sample for name, inputs in prompts.items()}
    for room in (1, 2):
        cache = apply(unet, max_conditions=room)
        for name in "abbaab":
            with cache.views(**HERE, condition=name):
                assert torch.equal(unet(**prompts[name]).sample, expected[name])
        assert cache.stats().hits == {1: 2, 2: 4}[room]
        cache.remove()


@pytest.mark.parametrize("room", [1, 2])
def test_a_condition_per_item(unet: UNet2DConditionModel, room: int) -> None:
    inputs = build_inputs(unet, rows=6)
    expected = unet(**inputs).sample
    cache = apply(unet, capacity=16, max_conditions=room)
    with cache.views(**HERE, condition=["x", "y", "x"]):
        first = unet(**inputs).sample
        second = unet(**inputs).sample
    # with room for one, y took the table that x had just filled
    assert cache.last.kinds == (("hit",) * 3 if room == 2 else ("miss", "hit", "miss"))
    assert torch.equal(first, expected)
    torch.testing.assert_close(second[[1, 4]], expected[[1, 4]], rtol=0, atol=0)
    cache.remove()


def test_memory_is_shared() -> None:
    unet = build_unet("sd15")
    inputs = build_inputs(unet, rows=2)
    for options in ({"capacity": 12, "memory_budget": None}, {"capacity": None, "memory_budget": "64MiB"}):
        cache = apply(unet, max_conditions=4, num_buckets=101, **options)
        kinds_of(cache, unet, inputs, "abcdefg")
        if options["capacity"]:
            assert cache.table.capacity == 3
        else:
            assert 56 * 2**20 < cache.stats().nbytes <= 64 * 2**20
        assert cache.stats().nbytes == 4 * cache.table.nbytes
        cache.remove()


def _train(unet: UNet2DConditionModel) -> None:
    with torch.no_grad():
        unet.mid_block.resnets[0].conv1.weight.mul_(1.5)


def _load(unet: UNet2DConditionModel) -> None:
    unet.load_state_dict(build_unet("sd15", seed=5).state_dict())


def _process(unet: UNet2DConditionModel) -> None:
    unet.set_attn_processor(AttnProcessor())


def _freeu(unet: UNet2DConditionModel) -> None:
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)


def _train_mode(unet: UNet2DConditionModel) -> None:
    unet.train()


@pytest.mark.parametrize("change", [_train, _load, _process, _freeu, _train_mode])
def test_changes_of_the_model(unet: UNet2DConditionModel, inputs: dict[str, Any], change: Any) -> None:
    cache = apply(unet)
    with cache.views(**HERE):
        unet(**inputs)
        change(unet)
        with cache.bypass():
            expected = unet(**inputs).sample
        for kind in ("miss", "hit"):
            assert torch.equal(unet(**inputs).sample, expected) and cache.last.kinds == (kind,)
    cache.remove()


class Adapted(nn.Module):
    """A LoRA layer as peft makes them, seen from outside."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.scaling, self.merged, self.active_adapters = base, {"style": 1.0}, False, ["style"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) * (1 + self.scaling["style"])


def test_changes_of_lora(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    cache = apply(unet)
    kinds = []

    def run() -> None:
        with cache.views(**HERE):
            unet(**inputs)
        kinds.extend(cache.last.kinds)

    run()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.to_q = Adapted(attention.to_q)
    unet.peft_config = {"style": object()}  # load_lora_weights
    run(), run()
    attention.to_q.scaling["style"] = 0.5  # set_adapters
    run(), run()
    assert kinds == ["miss", "miss", "hit", "miss", "hit"]
    cache.remove()


def test_lora_scale_of_a_call(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    cache = apply(unet)
    kinds = []
    for scale in (0.5, 0.5, 0.7, 0.7):
        with cache.views(**HERE):
            unet(**inputs, cross_attention_kwargs={"scale": scale})
        kinds += cache.last.kinds
    assert kinds == ["miss", "hit", "miss", "hit"]
    cache.remove()


def test_residuals_come_and_go(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    """A ControlNet's or adapter's feature is not served to a call without it, nor the reverse."""
    cache = apply(unet, max_conditions=4)
    variants = [
        inputs,
        inputs | build_residuals(unet, inputs),
        inputs | {"down_intrablock_additional_residuals": build_adapter(unet, inputs)},
    ]
    with cache.bypass():
        expected = [unet(**copied(variant)).sample for variant in variants]
    for kind in ("miss", "hit"):
        for variant, answer in zip(variants, expected, strict=True):
            with cache.views(**HERE):
                assert torch.equal(unet(**variant).sample, answer) and cache.last.kinds == (kind,)
    cache.remove()


def copied(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in inputs.items()}


def test_embeddings_may_follow_the_view(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    """Values of inputs are not watched: a pose embedding differs in every call."""
    cache = apply(unet)
    with cache.views(**HERE):
        unet(**inputs)
        unet(**{**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"] + 0.01})
    assert cache.last.kinds == ("hit",)
    with cache.views(**HERE):  # more tokens are another matter
        unet(**{**inputs, "encoder_hidden_states": torch.zeros(2, 9, 12)})
    assert cache.last.kinds == ("miss",)
    cache.remove()


@pytest.mark.parametrize("condition", [torch.tensor(1), {"prompt": "a"}, [["a"]]])
def test_condition_ids_are_hashable(unet: UNet2DConditionModel, condition: Any) -> None:
    cache = apply(unet)
    with pytest.raises(TypeError, match="condition: expected a hashable id"), cache.views(**HERE, condition=condition):
        pass
    cache.remove()


def test_clear_forgets_all_conditions(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    cache = apply(unet, max_conditions=2)
    assert kinds_of(cache, unet, inputs, "ab") == ["miss", "miss"]
    cache.clear()
    assert kinds_of(cache, unet, inputs, "abab") == ["miss", "miss", "hit", "hit"]
    cache.remove()
