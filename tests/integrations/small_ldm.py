"""Small random-weight models of ldm where other projects load theirs from: threestudio, stable-dreamfusion, MVDream and
ImageDream. Their own classes make them, from their own configurations made narrow."""

from __future__ import annotations

import importlib
import zlib
from pathlib import Path
from typing import Any

import torch
from small_weights import WIDTH, write_zero123


def write_threestudio_zero123() -> None:
    """Zero123 and Stable-Zero123 for ldm, and one for diffusers."""
    config = Path("load/zero123/sd-objaverse-finetune-c_concat-256.yaml")
    _shrink(config)
    instantiate = importlib.import_module("extern.ldm_zero123.util").instantiate_from_config
    for name in ("zero123-xl.ckpt", "stable_zero123.ckpt"):
        _write_checkpoint(config, config.parent / name, instantiate)
    write_zero123("bennyguo/zero123-diffusers", importlib.import_module("extern.zero123"))


def write_fusion_zero123() -> None:
    """Zero123 for ldm."""
    config = Path("pretrained/zero123/sd-objaverse-finetune-c_concat-256.yaml")
    _shrink(config)
    instantiate = importlib.import_module("ldm.util").instantiate_from_config
    _write_checkpoint(config, config.parent / "zero123-xl.ckpt", instantiate)


def write_multi_view(package: str) -> None:
    """MVDream or ImageDream, whose ``build_model`` asks the hub for the first of its list."""
    from omegaconf import OmegaConf

    zoo = importlib.import_module(f"{package}.model_zoo")
    first = next(iter(zoo.PRETRAINED_MODELS.values()))
    path = Path(zoo.get_config_file(first["config"]))
    config = _shrink(path, num_head_channels=16, context_dim=WIDTH)
    words = "clip_config" if "clip_config" in config.model.params else "cond_stage_config"
    config.model.params[words] = {"target": "small_ldm.Words"}
    OmegaConf.save(config, path)
    Path(first["repo_id"]).mkdir(parents=True)
    torch.save(_made(path, zoo.instantiate_from_config).state_dict(), Path(first["repo_id"]) / first["filename"])


def _shrink(path: Path, **unet: Any) -> Any:
    """Makes a configuration of ldm that of a narrow model, and returns its parameters; the width of its conditions
    stays, unless the options of the U-Net say otherwise."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(path)
    params = config.model.params
    params.unet_config.params.update(
        model_channels=32, channel_mult=[1, 1], attention_resolutions=[2], num_res_blocks=2, **unet
    )
    encoder = params.first_stage_config if "first_stage_config" in params else params.vae_config
    encoder.params.ddconfig.update(ch=32, ch_mult=[1, 1, 1, 1], num_res_blocks=1)
    OmegaConf.save(config, path)
    return config


def _made(config: Path, instantiate: Any) -> Any:
    """``instantiate(config.model)`` with weights of which none is zero."""
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    model = instantiate(OmegaConf.load(config).model)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return model


def _write_checkpoint(config: Path, path: Path, instantiate: Any) -> None:
    """As Lightning saves them."""
    model = _made(config, instantiate)
    if model.use_ema:  # what is loaded in the end
        model.model_ema(model.model)
    torch.save({"state_dict": model.state_dict(), "global_step": 0}, path)


class Words(torch.nn.Module):
    """Stands for open_clip: each prompt, and any picture, has numbers of its own."""

    def forward(self, prompts: list[str]) -> torch.Tensor:
        drawn = [torch.Generator().manual_seed(zlib.crc32(prompt.encode())) for prompt in prompts]
        return torch.stack([torch.randn(7, WIDTH, generator=generator) for generator in drawn])

    def forward_image(self, image: Any) -> torch.Tensor:
        return torch.randn(1, 5, 1280, generator=torch.Generator().manual_seed(sum(image.tobytes())))
