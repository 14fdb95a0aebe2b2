"""The prior's small image encoder: which object of the vocabulary a picture shows, and from where.

It is trained beside the prior (`python -m hash3d_cuda.prior.train_recogniser`), with an extra class for pictures of
anything else, so that an unknown picture gets a clear answer instead of a wrong object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hash3d_cuda.prior.base import UnknownSubject

CONFIDENT = 0.6
"""Least probability at which a picture counts as recognised."""


@dataclass
class Recognition:
    """What a picture shows: ``mixture`` float [names] sums to 1; pose in degrees."""

    name: str
    mixture: Tensor
    elevation: float
    azimuth: float


class Recogniser(nn.Module):
    """Five strided convolutions, then per-object logits and per-object pose (sin, cos of azimuth; elevation in radians).

    Args:
        names: size of the vocabulary; one more logit stands for "none of these".
    """

    def __init__(self, names: int):
        super().__init__()
        widths = (4, 16, 32, 48, 64, 96)
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:]):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 4, 128), nn.SiLU())
        self.kind = nn.Linear(128, names + 1)
        self.pose = nn.Linear(128, names * 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures float [B,3,64,64] over white -> logits float [B,names+1] and pose float [B,names,3]."""
        darkness = 1 - images.amin(1, keepdim=True)
        hidden = self.trunk(torch.cat([images * 2 - 1, darkness], 1))
        return self.kind(hidden), self.pose(hidden).unflatten(-1, (-1, 3))

    @classmethod
    def load(cls, path: Path, names: int) -> Recogniser:
        """Read fp16 safetensors written by the trainer."""
        from safetensors.torch import load_file

        model = cls(names)
        model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
        return model.eval().requires_grad_(False)

    @torch.no_grad()
    def recognise(self, image: Tensor, vocabulary: list[str]) -> Recognition:
        """One picture float [3,64,64] over white.

        Raises:
            UnknownSubject: the picture shows none of the objects clearly enough; the message lists them.
        """
        logits, pose = self(image[None])
        probability = logits[0].softmax(-1)
        best = int(probability[:-1].argmax())
        if probability[best] < CONFIDENT:
            raise UnknownSubject(
                "subject: this picture shows none of the objects that the shipped prior knows (nearest: "
                f"{vocabulary[best]!r}, {float(probability[best]):.0%}). It knows: {', '.join(sorted(vocabulary))}. For any "
                "other picture give --prior a Zero123-style diffusers folder."
            )
        sine, cosine, elevation = pose[0, best].tolist()
        return Recognition(
            name=vocabulary[best],
            mixture=probability[:-1] / probability[:-1].sum(),
            elevation=math.degrees(elevation),
            azimuth=math.degrees(math.atan2(sine, cosine)) % 360,
        )
