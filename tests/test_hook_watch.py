"""Whatever is exchanged, put in or written to under a cache: the next answer is the changed model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from unet_shapes import build_inputs, build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.fingerprint import ModelState
from hash3d_cuda.hook import Hash3DCache, apply_hash3d
from hash3d_cuda.unet import UNetCall
from hash3d_cuda.watch import ModelWatch

HERE = {"elevation": 0.0, "azimuth": 0.0, "radius": 2.0, "timestep": 500}
Change = Callable[[UNet2DConditionModel], Any]


def other(seed: int = 5) -> UNet2DConditionModel:
    return build_unet("sd15", seed=seed)


def apply(unet: UNet2DConditionModel, **options: Any) -> Hash3DCache:
    return apply_hash3d(unet, Hash3DConfig(**{"eta": 1.0, "capacity": 4, **options}))


def run(cache: Hash3DCache, unet: UNet2DConditionModel, inputs: dict[str, Any]) -> str:
    """One forward whose answer must be the plain U-Net's; returns what became of it."""
    with torch.no_grad():
        with cache.bypass():
            expected = unet(**inputs).sample
        with cache.views(**HERE):
            answer = unet(**inputs).sample
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-6)
    return cache.last.plain or cache.last.kind


def _assign_state(unet: UNet2DConditionModel) -> None:
    unet.load_state_dict(other().state_dict(), assign=True)


def _new_parameter(unet: UNet2DConditionModel) -> None:
    conv = unet.mid_block.resnets[0].conv1
    conv.weight = nn.Parameter(conv.weight * 9, requires_grad=False)


def _new_module(unet: UNet2DConditionModel) -> None:
    unet.mid_block.resnets[0].conv1 = other().mid_block.resnets[0].conv1


def _new_adapted_module(unet: UNet2DConditionModel) -> None:
    unet.up_blocks[1].resnets[0].conv1 = nn.Sequential(unet.up_blocks[1].resnets[0].conv1, nn.Tanh())


def _new_embedding(unet: UNet2DConditionModel) -> None:
    unet.time_embedding = other().time_embedding


def _new_conv_in(unet: UNet2DConditionModel) -> None:
    unet.conv_in = other().conv_in


def _new_resnet(unet: UNet2DConditionModel) -> None:
    unet.up_blocks[3].resnets[-1] = other().up_blocks[3].resnets[-1]
    unet.down_blocks[0].resnets[0] = other().down_blocks[0].resnets[0]


def _new_attention(unet: UNet2DConditionModel) -> None:
    unet.up_blocks[3].attentions[-1] = other().up_blocks[3].attentions[-1]


def _new_down_block(unet: UNet2DConditionModel) -> None:
    unet.down_blocks[0] = other().down_blocks[0]


def _new_up_block(unet: UNet2DConditionModel) -> None:
    unet.up_blocks[0] = other().up_blocks[0]


def _new_sampler(unet: UNet2DConditionModel) -> None:
    unet.down_blocks[0].downsamplers = other().down_blocks[0].downsamplers


def _new_middle(unet: UNet2DConditionModel) -> None:
    unet.mid_block = other().mid_block


def _write_under_inference_mode(unet: UNet2DConditionModel) -> None:
    with torch.inference_mode():
        unet.mid_block.resnets[0].conv1.weight.mul_(3)


CHANGES = [value for name, value in sorted(globals().items()) if name.startswith(("_assign", "_new", "_write"))]


@pytest.mark.parametrize("change", CHANGES)
def test_between_forwards(unet: UNet2DConditionModel, inputs: dict[str, Any], change: Change) -> None:
    cache = apply(unet)
    kinds = [run(cache, unet, inputs), run(cache, unet, inputs)]
    change(unet)
    kinds += [run(cache, unet, inputs), run(cache, unet, inputs)]
    assert kinds == ["miss", "hit", "miss", "hit"]
    cache.remove()


@pytest.mark.parametrize("change", [_new_resnet, _new_attention, _new_down_block, _new_up_block, _new_sampler])
def test_before_the_first_forward(unet: UNet2DConditionModel, inputs: dict[str, Any], change: Change) -> None:
    """The parts that were cut when the cache was applied are not run for ever."""
    cache = apply(unet)
    change(unet)
    assert [run(cache, unet, inputs) for _ in range(2)] == ["miss", "hit"]
    cache.remove()


def test_back_again(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    """Weights taken out and put back were away in between: what was stored before is not trusted."""
    cache = apply(unet, max_conditions=4)
    conv = unet.mid_block.resnets[0].conv1
    first, second = conv.weight, nn.Parameter(conv.weight * 9, requires_grad=False)
    kinds = []
    for weight in (first, second, first, first):
        conv.weight = weight
        kinds.append(run(cache, unet, inputs))
    assert kinds == ["miss", "miss", "miss", "hit"]
    cache.remove()


def test_features_of_another_shape(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    """Blocks of another width in place of the old: the tables follow."""
    wider = build_unet("sd15", block_out_channels=(16, 16, 16, 16), seed=3)
    cache = apply(unet)
    kinds = [run(cache, unet, inputs)]
    for name in ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out"):
        setattr(unet, name, getattr(wider, name))
    unet.time_proj = wider.time_proj
    kinds += [run(cache, unet, inputs), run(cache, unet, inputs)]
    assert kinds == ["miss", "miss", "hit"] and cache.table.options.feature_shape[1] == 16
    cache.remove()


def test_blocks_that_cannot_be_cut(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    class Foreign(nn.Module):
        has_cross_attention = False

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = [inner]  # no submodule
            self.resnets = inner.resnets

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner[0](*args, **kwargs)

    cache = apply(unet)
    run(cache, unet, inputs)
    block = unet.down_blocks[3]
    unet.down_blocks[3] = Foreign(block)
    with pytest.warns(RuntimeWarning, match="cannot be cut"):
        assert run(cache, unet, inputs) == "blocks"
    unet.down_blocks[3] = block
    assert [run(cache, unet, inputs), run(cache, unet, inputs)] == ["miss", "hit"]
    cache.remove()


def test_writes_through_data_need_clear(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    """As the documents say: such a write counts as none, so the cache must be told."""
    cache = apply(unet)
    run(cache, unet, inputs)
    for parameter in unet.mid_block.parameters():
        parameter.data.mul_(3)
    cache.clear()
    assert [run(cache, unet, inputs), run(cache, unet, inputs)] == ["miss", "hit"]
    cache.remove()


def test_modules_are_told_from_weights() -> None:
    """``look()`` is true for modules alone; ``state()`` changes with either; nothing changes by itself."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential())
    watch = ModelWatch(model)
    seen = {watch.state()}

    def check(exchanged: bool) -> None:
        assert watch.look() is exchanged and watch.state() not in seen
        assert watch.look() is False
        seen.add(watch.state())

    assert watch.look() is False and watch.state() in seen
    model[0].weight = nn.Parameter(torch.ones(2, 2))
    check(False)
    model[1].running_mean = torch.ones(2)
    check(False)
    model[1].num_batches_tracked = torch.tensor(0)  # equal to the one before
    check(False)
    model[1].num_batches_tracked.add_(1)
    check(False)
    model[0].bias = None
    check(False)
    model[2].append(nn.ReLU())  # into a container that was empty
    check(True)
    del model[0]
    check(True)


def test_hints_of_what_will_be_read_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the counters of writes lie is found by trial; where it is not, all is seen all the same."""
    model = nn.Linear(2, 2)
    hinted = ModelWatch(model)
    monkeypatch.setattr("hash3d_cuda.watch._counters_place", lambda: None)
    plain = ModelWatch(model)
    before = hinted.state()
    assert plain.state() == before and len(plain._lines) <= len(hinted._lines)
    with torch.no_grad():
        model.weight.mul_(2)
    assert plain.state() == hinted.state() != before


def test_meta_weights_stand_for_others() -> None:
    """Sequential offloading puts a new placeholder there after every forward: that is no change."""
    model = nn.Linear(2, 2, device="meta")
    watch = ModelWatch(model)
    state = watch.state()
    model.weight = nn.Parameter(torch.empty(2, 2, device="meta"))
    assert watch.look() is False and watch.state() == state
    model.weight = nn.Parameter(torch.ones(2, 2))
    assert watch.look() is False and watch.state() != state


def test_weights_that_count_no_writes(inputs: dict[str, Any]) -> None:
    with torch.inference_mode():
        unet = other()
    cache = apply(unet)
    assert [run(cache, unet, inputs), run(cache, unet, inputs)] == ["miss", "hit"]
    cache.remove()


class Scaled:
    """An attention processor with a scale, as an IP-Adapter's is."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.scale = inner, [1.0]

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> Tensor:
        return self.scale[0] * self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)


def test_scale_of_a_processor(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    cache = apply(unet)
    kinds = [run(cache, unet, inputs)]
    attention.processor = Scaled(attention.processor)
    kinds += [run(cache, unet, inputs), run(cache, unet, inputs)]
    attention.processor.scale = [0.3]  # set_ip_adapter_scale
    kinds += [run(cache, unet, inputs), run(cache, unet, inputs)]
    assert kinds == ["miss", "miss", "hit", "miss", "hit"]
    cache.remove()


def test_projection_of_hidden_states(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    """As ``load_ip_adapter`` and ``unload_ip_adapter`` do."""
    cache = apply(unet)
    kinds = [run(cache, unet, inputs)]
    unet.config["encoder_hid_dim_type"] = "text_proj"
    for projection in (nn.Linear(12, 12).requires_grad_(False), nn.Linear(12, 12).requires_grad_(False)):
        unet.encoder_hid_proj = projection
        kinds += [run(cache, unet, inputs), run(cache, unet, inputs)]
    assert kinds == ["miss", "miss", "hit", "miss", "hit"]
    cache.remove()


class Adapted(nn.Module):
    """A LoRA layer as peft makes them, seen from outside."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.scaling, self.active_adapters = base, {"style": 1.0}, ["style"]
        self.merged = self.disable_adapters = False

    def forward(self, x: Tensor) -> Tensor:
        scale = 0.0 if self.disable_adapters else self.scaling["style"] + 0.5 * self.merged
        return self.base(x) * (1 + scale * ("style" in self.active_adapters))


def test_state_of_lora_layers(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    layer = attention.to_q = Adapted(attention.to_q)
    cache = apply(unet)
    assert run(cache, unet, inputs) == "miss"
    for name, value in (("merged", True), ("disable_adapters", True), ("active_adapters", [])):
        setattr(layer, name, value)
        assert [run(cache, unet, inputs), run(cache, unet, inputs)] == ["miss", "hit"], name
    layer.scaling["style"] *= 1 + 2**-52  # what multiplying by a scale and dividing again may leave
    assert run(cache, unet, inputs) == "hit"
    cache.remove()


def test_real_lora(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    cache = apply(unet)
    run(cache, unet, inputs)
    lora = peft.LoraConfig(r=4, lora_alpha=7, init_lora_weights=False, target_modules=["to_q", "to_v", "conv1"])

    def write() -> None:
        with torch.no_grad():
            unet.mid_block.resnets[0].conv1.lora_B["default"].weight.mul_(2)

    changes: list[Callable[[], Any]] = [
        lambda: (unet.add_adapter(lora), unet.requires_grad_(False)),
        lambda: inputs.update(cross_attention_kwargs={"scale": 0.3}),
        lambda: inputs.pop("cross_attention_kwargs"),
        lambda: unet.set_adapters("default", [0.5]),
        unet.disable_adapters,
        unet.enable_adapters,
        write,
        unet.fuse_lora,
        unet.unfuse_lora,
        lambda: unet.delete_adapters("default"),
    ]
    for change in changes:
        change()
        assert [run(cache, unet, inputs) for _ in range(3)] == ["miss", "hit", "hit"]
    cache.remove()


def test_which_inputs_are_given() -> None:
    """Labels, masks, added conditions: what comes, goes or changes its shape is another state."""
    unet = build_unet("uneven")
    inputs = build_inputs(unet, rows=2)
    variants = [
        {},
        {"class_labels": torch.ones(2, 6)},
        {"class_labels": None},
        {"timestep_cond": None},
        {"attention_mask": torch.ones(2, 64)},
        {"encoder_attention_mask": torch.ones(2, 7)},
        {"added_cond_kwargs": {"image_embeds": torch.ones(2, 3)}},
        {"added_cond_kwargs": {"image_embeds": torch.ones(2, 5)}},
    ]
    model = ModelState(unet)
    seen = [model.fingerprint(UNetCall(**inputs | variant)) for variant in variants]
    assert len(set(seen)) == len(variants)
    assert seen == [model.fingerprint(UNetCall(**inputs | variant)) for variant in variants]


def test_mask_of_the_image_comes(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    """An ``attention_mask`` reaches self-attention: here one that keeps all, which is an input all the same."""
    cache = apply(unet)
    unet.set_attn_processor(_ignore_mask)
    assert [run(cache, unet, inputs), run(cache, unet, inputs)] == ["miss", "hit"]
    assert run(cache, unet, inputs | {"attention_mask": torch.ones(2, 64)}) == "miss"
    cache.remove()


def _ignore_mask(attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **kwargs: Any) -> Tensor:
    return hidden_states if encoder_hidden_states is None else encoder_hidden_states.mean() * hidden_states
