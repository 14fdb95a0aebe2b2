"""The cache under ldm's U-Net, called directly and through ``apply_model``, on stand-ins of the same structure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ldm_shapes import Attention, LatentDiffusion, LdmUNet, build, build_call
from torch import Tensor, nn

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d
from hash3d_cuda.unet import find_adapter

POSITIONS = range(1, 10)
KINDS = ("ldm", "ldm-classes")


def apply(model: nn.Module, **options: Any) -> Hash3DCache:
    return apply_hash3d(model, Hash3DConfig(**{"eta": 1.0, "position": 2, "capacity": 16, **options}))


def poses(*azimuths: float) -> dict[str, Any]:
    return {"elevation": 15.0, "azimuth": list(azimuths), "radius": 2.0, "timestep": 500}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
def test_parity_at_every_position(kind: str, position: int) -> None:
    model, call = build(kind), build_call(kind, rows=3)
    adapter = find_adapter(model)
    assert adapter.count_positions() == 9 and adapter.latent_channels == 4
    split = adapter.split(position)
    hidden, skips, conditioning = split.head(adapter.bind((), call))
    feature = split.deep(hidden, conditioning)
    assert len(skips.skips) == position
    assert torch.equal(split.tail(feature, skips, conditioning), model(**call))


@pytest.mark.parametrize("position", POSITIONS)
def test_hits_and_partial_batches(position: int) -> None:
    """Misses, then a batch whose middle item has moved, then hits of all: the answer is the plain model's."""
    model, call = build("ldm"), build_call("ldm", rows=6)
    full = model(**call)
    cache = apply(model, position=position)
    for azimuths, kinds in (((0, 100, 200), "mmm"), ((0, 300, 200), "hmh"), ((0, 100, 200), "hhh")):
        with cache.views(**poses(*azimuths)):
            found = model(**call)
        assert [kind[0] for kind in cache.last.kinds] == list(kinds)
        if "h" in kinds and "m" in kinds:
            torch.testing.assert_close(found, full, rtol=0, atol=2e-6)
            assert torch.equal(found[[0, 2, 3, 5]], full[[0, 2, 3, 5]])
        else:
            assert torch.equal(found, full)
    assert cache.stats().rows_saved == 10
    cache.remove()


def test_a_hit_runs_the_shallow_blocks_only() -> None:
    model, call = build("ldm"), build_call("ldm", rows=2)
    ran: list[str] = []
    for name, module in model.named_modules():
        if name.count(".") == (0 if name == "middle_block" else 1) and "block" in name:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    cache = apply(model, position=2)
    with cache.views(**poses(0)):
        model(**call)
        ran.clear()
        model(**call)
    assert cache.last.kind == "hit"
    assert ran == ["input_blocks.0", "input_blocks.1", "output_blocks.7", "output_blocks.8"]
    cache.remove()


@pytest.mark.parametrize("items", [1, 2, 3, 4])
@pytest.mark.parametrize(("groups", "rows"), [(2, "group-major"), (2, "item-major"), (4, "perp-neg")])
def test_row_layouts(items: int, groups: int, rows: str) -> None:
    """[uncond, cond] of Zero123, and perp-neg's four: item 0 stays, the others move."""
    model, call = build("ldm"), build_call("ldm", rows=items * groups)
    full = model(**call)
    cache = apply(model, groups=groups, rows=rows)
    for step in (0, 90):
        with cache.views(**poses(*(item and item * 20 + step for item in range(items)))):
            found = model(**call)
        torch.testing.assert_close(found, full, rtol=0, atol=2e-6)
    assert cache.last.kinds == ("hit",) + ("miss",) * (items - 1)
    cache.remove()


def test_through_apply_model() -> None:
    diffusion = LatentDiffusion(build("ldm"))
    cond = {"c_concat": [torch.ones(2, 4, 8, 8)], "c_crossattn": [torch.ones(2, 3, 6)]}
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([400, 400])
    expected = diffusion.apply_model(x, t, cond)
    with pytest.raises(TypeError, match=r"input_blocks.*LatentDiffusion.*its \.model\.diffusion_model"):
        apply(diffusion)
    cache = apply(diffusion.model.diffusion_model)
    for kind in ("miss", "hit"):
        with cache.views(elevation=0, azimuth=0, radius=2):  # t is the call's
            assert torch.equal(diffusion.apply_model(x, t, cond), expected) and cache.last.kind == kind
    assert cache.table.options.latent_shape == (4, 8, 8)  # not the picture's latent behind it
    cache.remove()


def test_remove_leaves_no_trace() -> None:
    model, call = build("ldm"), build_call("ldm", rows=2)
    before, names, full = dict(model.state_dict()), set(vars(model)), model(**call)
    cache = apply(model)
    with cache.views(**poses(0)):
        model(**call)
    cache.remove()
    assert set(vars(model)) == names and torch.equal(model(**call), full)
    assert all(value is model.state_dict()[name] or torch.equal(value, before[name]) for name, value in before.items())


@pytest.mark.parametrize("mode", ["feature", "noise"])
def test_weights_and_inputs_are_watched(mode: str) -> None:
    model, call = build("ldm"), build_call("ldm", rows=2)
    cache = apply(model, mode=mode)
    kinds = []
    with cache.views(**poses(0)):
        for change in ("none", "none", "weight", "none", "tokens", "none"):
            if change == "weight":
                model.middle_block[0].shift.weight.mul_(1.5)
            if change == "tokens":
                call["context"] = torch.ones(2, 4, 6)
            with cache.bypass():
                expected = model(**call)
            assert torch.equal(model(**call), expected)
            kinds.append(cache.last.kind)
    assert kinds == ["miss", "hit"] * 3
    cache.remove()


class Controlled(LdmUNet):
    """A forward with residuals of a ControlNet between the blocks: under a name that is not known, or without one."""

    strength: float = 0.0

    def forward(self, x: Tensor, timesteps: Any = None, context: Any = None, control: Any = None) -> Tensor:
        emb, hs, h = self.embed(timesteps), [], x
        for module in self.input_blocks:
            h = module(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context) + self.strength + (0 if control is None else control)
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1), emb, context)
        return self.out(h)


@pytest.mark.parametrize(("control", "strength"), [(0.5, 0.0), (None, 0.5)])
def test_what_acts_between_the_blocks_runs_plain(control: float | None, strength: float) -> None:
    """By its argument's name, or, where there is none, by the comparison at the first call."""
    model, call = build("ldm"), build_call("ldm", rows=2)
    model.__class__ = Controlled
    model.strength = strength
    call["control"] = None if control is None else torch.tensor(control)
    expected = model(**call)
    cache = apply(model)
    for _ in range(2):
        with cache.views(**poses(0)):
            assert torch.equal(model(**call), expected)
    assert cache.last.plain == ("wiring" if control is None else "arguments")
    cache.remove()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, call = build("ldm").to(dtype), build_call("ldm", rows=2)
    model.dtype = dtype
    model.time_embed.float()
    embed = model.embed
    model.embed = lambda timesteps: embed(timesteps).to(dtype)
    call["context"] = call["context"].to(dtype)
    call["x"] = call["x"].to(dtype)
    expected = model(**call)
    cache = apply(model)
    for kind in ("miss", "hit"):
        with cache.views(**poses(0)):
            assert torch.equal(model(**call), expected) and cache.last.kind == kind
    assert cache.table.options.feature_dtype is dtype
    cache.remove()


def test_numbers_that_are_not_finite() -> None:
    """Nothing can be compared with them; they are answered as by the model, and the next call is compared."""
    model, call = build("ldm"), build_call("ldm", rows=2)
    expected = model(**call)
    cache = apply(model)
    with cache.views(**poses(0)):
        assert model(**call | {"x": torch.full((2, 8, 8, 8), torch.nan)}).isnan().all()
        for kind in ("miss", "hit"):
            assert torch.equal(model(**call), expected) and cache.last.kind == kind
    assert cache.stats().rejected == 1
    cache.remove()


def test_no_separate_compilation() -> None:
    with pytest.raises(ValueError, match=r"compile: expected False for a LdmUNet"):
        apply(build("ldm"), compile=True)


def test_patched_attention_is_noticed() -> None:
    """What prompt-to-prompt and token merging do to ldm's models: another forward on an attention module."""
    model, call = build("ldm"), build_call("ldm", rows=2)
    cache = apply(model)
    attention = [module for module in model.modules() if isinstance(module, Attention)][-2]
    own, kinds = attention.forward, []
    for patch in (None, lambda *args: 2.0 * own(*args), lambda *args: 3.0 * own(*args), None):
        if patch is None:
            vars(attention).pop("forward", None)
        else:
            attention.forward = patch
        for _ in range(2):
            with cache.views(**poses(0)):
                found = model(**call)
            kinds.append(cache.last.kinds[0])
            with cache.bypass():
                assert torch.equal(found, model(**call))
    assert kinds[:6] == ["miss", "hit"] * 3


def test_an_output_of_zeros_proves_nothing() -> None:
    """A model as it is made, before its weights are loaded: that the split agrees then does not count later."""
    model, call = build("ldm"), build_call("ldm", rows=2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.__class__, model.strength = Controlled, 0.5
    with torch.no_grad():
        for parameter in model.out.parameters():
            parameter.zero_()
    cache = apply(model)
    for answer in (None, "wiring"):
        with cache.views(**poses(0)):
            found = model(**call)
        assert cache.last.plain == answer
        with cache.bypass():
            assert torch.equal(found, model(**call))
        model.load_state_dict(weights)


def test_the_comparison_leaves_the_random_state_alone() -> None:
    model, call = build("ldm"), build_call("ldm", rows=2)
    model.middle_block.append(nn.Dropout(0.5))
    model.train()
    cache = apply(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = model(**call)
        torch.manual_seed(3)
        with cache.views(**poses(0)):
            assert torch.equal(model(**call), expected)
    assert cache.last.kinds == ("miss",), "and it agrees"
