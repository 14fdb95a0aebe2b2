"""A prior small enough for tests: random weights, a real diffusers U-Net, two words of vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hash3d_cuda.prior.base import Prior, Subject, UnknownSubject

SIZE, PATCH, TOKEN = 16, 4, 16


def tiny_unet(seed: int = 0, **overrides):
    """Two levels, two resnets a block, cross-attention: SD's topology in 16 channels."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    config = dict(
        sample_size=SIZE // PATCH, in_channels=3 * PATCH**2, out_channels=3 * PATCH**2, block_out_channels=(16, 32),
        layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=TOKEN, attention_head_dim=4,
        norm_num_groups=4,
    )  # fmt: skip
    return UNet2DConditionModel(**{**config, **overrides}).eval().requires_grad_(False)


class TinyPrior(Prior):
    """Knows "cube" and "ball"; takes any picture as a cube. The context is (word, pose) in one token."""

    name = "tiny stand-in"
    latent_shape = (3 * PATCH**2, SIZE // PATCH, SIZE // PATCH)
    image_size = SIZE
    elevation_range = (-10.0, 60.0)
    radius_range = (1.8, 2.2)

    def __init__(self, prediction_type: str = "sample", seed: int = 0):
        self.prediction_type = prediction_type
        self.vocabulary = ["cube", "ball"]
        self.unet = tiny_unet(seed)
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)

    def resolve(self, subject, **pose):
        if isinstance(subject, str):
            if subject not in self.vocabulary:
                raise UnknownSubject(
                    f"subject: expected one of {', '.join(self.vocabulary)}, got {subject!r}"
                )
            return Subject(label=subject, name=subject)
        from hash3d_cuda.prior.pictures import read_picture

        image, alpha = read_picture(subject, SIZE)
        given = {name: value for name, value in pose.items() if value is not None}
        return Subject(
            label="cube",
            name="cube",
            image=image,
            alpha=alpha,
            **{"elevation": 10.0, "azimuth": 20.0, **given},
        )

    def encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images * 2 - 1, PATCH)

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, PATCH) / 2 + 0.5

    def conditioning(self, subject, elevation, azimuth, radius):
        angle = torch.deg2rad(torch.as_tensor(azimuth))
        word = torch.full_like(angle, float(self.vocabulary.index(subject.name)))
        parts = [angle.sin(), angle.cos(), torch.as_tensor(elevation) / 90, torch.as_tensor(radius), word]
        token = F.pad(torch.stack(parts, -1), (0, TOKEN - len(parts)))[:, None].to(self.alphas_cumprod.device)
        return {"encoder_hidden_states": torch.cat([token, torch.zeros_like(token)])}
