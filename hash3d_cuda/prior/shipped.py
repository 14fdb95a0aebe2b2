"""The prior that comes with the package: files, loading, and its side of the :class:`Prior` interface."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hash3d_cuda.prior.base import Prior, Subject, UnknownSubject
from hash3d_cuda.prior.model import (
    ELEVATION_RANGE,
    IMAGE_SIZE,
    LATENT_SHAPE,
    RADIUS_RANGE,
    Conditioner,
    images_to_latents,
    latents_to_images,
)
from hash3d_cuda.prior.names import canonical_name, unknown_word
from hash3d_cuda.prior.pictures import read_picture
from hash3d_cuda.prior.recogniser import Recogniser

FORMAT = 1


def shipped_folder() -> Path:
    """Where the package keeps its own prior."""
    return Path(str(files("hash3d_cuda"))) / "assets" / "prior"


def save_prior(model: nn.Module, names: list[str], folder: Path, trained: dict[str, Any]) -> None:
    """Write a prior folder: ``unet/`` as diffusers saves it, ``conditioner.safetensors``, ``prior.json``; all fp16.

    Args:
        model: has ``.unet`` and ``.conditioner``.
        names: the vocabulary, in the order of the conditioner's table.
        folder: created if missing; a recogniser already in it stays.
        trained: how it came about, for the record.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    unet = type(model.unet).from_config(model.unet.config).half()
    unet.load_state_dict({key: value.cpu().half().contiguous() for key, value in model.unet.state_dict().items()})
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    tensors = {key: value.cpu().half().contiguous() for key, value in model.conditioner.state_dict().items()}
    save_file(tensors, folder / "conditioner.safetensors")
    about = dict(
        format=FORMAT,
        names=names,
        prediction_type="sample",
        schedule="scaled_linear 0.00085 0.012 1000",
        trained=trained,
    )
    (folder / "prior.json").write_text(json.dumps(about, indent=1) + "\n")
    for path in folder.rglob("*.safetensors"):  # the library writes them for the owner alone
        path.chmod(0o644)


class ShippedPrior(Prior):
    """A small pixel-space prior that knows a fixed vocabulary of real objects from all sides.

    Args:
        folder: a folder written by :func:`save_prior`.
        device: torch device.
    """

    prediction_type = "sample"
    latent_shape = LATENT_SHAPE
    image_size = IMAGE_SIZE
    elevation_range = ELEVATION_RANGE
    radius_range = RADIUS_RANGE

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        from diffusers import UNet2DConditionModel
        from safetensors.torch import load_file

        from hash3d_cuda.prior.objective import noise_schedule

        about = json.loads((folder / "prior.json").read_text())
        if about.get("format") != FORMAT:
            raise ValueError(f"prior: {str(folder)!r} has format {about.get('format')!r}, expected {FORMAT}")
        self.name = f"shipped prior ({len(about['names'])} objects, {IMAGE_SIZE}x{IMAGE_SIZE})"
        self.vocabulary = list(about["names"])
        self.about = about
        self.device = torch.device(device)
        self.unet = UNet2DConditionModel.from_pretrained(
            folder / "unet", torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
        )
        self.unet.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.conditioner = Conditioner(len(self.vocabulary))
        self.conditioner.load_state_dict(
            {k: v.float() for k, v in load_file(folder / "conditioner.safetensors").items()}
        )
        self.conditioner.to(self.device).eval().requires_grad_(False)
        path = folder / "recogniser.safetensors"
        self.recogniser = Recogniser.load(path, len(self.vocabulary)) if path.is_file() else None
        self.alphas_cumprod = noise_schedule().to(self.device)

    def resolve(self, subject: Any, **pose: float | None) -> Subject:
        """A vocabulary word, or a picture of one of the objects, to a :class:`Subject`.

        A picture is recognised by the small image encoder, which also estimates the pose it was taken from;
        ``elevation``, ``azimuth``, ``radius`` override the estimate.

        Raises:
            UnknownSubject: the word or picture is not in the vocabulary; the message lists it.
        """
        if isinstance(subject, str):
            name = canonical_name(subject, self.vocabulary)
            if name is None:
                raise UnknownSubject(unknown_word(subject, self.vocabulary))
            code = self.conditioner.names.weight[self.vocabulary.index(name)]
            return Subject(label=name, name=name, data={"code": code})
        if self.recogniser is None:
            raise UnknownSubject("prior: this one has no image encoder, so it takes names only; give a name instead")
        image, alpha = read_picture(subject, self.image_size)
        seen = self.recogniser.recognise(image, self.vocabulary)
        given = {key: value for key, value in pose.items() if value is not None}
        found = {**dict(elevation=seen.elevation, azimuth=seen.azimuth, radius=sum(RADIUS_RANGE) / 2), **given}
        code = seen.mixture.to(self.device) @ self.conditioner.names.weight
        return Subject(label=seen.name, name=seen.name, image=image, alpha=alpha, **found, data={"code": code})

    def encode(self, images: Tensor) -> Tensor:
        """Pixel-unshuffle, exact."""
        return images_to_latents(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixel-shuffle, exact."""
        return latents_to_images(latents)

    @torch.no_grad()
    def conditioning(
        self, subject: Subject, elevation: Sequence[float], azimuth: Sequence[float], radius: Sequence[float]
    ) -> dict[str, Any]:
        """Tokens (what + camera) and class vector for B conditioned rows followed by B null rows."""
        poses = torch.stack([torch.as_tensor(p, dtype=torch.float32) for p in (elevation, azimuth, radius)])
        poses = poses.to(self.device, non_blocking=True)
        batch = poses.shape[1]
        tokens, summary = self.conditioner(subject.data["code"].expand(batch, -1), *poses)
        null_tokens, null_summary = self.conditioner.null(batch)
        return dict(
            encoder_hidden_states=torch.cat([tokens, null_tokens]), class_labels=torch.cat([summary, null_summary])
        )
