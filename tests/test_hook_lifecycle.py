"""Putting the cache on and taking it off, its contexts, and the calls it must leave to the plain U-Net."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.autograd import forward_ad
from unet_shapes import build_inputs, build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d

HERE = {"elevation": 0.0, "azimuth": 0.0, "radius": 2.0}


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return build_unet("sd15")


@pytest.fixture
def inputs(unet: UNet2DConditionModel) -> dict[str, Any]:
    return build_inputs(unet, rows=2)


@pytest.fixture
def full(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> Tensor:
    return unet(**inputs).sample


def apply(unet: UNet2DConditionModel, **options: Any) -> Hash3DCache:
    return apply_hash3d(unet, Hash3DConfig(**{"eta": 1.0, "capacity": 4, **options}))


def test_remove_leaves_no_trace(unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor) -> None:
    attributes, weights = dict(vars(unet)), {name: value.clone() for name, value in unet.state_dict().items()}
    for _ in range(2):
        cache = apply(unet)
        with cache.views(**HERE):
            unet(**inputs)
            unet(**inputs)
        assert cache.last.kind == "hit"
        cache.remove()
        cache.remove()
        assert vars(unet) == attributes
        assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
        assert torch.equal(unet(**inputs).sample, full)
        assert cache.stats().hits == 1 and cache.table is None


def test_twice_applied(unet: UNet2DConditionModel) -> None:
    cache = apply(unet)
    with pytest.raises(ValueError, match=r"without a cache.*remove\(\)"):
        apply(unet)
    cache.remove()
    apply(unet).remove()


def test_what_cannot_be_cut(unet: UNet2DConditionModel) -> None:
    with pytest.raises(TypeError, match="UNet2DConditionModel"):
        apply(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="UNet2DConditionModel"):
        apply(UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)))
    simple = build_unet("sd15", mid_block_type="UNetMidBlock2DSimpleCrossAttn")
    with pytest.raises(TypeError, match="UNetMidBlock2DSimpleCrossAttn"):
        apply(simple)
    with pytest.raises(ValueError, match=r"position.*1 to 12.*13"):
        apply(unet, position=13)
    with pytest.raises(TypeError, match="Hash3DConfig"):
        apply_hash3d(unet, {"eta": 1.0})
    assert "forward" not in vars(unet)


def test_outside_views_and_bypass(unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor) -> None:
    cache = apply(unet)
    assert torch.equal(unet(**inputs).sample, full) and cache.last.plain == "outside views"
    with cache.views(**HERE), cache.bypass(), cache.views(**HERE):
        assert torch.equal(unet(**inputs).sample, full) and cache.last.kind == "plain"
    assert cache.table is None and cache.stats().forwards == 0
    with cache.views(**HERE):
        with cache.bypass(), cache.bypass():
            unet(**inputs)
        unet(**inputs)
        assert cache.last.kinds == ("miss",)
    cache.remove()


def test_innermost_views_count(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    cache = apply(unet)
    with cache.views(**HERE):
        unet(**inputs)
        with pytest.raises(RuntimeError, match="inside"), cache.views(0.0, 180.0, 2.0):
            unet(**inputs)
            assert cache.last.kinds == ("miss",)
            raise RuntimeError("inside")
        unet(**inputs)
        assert cache.last.kinds == ("hit",)
    unet(**inputs)
    assert cache.last.plain == "outside views"
    cache.remove()


def test_views_are_per_thread(unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor) -> None:
    cache = apply(unet)
    seen = []

    def other() -> None:
        with torch.no_grad():
            seen.append(unet(**inputs).sample)
        seen.append(cache.last.plain)

    with cache.views(**HERE):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    cache.remove()
    assert torch.equal(seen[0], full) and seen[1] == "outside views"


def test_threads_share_a_cache(unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor) -> None:
    cache = apply(unet)
    wrong = []

    def work(azimuth: float) -> None:
        with torch.no_grad(), cache.views(0.0, azimuth, 2.0):
            for _ in range(3):
                wrong.extend([] if torch.equal(unet(**inputs).sample, full) else [azimuth])

    threads = [threading.Thread(target=work, args=(120.0 * index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cache.stats()
    cache.remove()
    assert not wrong and (stats.hits, stats.misses) == (6, 3)


@pytest.mark.parametrize("where", ["conv_in", "mid_block", "conv_out"])
def test_exceptions_leave_it_usable(
    unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor, where: str
) -> None:
    cache = apply(unet)

    def fail(*args: Any) -> None:
        raise RuntimeError("on purpose")

    hook = getattr(unet, where).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"), cache.views(**HERE):
        unet(**inputs)
    hook.remove()
    with cache.views(**HERE):
        for _ in range(2):
            assert torch.equal(unet(**inputs).sample, full)
    assert cache.last.kind == "hit"
    cache.remove()


def test_gradients_go_through_the_plain_unet(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    cache = apply(unet)
    with cache.views(**HERE):
        unet(**inputs)
        sample = inputs["sample"].clone().requires_grad_()
        with pytest.warns(RuntimeWarning, match="gradients.*no_grad"):
            output = unet(**{**inputs, "sample": sample}).sample
        assert cache.last.plain == "gradients"
        output.sum().backward()
        assert sample.grad is not None and sample.grad.abs().sum() > 0
        unet.requires_grad_(True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            assert unet(**inputs).sample.requires_grad
        with torch.no_grad():
            unet(**inputs)
        assert cache.last.kinds == ("hit",)
    assert cache.stats().bypasses == 2
    cache.remove()


def test_another_shape(unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor) -> None:
    cache = apply(unet)
    larger = build_inputs(unet, rows=2, size=(16, 8))
    expected = unet(**larger).sample
    with cache.views(**HERE):
        unet(**inputs)
        with pytest.warns(RuntimeWarning, match=r"shape.*clear\(\)"):
            assert torch.equal(unet(**larger).sample, expected)
        assert torch.equal(unet(**inputs).sample, full) and cache.last.kinds == ("hit",)
        cache.clear()
        assert len(cache.table) == 0
        for kind in ("miss", "hit"):
            assert torch.equal(unet(**larger).sample, expected) and cache.last.kinds == (kind,)
    cache.remove()


def test_another_dtype(inputs: dict[str, Any], unet: UNet2DConditionModel, full: Tensor) -> None:
    """Autocast and weights of another dtype do not meet the float32 features."""
    cache = apply(unet)
    with cache.views(**HERE):
        unet(**inputs)
        with pytest.warns(RuntimeWarning, match="autocast"), torch.autocast("cpu", torch.bfloat16):
            cast = unet(**inputs).sample
        with cache.bypass(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(unet(**inputs).sample, cast)
        assert torch.equal(unet(**inputs).sample, full) and cache.last.kinds == ("hit",)
    cache.remove()


def test_batch_that_does_not_divide(unet: UNet2DConditionModel) -> None:
    cache = apply(unet)
    inputs = build_inputs(unet, rows=3)
    expected = unet(**inputs).sample
    with cache.views(**HERE), pytest.warns(RuntimeWarning, match="groups"):
        assert torch.equal(unet(**inputs).sample, expected)
    cache.remove()


def test_inference_mode_and_back(unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor) -> None:
    cache = apply(unet)
    with cache.views(**HERE):
        with torch.inference_mode():
            unet(**inputs)
            unet(**inputs)
        with torch.no_grad():
            assert torch.equal(unet(**inputs).sample, full) and cache.last.kinds == ("hit",)
    cache.remove()


def test_nan_never_comes_back(unet: UNet2DConditionModel, inputs: dict[str, Any], full: Tensor) -> None:
    cache = apply(unet)
    broken = {**inputs, "sample": inputs["sample"].clone()}
    broken["sample"][1, 0, 0, 0] = float("nan")  # in the second row: the item's latent is the first
    with cache.views(**HERE):
        assert unet(**broken).sample.isnan().any()
        assert torch.equal(unet(**inputs).sample, full) and cache.last.kinds == ("miss",)
        assert torch.equal(unet(**inputs).sample, full) and cache.last.kinds == ("hit",)
    assert cache.stats().rejected == 1
    cache.clear()
    assert cache.stats().rejected == 1
    cache.remove()


def test_nan_weights(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    unet.mid_block.resnets[0].conv1.weight.fill_(float("nan"))
    cache = apply(unet)
    with cache.views(**HERE):
        for _ in range(3):
            assert unet(**inputs).sample.isnan().all()
    assert cache.stats().hits == 0 and cache.stats().rejected == 3
    cache.remove()


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


def test_bypasses_are_items(unet: UNet2DConditionModel) -> None:
    """Whatever the reason, each item of the batch counts."""
    inputs = build_inputs(unet, rows=6)
    cache = apply(unet)
    counts = []
    with cache.views(**HERE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hook = unet.up_blocks[3].register_forward_hook(lambda *args: None)
        unet(**inputs)
        counts.append((cache.last.plain, cache.stats().bypasses))
        hook.remove()
        unet(inputs.pop("sample").requires_grad_(), **inputs)
        counts.append((cache.last.plain, cache.stats().bypasses))
        for sample, error in ((torch.zeros(6, 4, 8, 8), TypeError), (None, TypeError)):
            with pytest.raises(error):
                unet(sample, **inputs, nonsense=1)
            counts.append((cache.last.plain, cache.stats().bypasses))
        with pytest.raises(AttributeError):
            unet(None, **inputs)
        counts.append((cache.last.plain, cache.stats().bypasses))
    assert counts == [("hooks", 3), ("gradients", 6), ("arguments", 9), ("arguments", 10), ("dtype", 11)]
    assert cache.stats().forwards == 5
    cache.remove()


def test_views_left_in_another_order(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    cache = apply(unet)
    outer, inner = cache.views(**HERE), cache.views(0.0, 180.0, 2.0)
    outer.__enter__(), inner.__enter__()
    unet(**inputs)
    outer.__exit__(None, None, None)
    unet(**inputs)
    assert cache.last.kinds == ("hit",)  # the inner one counts still
    inner.__exit__(None, None, None)
    unet(**inputs)
    assert cache.last.plain == "outside views"
    cache.remove()


def test_warnings_name_the_callers_line(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    unet.requires_grad_(True)
    cache = apply(unet)
    with cache.views(**HERE), pytest.warns(RuntimeWarning, match="gradients") as said:
        unet(**inputs)
    assert said[0].filename == __file__
    cache.remove()


def test_sample_of_another_dtype(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    """Half-precision features do not meet those stored in float32."""
    cache = apply(unet)
    half = inputs | {name: inputs[name].bfloat16() for name in ("sample", "encoder_hidden_states")}
    with cache.views(**HERE):
        unet(**inputs)
        unet.to(torch.bfloat16)
        with cache.bypass():
            expected = unet(**half).sample
        with pytest.warns(RuntimeWarning, match="dtype"):
            assert torch.equal(unet(**half).sample, expected) and cache.last.plain == "shape"
        cache.clear()
        for kind in ("miss", "hit"):
            assert torch.equal(unet(**half).sample, expected) and cache.last.kind == kind
    cache.remove()
