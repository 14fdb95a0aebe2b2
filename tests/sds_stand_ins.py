"""A prior small enough for tests: random weights, a real diffusers U-Net, two words of vocabulary."""

from __future__ import annotations

import json

import torch
from torch import Tensor
from torch.nn import functional as F

from hash3d_cuda.prior.base import Prior, Subject, UnknownSubject

SIZE, PATCH, TOKEN = 16, 4, 16


def tiny_unet(seed: int = 0, patch: int = PATCH, **overrides):
    """Two levels, two resnets a block, cross-attention: SD's topology in 16 channels."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    config = dict(
        sample_size=SIZE // PATCH, in_channels=3 * patch**2, out_channels=3 * patch**2,
        block_out_channels=(16, 32),
        layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=TOKEN, attention_head_dim=4,
        norm_num_groups=4,
    )  # fmt: skip
    return UNet2DConditionModel(**{**config, **overrides}).eval().requires_grad_(False)


class TinyPrior(Prior):
    """Knows two words; takes any picture as the first. The context is (pose, word) in one token.

    Args:
        size: pixels per side; the latent is 4x4 always.
    """

    name = "tiny stand-in"
    elevation_range = (-10.0, 60.0)
    radius_range = (1.8, 2.2)

    def __init__(self, prediction_type="sample", seed=0, size=SIZE, vocabulary=("cube", "ball")):
        self.prediction_type, self.vocabulary = prediction_type, list(vocabulary)
        self.image_size, self.patch = size, size // 4
        self.latent_shape = (3 * self.patch**2, 4, 4)
        self.unet = tiny_unet(seed, self.patch)
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)

    def resolve(self, subject, **pose):
        if isinstance(subject, str):
            if subject not in self.vocabulary:
                raise UnknownSubject(f"subject: expected one of {', '.join(self.vocabulary)}, got {subject!r}")
            return Subject(label=subject, name=subject)
        from hash3d_cuda.prior.pictures import read_picture

        image, alpha = read_picture(subject, self.image_size)
        given = {"elevation": 10.0, "azimuth": 20.0, **{k: v for k, v in pose.items() if v is not None}}
        return Subject(self.vocabulary[0], self.vocabulary[0], image, alpha, **given)

    def encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images * 2 - 1, self.patch)

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, self.patch) / 2 + 0.5

    def conditioning(self, subject, elevation, azimuth, radius):
        angle = torch.deg2rad(torch.as_tensor(azimuth))
        word = torch.full_like(angle, float(self.vocabulary.index(subject.name)))
        parts = [angle.sin(), angle.cos(), torch.as_tensor(elevation) / 90, torch.as_tensor(radius), word]
        token = F.pad(torch.stack(parts, -1), (0, TOKEN - len(parts)))[:, None]
        return {"encoder_hidden_states": torch.cat([token, torch.zeros_like(token)])}


def skip_pages(patch):
    """Leaves meshes and pages out of what a run writes: they take longer than a short run. ``patch``: a MonkeyPatch."""

    def refuse(*_):
        raise ValueError("left out")

    patch.setattr("hash3d_cuda.sds.export.write_glb", refuse)
    patch.setattr("hash3d_cuda.sds.report.write_report", lambda *_: None)


def write_jobs(tmp_path, jobs, small):
    """Writes a file of jobs; returns the command that runs them into ``tmp_path / "made"``, with ``small`` options."""
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(json.dumps(job) for job in jobs))
    return ["generate", "--jobs", str(path), "--out", str(tmp_path / "made"), *small]


def job_statuses(tmp_path):
    """Job -> its status, as the summary of :func:`write_jobs`' command has it."""
    summary = json.loads((tmp_path / "made" / "summary.json").read_text())
    return {row["job"]: row["status"] for row in summary["jobs"]}
