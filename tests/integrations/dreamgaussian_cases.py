"""DreamGaussian's guidance for the tests: stand-ins, or upstream's classes, around the same narrow models."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import guidance_stand_ins as stand_ins
import torch

KINDS = ("zero123", "sd", "mvdream", "imagedream")
FRAMES = {"mvdream": 4, "imagedream": 4}
WITHOUT = (
    "torchvision",
    "kiui",
    "mvdream",
    "imagedream",
    "cv2",
    "dearpygui",
    "rembg",
    "gs_renderer",
    "grid_put",
    "mesh",
)
SIZE = {"zero123": 32, "sd": 64, "mvdream": 32, "imagedream": 32}


def stand_in(kind: str) -> Any:
    if kind in FRAMES:
        return stand_ins.DreamMultiView(kind)
    return stand_ins.DreamSD() if kind == "sd" else stand_ins.DreamZero123()


def upstream(kind: str) -> Any:
    """The original class around the stand-in's models, without its loading of weights."""
    module = importlib.import_module({"sd": "guidance.sd_utils"}.get(kind, f"guidance.{kind}_utils"))
    name = {"sd": "StableDiffusion", "zero123": "Zero123", "mvdream": "MVDream", "imagedream": "ImageDream"}[kind]
    like = stand_in(kind)
    made = object.__new__(getattr(module, name))
    torch.nn.Module.__init__(made)
    vars(made).update({key: value for key, value in vars(like).items() if not key.startswith("_")})
    made.alphas = made.scheduler.alphas_cumprod
    made.embed = lambda number: embed(made, like, number)
    if kind == "zero123":
        made.pipe = SimpleNamespace(clip_camera_projection=lambda rows: rows[..., :6] + rows[..., 6:].mean(-1, True))
        made.use_stable_zero123, made.unet = False, like.unet
    elif kind == "sd":
        made.unet = like.unet
    else:
        made.model = like.model
        made.model.q_sample = lambda x, t, noise: made.scheduler.add_noise(x, noise, t)
        made.model.apply_model = lambda x, t, given: like.model.model.diffusion_model(x, t, **given)
        module.normalize_camera = normalize
    made.decode_latents = lambda latents: latents
    made.encode_imgs = lambda images: torch.nn.functional.interpolate(images, (SIZE[kind],) * 2)[:, :4]
    embed(made, like, 0)
    return made


def embed(made: Any, like: Any, number: int) -> None:
    like.embed(number)
    made.embeddings = like.embeddings
    if isinstance(made.embeddings, list):
        made.embeddings[1] = torch.full((1, 4, 32, 32), float(number))
    if getattr(like, "image_embeddings", None):
        images = {**like.image_embeddings, "ip_img": torch.ones(1, 4, 32, 32)}
        made.image_embeddings = {**images, "neg_ip_img": torch.zeros(1, 4, 32, 32)}


def normalize(camera: torch.Tensor) -> torch.Tensor:
    """Where MVDream's own is not installed: translations of length 1."""
    camera = camera.reshape(-1, 4, 4).clone()
    camera[:, :3, 3] /= camera[:, :3, 3].norm(dim=1, keepdim=True) + 1e-8
    return camera.reshape(-1, 16)
