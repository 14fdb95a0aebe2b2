"""U-Net configurations, public ones and the shipped prior's, as far as they differ from diffusers' defaults: enough to
build one without weights."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..checks import fail
from ..prior.model import POSE_TOKENS, UNET_CONFIG, WHAT_TOKENS

_SD = dict(block_out_channels=(320, 640, 1280, 1280), layers_per_block=2)
_SD21 = dict(**_SD, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
_SDXL = dict(
    block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
    addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip


@dataclass(frozen=True)
class UNetConfig:
    """One U-Net.

    Attributes:
        label: as people write it.
        values: keyword arguments of diffusers' ``UNet2DConditionModel``.
        latent_size: side of the latents it was trained on.
        tokens: length of the context.
    """

    label: str
    values: dict[str, Any]
    latent_size: int
    tokens: int = 77

    @property
    def positions(self) -> int:
        """At how many positions it can be cut: its up-resnets."""
        return len(self.values["block_out_channels"]) * (self.values["layers_per_block"] + 1)


UNETS = MappingProxyType(
    {
        "sd15": UNetConfig("SD 1.5", dict(**_SD, cross_attention_dim=768, attention_head_dim=8), 64),
        "sd21": UNetConfig("SD 2.1", _SD21, 64),  # the base model, 512 pixels
        "sd21-768": UNetConfig("SD 2.1, 768 pixels", _SD21, 96),
        "zero123": UNetConfig(
            "Zero123", dict(**_SD, in_channels=8, cross_attention_dim=768, attention_head_dim=8), 32, tokens=1
        ),
        "sdxl": UNetConfig("SDXL", _SDXL, 128),
        "shipped": UNetConfig("the shipped prior", UNET_CONFIG, UNET_CONFIG["sample_size"], WHAT_TOKENS + POSE_TOKENS),
    }
)


def find_unet(name: str, argument: str = "name") -> str:
    """The name among ``UNETS`` that ``name`` stands for; case, dots and blanks do not matter ("SD 2.1" is "sd21").

    Raises:
        ValueError: there is no such U-Net.
    """

    def plain(text: str) -> str:
        return "".join(character for character in text.lower() if character.isalnum())

    for known, config in UNETS.items():
        if isinstance(name, str) and plain(name) in (plain(known), plain(config.label)):
            return known
    fail(ValueError, argument, "one of " + ", ".join(map(repr, UNETS)), name, "choose one of these")
