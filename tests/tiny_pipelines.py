"""diffusers pipelines around narrow U-Nets with random weights: no text encoder, no VAE, latents in and out."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor
from unet_shapes import CROSS_DOWN, CROSS_UP, PLAIN_DOWN, PLAIN_UP, build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d

_NO_PARTS: dict[str, Any] = dict(vae=None, text_encoder=None, tokenizer=None)
_SCHEDULE: dict[str, Any] = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
_AS_RELEASED: dict[str, dict[str, Any]] = {  # with Stable Diffusion
    "DDIMScheduler": dict(clip_sample=False, set_alpha_to_one=False),
    "PNDMScheduler": dict(skip_prk_steps=True, set_alpha_to_one=False),
}
_UNCHECKED: dict[str, Any] = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


SMALL: dict[str, Any] = dict(  # two levels: 6 positions
    block_out_channels=(8, 16), down_block_types=(CROSS_DOWN, PLAIN_DOWN), up_block_types=(PLAIN_UP, CROSS_UP)
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build_pipeline(kind: str, scheduler: str = "DDIMScheduler") -> Any:
    """``kind``: text, image, control or xl."""
    options = {**_SCHEDULE, **_AS_RELEASED.get(scheduler, {})}
    parts = {**_NO_PARTS, "scheduler": getattr(diffusers, scheduler)(**options)}
    small = {"transformer_layers_per_block": 1} if kind == "xl" else SMALL
    unet = build_unet("sdxl" if kind == "xl" else "sd15", **small)
    if kind == "xl":
        none = dict(text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
        pipe = diffusers.StableDiffusionXLPipeline(unet=unet, **parts, **none)
    elif kind == "control":
        pipe = diffusers.StableDiffusionControlNetPipeline(
            unet=unet, controlnet=_build_controlnet(unet), **parts, **_UNCHECKED
        )
    else:
        name = {"text": "StableDiffusionPipeline", "image": "StableDiffusionImg2ImgPipeline"}[kind]
        pipe = getattr(diffusers, name)(unet=unet, **parts, **_UNCHECKED)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _build_controlnet(unet: Any) -> Any:
    """One whose outputs are not zero, as those of an untrained one are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = diffusers.ControlNetModel.from_unet(unet)
        for conv in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            torch.nn.init.normal_(conv.weight, std=0.5)
    return net.eval().requires_grad_(False)


def draw(pipe: Any, prompt: int = 0, seed: int = 0, prompts: int = 1, **options: Any) -> Tensor:
    """What a call of the pipeline gives, float ``[N, 4, h, w]``. ``prompt`` and ``seed``: which prompts and noise."""
    tokens = normal(prompts, 7, 12, seed=prompt)
    given: dict[str, Any] = dict(prompt_embeds=tokens, negative_prompt_embeds=torch.zeros_like(tokens))
    given |= dict(num_inference_steps=6, output_type="latent", generator=torch.Generator().manual_seed(seed))
    name = type(pipe).__name__
    if "XL" in name:
        pooled = normal(prompts, 10, seed=prompt + 1)
        given |= dict(pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=torch.zeros_like(pooled))
    if "Img2Img" in name:
        given |= dict(image=normal(prompts, 4, 8, 8, seed=3), strength=0.6, num_inference_steps=8)
    if "ControlNet" in name:
        given |= dict(image=torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4)))
    return pipe(**given | options).images


def apply_every(pipe: Any, interval: int = 3, **options: Any) -> Hash3DCache:
    """Under the pipeline's U-Net."""
    return apply_hash3d(pipe.unet, Hash3DConfig.every(interval, **options))


def watched(cache: Hash3DCache) -> list[str]:
    """Fills up with what becomes of each forward from now on."""
    kinds: list[str] = []
    run = cache._hooked.run_cached

    def noting(*args: Any) -> Any:
        output = run(*args)
        kinds.append(cache.last.kind)
        return output

    cache._hooked.run_cached = noting  # type: ignore[method-assign]
    return kinds
