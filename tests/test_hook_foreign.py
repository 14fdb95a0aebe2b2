"""The cache beside code of others: hooks, wrappers, subclasses, transforms of torch, copies of the U-Net."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import UNet2DConditionModel
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.autograd import forward_ad
from unet_shapes import build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d

HERE = {"elevation": 0.0, "azimuth": 0.0, "radius": 2.0}


def apply(unet: UNet2DConditionModel, **options: Any) -> Hash3DCache:
    return apply_hash3d(unet, Hash3DConfig(**{"eta": 1.0, "capacity": 4, **options}))


class Doubling(ModelHook):
    """Surrounds a forward, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, {**kwargs, "sample": kwargs["sample"] * 2}

    def post_forward(self, module: Any, output: Any) -> Any:
        return type(output)(sample=output.sample + 1)


@pytest.mark.parametrize("mode", ["feature", "noise"])
@pytest.mark.parametrize("below", [True, False])
def test_other_registry_hooks(unet: UNet2DConditionModel, inputs: dict[str, Any], below: bool, mode: str) -> None:
    other = Doubling()
    registry = HookRegistry.check_if_exists_or_initialize(unet)
    if below:
        registry.register_hook(other, "other")
    cache = apply(unet, mode=mode)
    if not below:
        registry.register_hook(other, "other")
    with cache.bypass():
        expected = unet(**inputs).sample
    with cache.views(**HERE):
        for kind in ("miss", "hit"):
            assert torch.equal(unet(**inputs).sample, expected) and cache.last.kind == kind
    assert other.calls == 3
    cache.remove()
    assert torch.equal(unet(**inputs).sample, expected) and other.calls == 4
    registry.remove_hook("other")


def test_accelerate_hook_below(unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor) -> None:
    """As after ``pipe.enable_model_cpu_offload()``: the hook moves inputs and weights."""
    add_hook_to_module(unet, accelerate.hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))
    attributes = dict(vars(unet))
    cache = apply(unet)
    with cache.views(**HERE):
        for kind in ("miss", "hit"):
            assert torch.equal(unet(**inputs).sample, full) and cache.last.kind == kind
    cache.remove()
    assert vars(unet) == attributes
    add_hook_to_module(unet, accelerate.hooks.AlignDevicesHook(execution_device="cpu"))
    remove_hook_from_module(unet)


def test_wrapped_from_outside(unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor) -> None:
    cache = apply(unet)
    ours = unet.forward
    unet.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with cache.views(**HERE):
        assert torch.equal(unet(**inputs).sample, full)
    with pytest.raises(RuntimeError, match="wrapped by other code"):
        cache.remove()
    unet.forward = ours
    cache.remove()


def test_foreign_code_in_the_way(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    """A forward that was replaced, or a hook on the block that is cut, is not skipped."""
    own = unet.forward
    unet.forward = lambda *args, **kwargs: own(*args, **kwargs)
    cache = apply(unet)
    with cache.views(**HERE), pytest.warns(RuntimeWarning, match="wrapped"):
        unet(**inputs)
    cache.remove()
    del unet.forward
    cache = apply(unet, position=2)
    calls: list[int] = []
    hook = unet.up_blocks[3].register_forward_hook(lambda *args: calls.append(1))
    with cache.views(**HERE), pytest.warns(RuntimeWarning, match="block that is cut"):
        unet(**inputs)
    assert calls == [1] and cache.last.plain == "hooks"
    hook.remove()
    with cache.views(**HERE):
        unet(**inputs)
    assert cache.last.kinds == ("miss",)
    cache.remove()


def test_unknown_arguments(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    cache = apply(unet)
    with cache.views(**HERE), pytest.warns(RuntimeWarning), pytest.raises(TypeError, match="nonsense"):
        unet(**inputs, nonsense=1)
    cache.remove()


def test_gligen(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    cache = apply(unet)
    with cache.views(**HERE), pytest.warns(RuntimeWarning, match="GLIGEN"), pytest.raises(AttributeError):
        unet(**inputs, cross_attention_kwargs={"gligen": {"boxes": None}})  # this U-Net has no position_net
    cache.remove()


@pytest.mark.parametrize("mode", ["feature", "noise"])
def test_a_subclass_with_its_own_forward(inputs: dict[str, Any], mode: str) -> None:
    class Louder(UNet2DConditionModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            return type(output)(sample=output.sample * 2)

    unet = build_unet("sd15")
    unet.__class__ = Louder
    expected = unet(**inputs).sample
    cache = apply(unet, mode=mode)
    with cache.views(**HERE), pytest.warns(RuntimeWarning, match="forward of its own"):
        assert torch.equal(unet(**inputs).sample, expected) and cache.last.plain == "hooks"
    with cache.views(**HERE), warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert torch.equal(unet(**inputs).sample, expected)
    cache.remove()


def test_a_subclass_with_the_models_forward(inputs: dict[str, Any], full: Tensor) -> None:
    unet = build_unet("sd15")
    unet.__class__ = type("Named", (UNet2DConditionModel,), {})
    cache = apply(unet)
    with cache.views(**HERE):
        for kind in ("miss", "hit"):
            assert torch.equal(unet(**inputs).sample, full) and cache.last.kind == kind
    cache.remove()


@pytest.mark.parametrize("position", [2, 3])
def test_a_block_with_its_own_forward(unet: UNet2DConditionModel, inputs: dict[str, Any], position: int) -> None:
    """Its forward may use ``super()``, which a part of a block cannot; where it is run whole, nothing is amiss."""
    block = unet.up_blocks[3]

    class Louder(type(block)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs) * 2

    block.__class__ = Louder
    expected = unet(**inputs).sample
    cache = apply(unet, position=position)
    with cache.views(**HERE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("plain", "plain") if position == 2 else ("miss", "hit"):
            assert torch.equal(unet(**inputs).sample, expected) and cache.last.kind == kind
    cache.remove()


def _use_simple_attention(unet: UNet2DConditionModel) -> None:
    unet.set_attn_processor(AttnProcessor())  # the fused kernel has no forward-mode formula on CPUs


def test_tangents(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    _use_simple_attention(unet)
    cache = apply(unet)
    with cache.views(**HERE), torch.no_grad():
        unet(**inputs)  # something to hit
    with forward_ad.dual_level():
        sample = forward_ad.make_dual(inputs["sample"], torch.ones_like(inputs["sample"]))
        with cache.bypass():
            expected = forward_ad.unpack_dual(unet(**inputs | {"sample": sample}).sample).tangent
        with cache.views(**HERE), pytest.warns(RuntimeWarning, match="forward-mode"):
            found = forward_ad.unpack_dual(unet(**inputs | {"sample": sample}).sample).tangent
    assert cache.last.plain == "transforms" and torch.equal(found, expected)
    cache.remove()


@pytest.mark.parametrize("transform", ["vmap", "jvp", "grad"])
def test_function_transforms(unet: UNet2DConditionModel, inputs: dict[str, Any], transform: str) -> None:
    _use_simple_attention(unet)
    cache = apply(unet)
    sample = inputs.pop("sample")

    def call(sample: Tensor) -> Tensor:
        return unet(sample, **inputs).sample

    def transformed() -> Tensor:
        if transform == "vmap":
            return torch.func.vmap(call)(sample[None])
        if transform == "jvp":
            return torch.func.jvp(call, (sample,), (torch.ones_like(sample),))[1]
        return torch.func.grad(lambda sample: call(sample).sum())(sample)

    expected = transformed()
    with cache.views(**HERE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(sample)
        assert torch.equal(transformed(), expected) and cache.last.plain == "transforms"
    cache.remove()


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "deepcopy under accelerate"])
def test_copies_have_no_cache(unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor, how: str) -> None:
    if "accelerate" in how:
        add_hook_to_module(unet, accelerate.hooks.AlignDevicesHook(execution_device="cpu"))
    names = set(vars(unet))
    cache = apply(unet)
    with cache.views(**HERE):
        unet(**inputs)
    copied = pickle.loads(pickle.dumps(unet)) if how == "pickle" else copy.deepcopy(unet)
    assert set(vars(copied)) == names and type(copied) is type(unet)
    with cache.views(**HERE):
        unet(**inputs)
        assert cache.last.kind == "hit"  # the original's goes on
        copied.conv_out.bias.add_(1.0)
        assert torch.allclose(copied(**inputs).sample, full + 1.0) and cache.stats().forwards == 2
    own = apply(copied)
    with own.views(**HERE):
        copied(**inputs)
    assert own.last.kind == "miss"
    own.remove()
    cache.remove()


@pytest.mark.parametrize("below", [True, False])
def test_copies_under_other_hooks_are_refused(unet: UNet2DConditionModel, below: bool) -> None:
    """Theirs would run the original from within the copy."""
    registry = HookRegistry.check_if_exists_or_initialize(unet)
    if below:
        registry.register_hook(Doubling(), "other")
    cache = apply(unet)
    if not below:
        registry.register_hook(Doubling(), "other")
    for how in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"remove\(\)"):
            how(unet)
    registry.remove_hook("other")
    copy.deepcopy(unet)
    with pytest.raises(TypeError, match="Hash3DCache"):
        copy.deepcopy(cache)
    cache.remove()
