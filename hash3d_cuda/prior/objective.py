"""What the small prior is trained to do, and how well it does it: loss, validation, samples."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from hash3d_cuda.prior.data import Batch, Views
from hash3d_cuda.prior.model import Conditioner, build_unet, images_to_latents, latents_to_images

TIMESTEPS = 1000
DROP_CONDITION = 0.1
LOSS_WEIGHT_CAP = 4.0
TIMESTEP_SHARES = ((0, 200, 0.1), (200, 500, 0.25), (500, TIMESTEPS, 0.65))
"""Bands of timesteps, and the share of the training views that each gets."""


def noise_schedule() -> Tensor:
    """alphas_cumprod float [1000] of Stable Diffusion's DDPM schedule (scaled linear, 0.00085 to 0.012)."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(TIMESTEPS, 0.00085, 0.012, "scaled_linear").alphas_cumprod


class Model(torch.nn.Module):
    """U-Net and conditioner together, so that one optimiser and one average see both."""

    def __init__(self, names: int):
        super().__init__()
        self.unet = build_unet()
        self.conditioner = Conditioner(names)

    def forward(self, noisy: Tensor, t: Tensor, batch: Batch, dropped: Tensor | None = None) -> Tensor:
        """Predicted x0 latents for noisy latents [B,48,h,w] at timesteps int64 [B]."""
        condition = self.conditioner(self.conditioner.names(batch.index), *batch.poses.unbind(-1))
        if dropped is not None:
            condition = self.conditioner.drop(*condition, dropped)
        return self.unet(noisy, t, encoder_hidden_states=condition[0], class_labels=condition[1]).sample


def add_noise(latents: Tensor, t: Tensor, alphas: Tensor, generator: torch.Generator) -> Tensor:
    """Eq. 1 of the paper: sqrt(abar_t) x0 + sqrt(1 - abar_t) eps."""
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    abar = alphas[t].view(-1, 1, 1, 1)
    return abar.sqrt() * latents + (1 - abar).sqrt() * noise


def draw_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """Mostly the high noise levels, at which score distillation decides what an object looks like; some of the rest."""
    shares = torch.tensor([share for _, _, share in TIMESTEP_SHARES])
    band = torch.multinomial(shares, batch, replacement=True, generator=generator)
    low, high, _ = torch.tensor(TIMESTEP_SHARES)[band].unbind(-1)
    return (low + (high - low) * torch.rand(batch, generator=generator)).long()


def training_loss(model: Model, batch: Batch, alphas: Tensor, generator: torch.Generator) -> Tensor:
    """x0 error weighted by min(1/(1-abar), 4): the v-prediction loss, capped where there is hardly any noise."""
    latents = images_to_latents(batch.images)
    t = draw_timesteps(len(latents), generator)
    dropped = torch.rand(len(latents), generator=generator) < DROP_CONDITION
    t, dropped = t.to(latents.device), dropped.to(latents.device)
    noisy = add_noise(latents, t, alphas, generator).contiguous(memory_format=torch.channels_last)
    error = (model(noisy, t, batch, dropped) - latents).square().mean((1, 2, 3))
    return (error * (1 / (1 - alphas[t])).clamp(max=LOSS_WEIGHT_CAP)).mean()


@torch.no_grad()
def validate(model: Model, views: Views, alphas: Tensor, device: torch.device, items: int = 64) -> dict[str, float]:
    """PSNR of the predicted x0 at views never trained on, in dB, for five noise levels."""
    generator = torch.Generator().manual_seed(1)
    batch = Batch(*(part.to(device) for part in views.sample(items, generator)))
    latents, result = images_to_latents(batch.images), {}
    for level in (100, 300, 500, 700, 900):
        t = torch.full((items,), level, device=device)
        predicted = latents_to_images(model(add_noise(latents, t, alphas, generator), t, batch)).clamp(0, 1)
        error = (predicted - batch.images).square().mean((1, 2, 3))
        result[f"psnr_t{level}"] = round(float((-10 * error.log10()).mean()), 3)
    return result


@torch.no_grad()
def sample_grid(model: Model, views: Views, alphas: Tensor, device: torch.device, path: Path, steps: int = 12) -> None:
    """DDIM samples of eight objects from four sides, rows of objects, as one picture."""
    from PIL import Image

    rows = min(8, len(views.names))
    index = torch.arange(rows).repeat_interleave(4) * (len(views.names) // rows)
    azimuth = torch.tensor([0.0, 90.0, 180.0, 270.0]).repeat(rows)
    poses = torch.stack([torch.full_like(azimuth, 25.0), azimuth, torch.full_like(azimuth, 2.0)], -1)
    batch = Batch(index.to(device), torch.empty(0), poses.to(device))
    generator = torch.Generator().manual_seed(2)
    side = model.unet.config.sample_size
    shape = (len(index), model.unet.config.in_channels, side, side)
    x = torch.randn(shape, generator=generator).to(device)
    times = torch.linspace(TIMESTEPS - 1, 0, steps + 1).long()
    for now, then in pairwise(times):
        clean = model(x, now.expand(len(index)).to(device), batch)
        noise = (x - alphas[now].sqrt() * clean) / (1 - alphas[now]).sqrt()
        x = alphas[then].sqrt() * clean + (1 - alphas[then]).sqrt() * noise
    pictures = latents_to_images(clean).clamp(0, 1).cpu()
    size = pictures.shape[-1]
    sheet = pictures.view(rows, 4, 3, size, size).permute(0, 3, 1, 4, 2).reshape(rows * size, 4 * size, 3)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(path)
