"""Folders of small random-weight models in the places that other projects load theirs from: ``from_pretrained`` takes a
folder of the current directory before it asks a hub."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

WIDTH = 16  # of text and picture embeddings
STABLE_DIFFUSION = "stabilityai/stable-diffusion-2-1-base"
SCHEDULE: dict[str, Any] = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
    steps_offset=1,
)  # fmt: skip


def write_stable_diffusion(name: str) -> None:
    """A pipeline with U-Net (12 positions), VAE (8 pixels a latent), tokenizer and text encoder."""
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline(
        **_text(Path(name)), vae=_vae(), unet=_unet(4), scheduler=_scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(name)  # fmt: skip


def write_dreamgaussian_zero123() -> None:
    """Stable-Zero123 and Zero123, for diffusers."""
    for name in ("stable-zero123-diffusers", "zero123-xl-diffusers"):
        write_zero123(f"ashawkey/{name}", importlib.import_module("zero123"))


def write_zero123(name: str, module: Any) -> None:
    """Of the pipeline class that a system brings in ``module``."""
    torch.manual_seed(0)
    module.Zero123Pipeline(
        vae=_vae(), image_encoder=_picture_encoder("CLIPVisionModelWithProjection", WIDTH), unet=_unet(8),
        scheduler=_scheduler(), safety_checker=None, feature_extractor=_image_processor(),
        clip_camera_projection=module.CLIPCameraProjection(WIDTH), requires_safety_checker=False,
    ).save_pretrained(name)  # fmt: skip


def write_multi_view_pipelines() -> None:
    """What the two scripts of mvdream_diffusers load: MVDream, and ImageDream with a picture encoder."""
    module, unet = importlib.import_module("pipeline_mvdream"), importlib.import_module("mv_unet").MultiViewUNetModel
    options: dict[str, Any] = dict(
        image_size=32, in_channels=4, out_channels=4, model_channels=32, channel_mult=[1, 1], num_res_blocks=2,
        attention_resolutions=[2], num_head_channels=16, context_dim=WIDTH, camera_dim=16,
    )  # fmt: skip
    for name, ip_dim in (("mvdream-sd2.1-diffusers", 0), ("imagedream-ipmv-diffusers", 16)):
        folder = Path("ashawkey") / name
        pipe = module.MVDreamPipeline(
            **_text(folder), vae=_vae(), unet=unet(**options, ip_dim=ip_dim), scheduler=_scheduler(),
            feature_extractor=_image_processor() if ip_dim else None,
            image_encoder=_picture_encoder("CLIPVisionModel", 1280) if ip_dim else None,
        )  # fmt: skip
        pipe.unet.register_to_config(**options, ip_dim=ip_dim)
        for weight in pipe.unet.parameters():  # its last layer starts as zeros
            torch.nn.init.normal_(weight, std=0.05)
        pipe.save_pretrained(folder)


def _text(folder: Path) -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=WIDTH,
        vocab_size=600, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    return {"text_encoder": CLIPTextModel(config), "tokenizer": _tokenizer(folder)}


def _picture_encoder(kind: str, width: int) -> Any:
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=width,
        image_size=32, patch_size=16,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULE)


def _unet(channels: int) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64, in_channels=channels, block_out_channels=(8, 8, 8, 8), norm_num_groups=4,
        cross_attention_dim=WIDTH, attention_head_dim=2,
        # attention at 64x64 would take nearly all of the time
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def _tokenizer(folder: Path) -> Any:
    """CLIP's, of single bytes: 256, the same at a word's end, and two marks."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    return tokenizer


def _image_processor() -> Any:
    from transformers import CLIPImageProcessorPil  # the other needs torchvision

    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
