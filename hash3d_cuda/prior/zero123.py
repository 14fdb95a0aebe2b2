"""Any picture: a Zero123-style pipeline as a prior that is told how the camera moved since the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hash3d_cuda.prior.base import Subject, UnknownSubject
from hash3d_cuda.prior.pictures import read_picture
from hash3d_cuda.prior.pipelines import LatentPrior, broken, load_part

PROJECTIONS = ("clip_camera_projection", "cc_projection")
POSE_FEATURES = 4
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
DEFAULT_ELEVATION = 5.0
"""Degrees; most pictures of objects are taken from slightly above. The azimuth of a picture is 0 unless given."""


def relative_pose(
    subject: Subject, elevation: Sequence[float], azimuth: Sequence[float], radius: Sequence[float]
) -> Tensor:
    """Zero123's camera vector for B views: float32 [B,4].

    (change of the polar angle in radians, sin and cos of the change of azimuth, change of radius). The polar angle is
    measured from the pole, so a camera that rises has a negative first entry.
    """
    polar = [math.radians(subject.elevation - e) for e in elevation]
    turned = [math.radians(a - subject.azimuth) for a in azimuth]
    rows = [(p, math.sin(a), math.cos(a), r - subject.radius) for p, a, r in zip(polar, turned, radius, strict=True)]
    return torch.tensor(rows, dtype=torch.float32)


class ImagePrior(LatentPrior):
    """A novel-view prior: the picture's CLIP embedding joined with the relative camera is the only token, and the
    picture's latent comes in as four more channels.

    Args:
        folder: a pipeline folder with ``unet`` (8 input channels), ``vae``, ``image_encoder``, ``scheduler`` and
            ``clip_camera_projection`` or ``cc_projection``.
        device: torch device.

    Raises:
        ValueError: a part is missing, damaged or unsupported.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        from transformers import CLIPVisionModelWithProjection

        super().__init__(folder, device, in_channels=8)
        encoder = load_part(folder, "image_encoder", CLIPVisionModelWithProjection, self.dtype)
        self.image_encoder = encoder.to(self.device)
        self.projection = load_projection(folder, encoder.config.projection_dim).to(self.device, self.dtype)
        self._check_width(self.projection.out_features, find_projection(folder))
        self.clip_mean, self.clip_std = self._clip_statistics()
        self.name = f"image prior {folder.name!r} ({self.image_size}x{self.image_size}, {self.prediction_type})"

    def resolve(self, subject: Any, **pose: float | None) -> Subject:
        """Any picture to a :class:`Subject`; its latent and embedding are computed here, once.

        ``elevation``, ``azimuth``, ``radius`` say where it was taken from; 5 degrees up, the front and the middle of
        ``radius_range`` where not given.

        Raises:
            UnknownSubject: a word.
        """
        if isinstance(subject, str):
            raise UnknownSubject(
                f"subject: {self.name} takes a picture, got the word {subject!r}; for a prompt give --prior a Stable "
                "Diffusion folder"
            )
        image, alpha = read_picture(subject, self.image_size)
        given = {key: value for key, value in pose.items() if value is not None}
        where = {**dict(elevation=DEFAULT_ELEVATION, azimuth=0.0, radius=sum(self.radius_range) / 2), **given}
        pixels = image.to(self.device)[None]
        with torch.no_grad():
            data = dict(latent=self._mean(pixels), embedding=self._embed(pixels))
        return Subject(label="picture", image=image, alpha=alpha, data=data, **where)

    @torch.no_grad()
    def conditioning(
        self, subject: Subject, elevation: Sequence[float], azimuth: Sequence[float], radius: Sequence[float]
    ) -> dict[str, Any]:
        """``encoder_hidden_states`` [2B,1,D]: picture and relative camera, then B rows of zeros."""
        pose = relative_pose(subject, elevation, azimuth, radius).to(self.device, self.dtype, non_blocking=True)
        embedding = subject.data["embedding"].expand(len(pose), -1)
        tokens = self.projection(torch.cat([embedding, pose], -1))[:, None]
        return dict(encoder_hidden_states=torch.cat([tokens, torch.zeros_like(tokens)]))

    def model_input(self, noisy: Tensor, subject: Subject) -> Tensor:
        """[2B,8,h,w]: each row's noisy latent, and behind it the picture's; zeros in the unconditioned rows.

        The picture's latent is not multiplied by the VAE's scaling factor: Zero123 was trained that way.
        """
        picture = subject.data["latent"].to(noisy.dtype).expand(len(noisy), -1, -1, -1)
        return torch.cat([torch.cat([noisy] * 2), torch.cat([picture, torch.zeros_like(picture)])], 1)

    def _embed(self, images: Tensor) -> Tensor:
        """CLIP's image embedding, [1,P], of pictures float [1,3,S,S] in 0..1."""
        size = self.image_encoder.config.image_size
        scaled = F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False, antialias=True)
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.clip_mean, self.clip_std))
        return self.image_encoder(((scaled - mean) / std).to(self.dtype)).image_embeds

    def _clip_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Channel means and deviations: CLIP's, unless the folder's ``feature_extractor`` names others."""
        from hash3d_cuda.prior.pipelines import read_json

        if not (self.folder / "feature_extractor").is_dir():
            return CLIP_MEAN, CLIP_STD
        config = read_json(self.folder, "feature_extractor", "preprocessor_config.json")
        return config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD)


def find_projection(folder: Path) -> str:
    """The name of the subfolder with the linear map from picture and camera to the U-Net's token."""
    found = next((name for name in PROJECTIONS if (folder / name).is_dir()), None)
    if found is None:
        raise broken(folder, f"the part {PROJECTIONS[0]!r} (or {PROJECTIONS[1]!r})", "is missing")
    return found


def load_projection(folder: Path, embedding: int) -> nn.Linear:
    """The linear map [embedding + 4 -> width]; its tensors are called differently from one conversion to the next."""
    part = find_projection(folder)
    files = sorted((folder / part).glob("*.safetensors")) or sorted((folder / part).glob("*.bin"))
    if not files:
        raise broken(folder, f"the part {part!r}", "has no weights (.safetensors or .bin)")
    try:
        if files[0].suffix == ".bin":
            tensors = torch.load(files[0], map_location="cpu", weights_only=True)
        else:
            from safetensors.torch import load_file

            tensors = load_file(files[0])
    except Exception as error:
        raise broken(folder, f"the part {part!r}", f"cannot be loaded ({error})") from None
    weight = [value for key, value in tensors.items() if key.endswith("weight") and value.ndim == 2]
    bias = [value for key, value in tensors.items() if key.endswith("bias") and value.ndim == 1]
    wanted = embedding + POSE_FEATURES
    if len(weight) != 1 or len(bias) != 1 or weight[0].shape[1] != wanted or len(weight[0]) != len(bias[0]):
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in tensors.items())
        raise broken(folder, f"the part {part!r}", f"must be one linear map from {wanted}, holds {shapes or 'nothing'}")
    linear = nn.Linear(wanted, len(bias[0]))
    linear.load_state_dict(dict(weight=weight[0].float(), bias=bias[0].float()))
    return linear.eval().requires_grad_(False)
