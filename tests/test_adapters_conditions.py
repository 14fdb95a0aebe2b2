"""Conditions never mix: wherever features of another condition would give a wrong answer, they are not served.

What the cache notices by itself (weights, LoRA, attention processors, IP-Adapter scale, FreeU, which inputs there are)
is tested in test_conditions_noticed.py, test_hook_conditions.py and test_hook_watch.py. Here: what
``views(condition=...)`` tells apart, for each kind of condition; that each such test could fail is shown by the wrong
answer one gets under one id for two.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from unet_shapes import build_inputs, build_residuals, build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d

HERE = {"elevation": 0.0, "azimuth": 0.0, "radius": 2.0, "timestep": 500}
Variants = dict[str, dict[str, Any]]


def apply(unet: UNet2DConditionModel, **options: Any) -> Hash3DCache:
    return apply_hash3d(unet, Hash3DConfig(**{"eta": 1.0, "position": 3, "capacity": 24, **options}))


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts() -> tuple[UNet2DConditionModel, Variants]:
    unet = build_unet("sd15")
    inputs = build_inputs(unet, rows=2)
    return unet, {
        name: inputs | {"encoder_hidden_states": random(2, 7, 12, seed=seed)} for seed, name in enumerate("ab")
    }


def pictures() -> tuple[UNet2DConditionModel, Variants]:
    """Zero123's: the picture's latent lies behind the noisy one."""
    unet = build_unet("zero123")
    inputs = build_inputs(unet, rows=2)
    noisy = inputs["sample"][:, :4]
    pictures = {name: random(2, 4, 8, 8, seed=seed) for seed, name in enumerate("ab")}
    return unet, {name: inputs | {"sample": torch.cat([noisy, picture], 1)} for name, picture in pictures.items()}


def controls() -> tuple[UNet2DConditionModel, Variants]:
    unet = build_unet("sd15")
    inputs = build_inputs(unet, rows=2)
    return unet, {name: inputs | build_residuals(unet, inputs, seed=seed) for seed, name in enumerate("ab")}


def image_prompts() -> tuple[UNet2DConditionModel, Variants]:
    """IP-Adapter's embeddings, projected to tokens as ``load_ip_adapter`` sets it up, with its attention processors."""
    unet = build_unet("sd15")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        projection = ImageProjection(image_embed_dim=5, cross_attention_dim=12, num_image_text_embeds=2)
        unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
        unet.config.encoder_hid_dim_type = "ip_image_proj"
        unet.set_attn_processor({name: _image_processor(unet, name) for name in unet.attn_processors})
    unet.eval().requires_grad_(False)
    inputs = build_inputs(unet, rows=2)
    images = {name: {"image_embeds": [random(2, 1, 5, seed=seed)]} for seed, name in enumerate("ab")}
    return unet, {name: inputs | {"added_cond_kwargs": image} for name, image in images.items()}


def _image_processor(unet: UNet2DConditionModel, name: str) -> Any:
    if name.endswith("attn1.processor"):
        return AttnProcessor()
    attention = unet.get_submodule(name.removesuffix(".processor"))
    size = attention.to_q.out_features
    return IPAdapterAttnProcessor(hidden_size=size, cross_attention_dim=12, num_tokens=(2,))


def classes() -> tuple[UNet2DConditionModel, Variants]:
    unet = build_unet("uneven")
    inputs = build_inputs(unet, rows=2)
    return unet, {name: inputs | {"class_labels": torch.tensor([label, 0])} for label, name in ((1, "a"), (2, "b"))}


def guidance_embeddings() -> tuple[UNet2DConditionModel, Variants]:
    """LCM's ``timestep_cond``."""
    unet = build_unet("uneven")
    inputs = build_inputs(unet, rows=2)
    return unet, {name: inputs | {"timestep_cond": 3 * random(2, 5, seed=seed)} for seed, name in enumerate("ab")}


def added_conditions() -> tuple[UNet2DConditionModel, Variants]:
    """SDXL's pooled text and sizes."""
    unet = build_unet("sdxl")
    inputs = build_inputs(unet, rows=2)
    added = {
        name: {"text_embeds": random(2, 10, seed=seed), "time_ids": 100 * random(2, 6, seed=seed)}
        for seed, name in enumerate("ab")
    }
    return unet, {name: inputs | {"added_cond_kwargs": values} for name, values in added.items()}


def attention_arguments() -> tuple[UNet2DConditionModel, Variants]:
    """Tensors that only an attention processor knows what to do with."""
    unet = build_unet("sd15")
    unet.set_attn_processor(_ScaledBy())
    inputs = build_inputs(unet, rows=2)
    factors = {"a": 1.0, "b": -2.0}
    return unet, {
        name: inputs | {"cross_attention_kwargs": {"factor": torch.tensor(value)}} for name, value in factors.items()
    }


class _ScaledBy(AttnProcessor):
    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        factor: Any = 1.0,
    ) -> torch.Tensor:
        return factor * super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)


def masks() -> tuple[UNet2DConditionModel, Variants]:
    """Which tokens of the text count."""
    unet = build_unet("sd15")
    inputs = build_inputs(unet, rows=2)
    kept = {"a": [1.0, 1, 1, 1, 1, 1, 1], "b": [1.0, 0, 0, 0, 0, 0, 0]}
    return unet, {name: inputs | {"encoder_attention_mask": torch.tensor([mask] * 2)} for name, mask in kept.items()}


KINDS = {
    kind.__name__: kind
    for kind in (
        prompts, pictures, controls, image_prompts, classes, guidance_embeddings, added_conditions, attention_arguments,
        masks,
    )
}  # fmt: skip


@pytest.mark.parametrize(("mode", "room"), [("feature", 1), ("feature", 2), ("noise", 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stale_hit_would_be_wrong_and_does_not_happen(kind: str, room: int, mode: str) -> None:
    unet, variants = KINDS[kind]()
    expected = {name: unet(**variant).sample for name, variant in variants.items()}
    cache = apply(unet, mode=mode, max_conditions=room)
    kinds = []
    for name in "abbaab":
        with cache.views(**HERE, condition=(kind, name)):
            assert torch.equal(unet(**variants[name]).sample, expected[name])
        kinds.append(cache.last.kind)
    assert "".join(kind[0] for kind in kinds) == {1: "mmhmhm", 2: "mmhhhh"}[room]
    cache.clear()
    with cache.views(**HERE, condition="one id for both"):
        unet(**variants["a"])
        stale = unet(**variants["b"]).sample
    assert cache.last.kind == "hit" and (stale - expected["b"]).abs().max() > 1e-4
    cache.remove()


def test_scale_of_an_image_prompt_is_noticed() -> None:
    """``set_ip_adapter_scale`` writes to the processors."""
    unet, variants = image_prompts()
    cache = apply(unet)
    kinds = []
    for scale in (1.0, 1.0, 0.3, 0.3):
        for processor in unet.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [scale]
        with cache.bypass():
            expected = unet(**variants["a"]).sample
        with cache.views(**HERE):
            assert torch.equal(unet(**variants["a"]).sample, expected)
        kinds.append(cache.last.kind)
    assert kinds == ["miss", "hit"] * 2
    cache.remove()


def test_objects_and_prompts_share_a_cache() -> None:
    """Three objects of two prompts each, four views a batch, in turn: every answer is the plain model's, and each
    comes back from the cache once its own condition has been seen."""
    unet = build_unet("sd15")
    inputs = build_inputs(unet, rows=8)
    ids = [(thing, prompt) for thing in "xyz" for prompt in "pq"]
    text = {name: random(1, 7, 12, seed=seed) for seed, name in enumerate(ids)}
    cache = apply(unet, max_conditions=len(ids), capacity=16 * len(ids))
    kinds = []
    for order in ((0, 1, 2, 3), (4, 5, 4, 5), (3, 2, 1, 0)):
        conditions = [ids[place] for place in order]
        rows = torch.cat([text[name] for name in conditions] * 2)
        call = inputs | {"encoder_hidden_states": rows}
        with cache.bypass():
            expected = unet(**call).sample
        with cache.views(0.0, [0.0, 90.0, 180.0, 270.0], 2.0, timestep=500, condition=conditions):
            torch.testing.assert_close(unet(**call).sample, expected, rtol=0, atol=2e-6)
        kinds.append(cache.last.kinds)
    assert kinds == [("miss",) * 4] * 3  # the last batch sees known conditions, from other sides
    with cache.views(0.0, [0.0, 90.0, 180.0, 270.0], 2.0, timestep=500, condition=conditions):
        torch.testing.assert_close(unet(**call).sample, expected, rtol=0, atol=2e-6)
    assert cache.last.kinds == ("hit",) * 4
    cache.remove()


def test_prompts_that_follow_the_view() -> None:
    """Front and side text at two azimuths of one cell: the direction belongs into the id of each item."""
    unet = build_unet("sd15")
    text = {"front": random(1, 7, 12, seed=1), "side": random(1, 7, 12, seed=2)}
    inputs = build_inputs(unet, rows=4)
    cache = apply(unet, max_conditions=2)
    for directions, kinds in (
        (("front", "front"), ("miss", "miss")),
        (("front", "side"), ("hit", "miss")),
        (("side", "front"), ("miss", "hit")),
        (("side", "side"), ("hit", "hit")),
    ):
        call = inputs | {"encoder_hidden_states": torch.cat([text[name] for name in directions] * 2)}
        with cache.bypass():
            expected = unet(**call).sample
        with cache.views(0.0, [41.0, 131.0], 2.0, timestep=500, condition=[("a cat", name) for name in directions]):
            torch.testing.assert_close(unet(**call).sample, expected, rtol=0, atol=2e-6)
        assert cache.last.kinds == kinds
    cache.remove()


def test_guidance_comes_and_goes() -> None:
    """Without guidance there is one row where two are an item: it does not divide, and runs plain."""
    unet = build_unet("sd15")
    both, one = build_inputs(unet, rows=2), build_inputs(unet, rows=1, seed=4)
    expected = unet(**one).sample
    cache = apply(unet)
    with cache.views(**HERE):
        unet(**both)
        with pytest.warns(RuntimeWarning, match="groups"):
            assert torch.equal(unet(**one).sample, expected) and cache.last.plain == "rows"
        unet(**both)
    assert cache.last.kind == "hit"
    cache.remove()
