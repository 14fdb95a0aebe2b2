"""Putting the cache on and taking it off, its contexts, and the calls it must leave to the plain U-Net."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from unet_shapes import build_inputs, build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d

HERE = {"elevation": 0.0, "azimuth": 0.0, "radius": 2.0}


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


def test_a_handle_says_what_it_is(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> None:
    cache = apply(unet, eta=0.5, position=3)
    with cache.views(**HERE):
        unet(**inputs)
    served = cache.served()
    assert sum(served.values()) == 1
    counts = f"{served['hits']} hits, {served['misses']} misses, {served['bypasses']} bypasses"
    assert str(cache) == repr(cache) == f"Hash3DCache(at position 3, eta 0.5: {counts})"
    cache.remove()
    assert repr(cache) == f"Hash3DCache(at position 3, eta 0.5: {counts})"
    noise = apply(unet, mode="noise")
    assert "of the output, eta 1:" in repr(noise)
    noise.remove()
    every = apply_hash3d(unet, Hash3DConfig.every(4, position=2))
    assert "at position 2, every 4 steps: 0 hits" in repr(every)
    every.remove()


def test_twice_applied(unet: UNet2DConditionModel) -> None:
    cache = apply(unet)
    with pytest.raises(ValueError, match=r"without a cache.*remove\(\)"):
        apply(unet)
    cache.remove()
    apply(unet).remove()


def test_what_cannot_be_cut(unet: UNet2DConditionModel) -> None:
    with pytest.raises(TypeError, match=r"UNet2DConditionModel.*got 'Linear'.*pass the plain model"):
        apply(torch.nn.Linear(2, 2))
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
