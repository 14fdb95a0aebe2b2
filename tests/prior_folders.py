"""Pipeline folders as diffusers saves them: the public topologies, narrow, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = "abcdefghijklmnopqrstuvwxyz0123456789,.'-"
LENGTH = 32  # tokens; a character each here, so long enough for a short prompt and its view
SIDE, SCALE = 8, 2  # latent pixels, image pixels a latent pixel


def write_unet(folder: Path, **overrides) -> None:
    """Stable Diffusion's four levels with two resnets a block: 12 up-resnets, as in SD 1.5, SD 2.1 and Zero123."""
    from diffusers import UNet2DConditionModel

    config = dict(
        sample_size=SIDE, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(8, 16, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        norm_num_groups=4, attention_head_dim=4, cross_attention_dim=16,
    )  # fmt: skip
    UNet2DConditionModel(**{**config, **overrides}).save_pretrained(folder / "unet")


def write_vae(folder: Path, **overrides) -> None:
    """A KL-VAE of two levels instead of four."""
    from diffusers import AutoencoderKL

    config = dict(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, sample_size=SIDE * SCALE, scaling_factor=0.18215,
    )  # fmt: skip
    AutoencoderKL(**{**config, **overrides}).save_pretrained(folder / "vae")


def write_tiny_encoder(folder: Path, **overrides) -> Path:
    """TAESD's class at the latents of :func:`write_vae`."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(3)
    config = dict(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    )  # fmt: skip
    AutoencoderTiny(**{**config, **overrides}).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """CLIP's byte-pair tokenizer without merges: every character is a token."""
    where = folder / "tokenizer"
    where.mkdir(parents=True)
    tokens = [*WORDS, *(f"{c}</w>" for c in WORDS), "<|startoftext|>", "<|endoftext|>"]
    (where / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (where / "merges.txt").write_text("#version: 0.2\n")
    special = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    config = dict(tokenizer_class="CLIPTokenizer", model_max_length=LENGTH, pad_token="<|endoftext|>", **special)
    (where / "tokenizer_config.json").write_text(json.dumps(config))


def write_scheduler(folder: Path, kind: str, **config) -> None:
    """Stable Diffusion's schedule, under a scheduler class that pipelines really name."""
    from diffusers import DDIMScheduler, PNDMScheduler

    cls = PNDMScheduler if kind == "epsilon" else DDIMScheduler
    cls(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind, **config
    ).save_pretrained(folder / "scheduler")


def write_text_encoder(folder: Path, width: int = 16) -> None:
    """CLIP's text tower, two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=2 * len(WORDS) + 2, hidden_size=width, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, eos_token_id=2 * len(WORDS) + 1,
        bos_token_id=2 * len(WORDS), pad_token_id=2 * len(WORDS) + 1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def write_index(folder: Path, name: str, **parts: str) -> None:
    """``model_index.json``."""
    index = {"_class_name": name, "_diffusers_version": "0.35.0"}
    (folder / "model_index.json").write_text(json.dumps(index | {k: v.split(".") for k, v in parts.items()}))


def write_stable_diffusion(folder: Path, version: str) -> Path:
    """``version`` "1.5": epsilon, convolutions around attention; "2.1": v-prediction, linear projections."""
    torch.manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    newer = version == "2.1"
    heads = dict(attention_head_dim=(2, 4, 4, 4), use_linear_projection=True) if newer else {}
    write_unet(folder, **heads)
    write_vae(folder)
    write_tokenizer(folder)
    write_text_encoder(folder)
    write_scheduler(folder, "v_prediction" if newer else "epsilon")
    write_index(
        folder, "StableDiffusionPipeline", unet="diffusers.UNet2DConditionModel", vae="diffusers.AutoencoderKL",
        text_encoder="transformers.CLIPTextModel", tokenizer="transformers.CLIPTokenizer",
    )  # fmt: skip
    return folder


def write_zero123(folder: Path, projection: str = "clip_camera_projection") -> Path:
    """Eight input channels, CLIP's vision tower, and the map from (embedding, camera) to one token."""
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(2)
    folder.mkdir(parents=True, exist_ok=True)
    write_unet(folder, in_channels=8)
    write_vae(folder)
    write_scheduler(folder, "epsilon")
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    key = "proj" if projection == "clip_camera_projection" else "projection"
    linear = torch.nn.Linear(16, 16)
    (folder / projection).mkdir()
    (folder / projection / "config.json").write_text(json.dumps({"_class_name": "CLIPCameraProjection"}))
    tensors = {f"{key}.weight": linear.weight.detach(), f"{key}.bias": linear.bias.detach()}
    save_file(tensors, folder / projection / "diffusion_pytorch_model.safetensors")
    write_index(
        folder, "Zero123Pipeline", unet="diffusers.UNet2DConditionModel", vae="diffusers.AutoencoderKL",
        image_encoder="transformers.CLIPVisionModelWithProjection",
    )  # fmt: skip
    return folder
