"""What priors made of a diffusers pipeline folder share: reading its parts, the noise schedule, the KL-VAE.

A folder is read part by part instead of through a pipeline class, so that a missing or damaged part is named, nothing
unused is loaded (safety checker), and the same code serves pipelines that diffusers has no class for (Zero123).
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.prior.base import Prior

VIEWED_FROM = dict(elevation_range=(-10.0, 75.0), radius_range=(1.8, 2.2))
"""Where these priors are asked for views: a text prior sees "overhead" above 60 degrees."""
REMEDY = "save it again with save_pretrained, or download it again"


def broken(folder: Path, part: str, problem: str) -> ValueError:
    """The one-line error for a folder whose ``part`` does not do."""
    return ValueError(f"prior: in {str(folder)!r} {part} {' '.join(problem.split())[:240]}; {REMEDY}")


def read_json(folder: Path, part: str, *names: str) -> dict[str, Any]:
    """The first of ``folder/part/names`` that exists, parsed.

    Raises:
        ValueError: none exists, or it is not a JSON object.
    """
    where = folder / part
    if part and not where.is_dir():
        raise broken(folder, f"the part {part!r}", "is missing")
    path = next((where / name for name in names if (where / name).is_file()), None)
    if path is None:
        raise broken(folder, f"the part {part!r}", f"has no {' or '.join(names)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise broken(folder, f"'{path.relative_to(folder)}'", f"is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise broken(folder, f"'{path.relative_to(folder)}'", "is not a JSON object")
    return content


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the libraries' own complaints and progress bars while entered; what matters becomes an error here."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = [sys.modules.get(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    showing = [module for module in bars if module is not None and module.is_progress_bar_enabled()]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    for module in showing:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
        for module in showing:
            module.enable_progress_bar()


def load_part(folder: Path, part: str, kind: Any, dtype: torch.dtype, expected: str | None = None) -> Any:
    """One network of the folder, frozen, on the CPU.

    Args:
        folder: the pipeline's folder.
        part: its subfolder.
        kind: the class, from diffusers or transformers.
        dtype: of the weights.
        expected: the class that ``config.json`` must name, where it matters.

    Raises:
        ValueError: missing, damaged, of another class, or with weights that do not fit; folder and part are named.
    """
    config = read_json(folder, part, "config.json")
    found = config.get("_class_name")
    if expected is not None and found != expected:
        raise broken(folder, f"the part {part!r}", f"is of class {found!r}, only {expected!r} is supported")
    weights = [path for path in (folder / part).iterdir() if path.suffix in (".safetensors", ".bin")]
    if not weights:
        raise broken(folder, f"the part {part!r}", "has no weights (.safetensors or .bin)")
    options: dict[str, Any] = dict(torch_dtype=dtype, local_files_only=True, output_loading_info=True)
    if all(".fp16." in path.name for path in weights):
        options["variant"] = "fp16"
    try:
        with quiet():
            model, info = kind.from_pretrained(folder / part, **options)
    except Exception as error:  # the libraries raise many kinds, some of several lines
        raise broken(folder, f"the part {part!r}", f"cannot be loaded ({error})") from None
    for trouble in ("mismatched_keys", "missing_keys"):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get(trouble, ()))
        if keys:
            word = "wrong shapes for" if trouble == "mismatched_keys" else "no weights for"
            raise broken(folder, f"the part {part!r}", f"has {word} {', '.join(keys[:3])}")
    return model.eval().requires_grad_(False)


def noise_schedule(folder: Path) -> tuple[Tensor, str]:
    """alphas_cumprod float [T] and the prediction type from ``scheduler/``, whichever scheduler class it names."""
    from diffusers import DDPMScheduler

    config = read_json(folder, "scheduler", "scheduler_config.json")
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    given = {name: config[name] for name in (*names, "rescale_betas_zero_snr") if config.get(name) is not None}
    kind = given.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise broken(folder, "the part 'scheduler'", f"has the unknown prediction_type {kind!r}")
    try:
        return DDPMScheduler(**given).alphas_cumprod, kind
    except Exception as error:
        raise broken(folder, "the part 'scheduler'", f"cannot be used ({error})") from None


def load_unet(folder: Path, in_channels: int, dtype: torch.dtype) -> Any:
    """The folder's ``UNet2DConditionModel`` with so many input channels and no conditions besides cross-attention."""
    from diffusers import UNet2DConditionModel

    config = read_json(folder, "unet", "config.json")
    channels = config.get("in_channels", 4)
    extra = [name for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim") if config.get(name)]
    if extra:
        raise broken(folder, "the part 'unet'", f"wants conditions that are not supported: {', '.join(extra)}")
    if channels != in_channels:
        raise broken(folder, "the part 'unet'", f"has {channels} input channels, expected {in_channels}")
    return load_part(folder, "unet", UNet2DConditionModel, dtype, "UNet2DConditionModel")


class LatentPrior(Prior):
    """A prior whose U-Net works on a KL-VAE's latents.

    U-Net and encoders are float32 on a CPU and float16 on CUDA. The VAE stays float32: the gradient that goes back
    through its encoder is of the order of 1/numel, which float16 would flush to zero.

    Args:
        folder: the pipeline's folder.
        device: torch device.
        in_channels: what the U-Net must take.
    """

    elevation_range = VIEWED_FROM["elevation_range"]
    radius_range = VIEWED_FROM["radius_range"]
    vocabulary = None
    groups = 2
    light: Any = None  # an AutoencoderTiny

    def __init__(self, folder: Path, device: str | torch.device, in_channels: int):
        from diffusers import AutoencoderKL

        self.folder, self.device = folder, torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.alphas_cumprod, self.prediction_type = noise_schedule(folder)
        self.alphas_cumprod = self.alphas_cumprod.to(self.device)
        self.unet = load_unet(folder, in_channels, self.dtype).to(self.device)
        self.vae = load_part(folder, "vae", AutoencoderKL, torch.float32, "AutoencoderKL").to(self.device)
        channels, out = self.vae.config.latent_channels, self.unet.config.out_channels
        if channels != out:
            raise broken(folder, "the part 'vae'", f"makes {channels} latent channels, but the U-Net denoises {out}")
        side = self.unet.config.sample_size
        side = side if isinstance(side, int) else side[0]
        self.latent_shape = (channels, side, side)
        self.image_size = side * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def use_encoder(self, folder: str | Path) -> None:
        """Encodes by a light encoder from now on, see :mod:`hash3d_cuda.prior.tiny`; decoding, and the latent of an
        input picture, stay the VAE's own. Raises ValueError where it does not fit."""
        from hash3d_cuda.prior.tiny import load_light_encoder

        scale = self.image_size // self.latent_shape[1]
        self.light = load_light_encoder(folder, self.latent_shape[0], scale).to(self.device)
        self.name += f", encoder {Path(folder).name!r}"

    def encode(self, images: Tensor) -> Tensor:
        """float [B,3,S,S] in 0..1 -> scaled latents float32 [B,C,h,w]: the mean of the VAE's posterior, so that no
        random number is drawn, or what the light encoder gives; differentiable."""
        if self.light is not None:
            from hash3d_cuda.prior.tiny import encode_light

            return encode_light(self.light, images)
        return (self._mean(images) - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents float [B,C,h,w] -> float32 [B,3,S,S], about 0..1."""
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + self._shift
        return self.vae.decode(latents).sample / 2 + 0.5

    def _mean(self, images: Tensor) -> Tensor:
        return self.vae.encode(images.to(self.vae.dtype) * 2 - 1).latent_dist.mean

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    def _check_width(self, width: int, part: str) -> None:
        """Raises ValueError when ``part`` makes tokens of another width than the U-Net's cross-attention takes."""
        wanted: int | Sequence[int] = self.unet.config.cross_attention_dim
        if width != wanted:
            raise broken(self.folder, f"the part {part!r}", f"makes tokens {width} wide, but the U-Net takes {wanted}")
