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
WIDTHS = (32, 64, 96, 128)


@dataclass
class Recognition:
    """What a picture shows: ``mixture`` float [names] sums to 1; pose in degrees."""

    name: str
    mixture: Tensor
    elevation: float
    azimuth: float


class Recogniser(nn.Module):
    """Convolutions down to 2x2, then per-object logits and per-object pose (sin, cos of azimuth; elevation in radians).

    The first layer takes patches of 4x4 pixels, so that the whole network costs about 3 million multiplications.

    Args:
        names: size of the vocabulary; one more logit stands for "none of these".
    """

    def __init__(self, names: int):
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(4)]
        for index, width in enumerate(WIDTHS):
            convolution = nn.Conv2d(WIDTHS[index - 1], width, 3, 2, 1) if index else nn.Conv2d(4 * 16, width, 1)
            layers += [convolution, nn.GroupNorm(8, width), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * 4, 192), nn.SiLU())
        self.kind = nn.Linear(192, names + 1)
        self.pose = nn.Linear(192, names * 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures float [B,3,64,64] over white -> logits float [B,names+1] and pose float [B,names,3]."""
        darkness = 1 - images.amin(1, keepdim=True)
        hidden = self.trunk(torch.cat([images * 2 - 1, darkness], 1))
        return self.kind(hidden), self.pose(hidden).unflatten(-1, (-1, 3))

    @classmethod
    def load(cls, path: Path, names: int) -> Recogniser:
        """Read fp16 safetensors written by the trainer.

        Raises:
            ValueError: the file is damaged, or was made for another vocabulary or another version of the network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        model = cls(names)
        try:
            model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
        except (SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(
                f"prior: {str(path)!r} does not hold the image encoder of {names} objects ({reason}); "
                "train it again with `python -m hash3d_cuda.prior.train_recogniser`"
            ) from None
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
                f"{vocabulary[best]!r}, {float(probability[best]):.0%}). It knows: {', '.join(sorted(vocabulary))}. "
                "For any other picture give --prior a Zero123-style diffusers folder."
            )
        sine, cosine, elevation = pose[0, best].tolist()
        return Recognition(
            name=vocabulary[best],
            mixture=probability[:-1] / probability[:-1].sum(),
            elevation=math.degrees(elevation),
            azimuth=math.degrees(math.atan2(sine, cosine)) % 360,
        )
