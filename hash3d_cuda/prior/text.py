"""Any prompt: a Stable Diffusion pipeline (1.5, 2.1 and the like) as a prior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.prior.base import Subject, UnknownSubject
from hash3d_cuda.prior.pipelines import LatentPrior, broken, load_part, quiet

VIEWS = ("front view", "side view", "back view", "overhead view")
OVERHEAD_FROM = 60.0
"""Degrees of elevation from which a view counts as overhead (DreamFusion's choice)."""
LABEL_LENGTH = 60


def view_index(elevation: float, azimuth: float) -> int:
    """Which of ``VIEWS`` a pose in degrees is: quarters about the front (azimuth 0) and back, halves between."""
    if elevation >= OVERHEAD_FROM:
        return 3
    turned = abs((azimuth + 180.0) % 360.0 - 180.0)
    return 0 if turned < 45 else 2 if turned > 135 else 1


class TextPrior(LatentPrior):
    """A text-to-image prior; the camera enters through a few words at the prompt's end.

    Args:
        folder: a diffusers pipeline folder with ``unet``, ``vae``, ``text_encoder``, ``tokenizer``, ``scheduler``.
        device: torch device.

    Raises:
        ValueError: a part is missing, damaged or unsupported.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        from transformers import CLIPTextModel

        tokenizer = load_tokenizer(folder)
        super().__init__(folder, device, in_channels=4)
        self.tokenizer = tokenizer
        self.text_encoder = load_part(folder, "text_encoder", CLIPTextModel, self.dtype).to(self.device)
        self._check_width(self.text_encoder.config.hidden_size, "text_encoder")
        self.length = min(tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        self.name = f"text prior {folder.name!r} ({self.image_size}x{self.image_size}, {self.prediction_type})"

    def resolve(self, subject: Any, **pose: float | None) -> Subject:
        """Any prompt to a :class:`Subject`, whose four view-dependent embeddings are computed here, once.

        Raises:
            UnknownSubject: a picture, an empty prompt, or one that is too long for the text encoder.
        """
        if not isinstance(subject, str):
            raise UnknownSubject(
                f"subject: {self.name} takes a prompt, got {type(subject).__name__}; for a picture give --prior a "
                "Zero123-style folder, or leave --prior away for a picture of a shipped object"
            )
        prompt = " ".join(subject.split())
        if not prompt:
            raise UnknownSubject("subject: the prompt is empty; say what to make, such as 'a photo of a corgi'")
        data = dict(views=self._embed([f"{prompt}, {view}" for view in VIEWS]), null=self._embed([""]))
        return Subject(label=prompt[:LABEL_LENGTH].rstrip(), data=data)

    @torch.no_grad()
    def conditioning(
        self, subject: Subject, elevation: Sequence[float], azimuth: Sequence[float], radius: Sequence[float]
    ) -> dict[str, Any]:
        """``encoder_hidden_states`` [2B,L,D]: each view's embedding, then B times the empty prompt's."""
        rows = [view_index(float(e), float(a)) for e, a in zip(elevation, azimuth, strict=True)]
        views = torch.stack([subject.data["views"][row] for row in rows])  # a list as index would wait for a GPU
        null = subject.data["null"].expand(len(rows), -1, -1)
        return dict(encoder_hidden_states=torch.cat([views, null]))

    @torch.no_grad()
    def _embed(self, prompts: list[str]) -> Tensor:
        """float [len(prompts), L, D] of the U-Net's dtype."""
        with quiet():
            longest = max(len(row) for row in self.tokenizer(prompts).input_ids)
        if longest > self.length:
            raise UnknownSubject(
                f"subject: the prompt has {longest} tokens with its view, {self.name} reads at most {self.length}; "
                "shorten it"
            )
        tokens = self.tokenizer(prompts, padding="max_length", max_length=self.length, return_tensors="pt")
        mask = tokens.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        mask = None if mask is None else mask.to(self.device)
        return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0].to(self.dtype)


def load_tokenizer(folder: Path) -> Any:
    """The folder's ``CLIPTokenizer``; transformers would make an empty one of a missing vocabulary."""
    from transformers import CLIPTokenizer

    where = folder / "tokenizer"
    if not where.is_dir():
        raise broken(folder, "the part 'tokenizer'", "is missing")
    whole = (where / "tokenizer.json").is_file()
    missing = [name for name in ("vocab.json", "merges.txt") if not (where / name).is_file()]
    if missing and not whole:
        raise broken(folder, "the part 'tokenizer'", f"has no {' and no '.join(missing)}")
    try:
        with quiet():
            return CLIPTokenizer.from_pretrained(where, local_files_only=True)
    except Exception as error:
        raise broken(folder, "the part 'tokenizer'", f"cannot be loaded ({error})") from None
