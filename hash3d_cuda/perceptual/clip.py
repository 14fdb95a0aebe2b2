"""CLIP (Radford et al. 2021) from a folder or the hub's cache: never from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

REPOSITORIES = {
    "CLIP-G/14": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "CLIP-L/14": "openai/clip-vit-large-patch14",
    "CLIP-B/32": "openai/clip-vit-base-patch32",
}
"""The three of the paper's Table 2. It does not say whose G/14 it took; this is the one that transformers reads."""
VARIABLES = {name: f"HASH3D_{name.replace('-', '_').replace('/', '_')}" for name in REPOSITORIES}
"""Environment variables that name a folder with one of them, such as ``HASH3D_CLIP_B_32``."""
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Clip:
    """Embeddings of pictures and prompts.

    Args:
        folder: a transformers ``CLIPModel`` with its tokenizer.

    Raises:
        OSError, ValueError: the folder lacks a part.
    """

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer, CLIPModel

        self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Pictures float [N,3,S,S] in 0..1, resized bicubically to the model's size, to embeddings float [N,D]."""
        side = self.model.config.vision_config.image_size
        images = F.interpolate(images, (side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        hidden = self.model.vision_model(pixel_values=(images - mean) / deviation).pooler_output
        return self.model.visual_projection(hidden)

    @torch.no_grad()
    def embed_text(self, prompt: str) -> Tensor:
        """A prompt to its embedding float [1,D]."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer([prompt], return_tensors="pt", truncation=True, max_length=length)
        hidden = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return self.model.text_projection(hidden)
