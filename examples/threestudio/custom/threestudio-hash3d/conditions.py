"""Condition ids: features are reused only under an equal one, so prompts, directions and pictures never mix."""

from __future__ import annotations

import hashlib
import weakref
from typing import Any

import torch
from torch import Tensor

_EMBEDDINGS = ("text_embeddings", "uncond_text_embeddings", "text_embeddings_vd", "uncond_text_embeddings_vd")
_OVERHEAD = 3  # the place among the directions that upstream's perp-neg treats apart


class Digests:
    """Short names of tensors by their numbers: equal in every process, new when a number changes.

    A tensor is read when it is new or was written to, and the GPU waited for; afterwards a look at its version is
    enough.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, str]] = {}

    def of(self, tensor: Tensor) -> str:
        version = 0 if tensor.is_inference() else tensor._version
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor and known[1] == version:
            return known[2]
        numbers = tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        self._known = {place: entry for place, entry in self._known.items() if entry[0]() is not None}
        name = hashlib.sha256(str(tuple(tensor.shape)).encode() + numbers).hexdigest()[:16]
        self._known[id(tensor)] = (weakref.ref(tensor), version, name)
        return name


class PromptConditions:
    """One id per view: the prompt's text, its embeddings, and the direction whose words it is given."""

    def __init__(self) -> None:
        self._digests = Digests()

    def limit(self, prompt: Any, view_dependent: bool) -> int:
        """How many ids there can be: as many tables the memory is shared among."""
        if not (view_dependent or prompt.use_perp_neg):
            return 1
        return len(prompt.directions) + bool(prompt.use_perp_neg)

    def ids(self, prompt: Any, poses: Tensor, view_dependent: bool) -> list[tuple[Any, ...]]:
        """Ids of the views seen from ``poses`` (``[B, 3]`` on the host: elevation, azimuth, distance)."""
        text = (prompt.prompt, *(self._digests.of(getattr(prompt, name)) for name in _EMBEDDINGS))
        if not (view_dependent or prompt.use_perp_neg):
            return [text] * len(poses)
        places = torch.zeros(len(poses), dtype=torch.long)
        for direction in prompt.directions:
            places[direction.condition(*poses.T)] = prompt.direction2idx[direction.name]
        if not prompt.use_perp_neg:
            return [(*text, place) for place in places.tolist()]
        # Perp-neg blends front with side, or side with back; which two changes at 90 degrees.
        in_front = (((poses[:, 1] + 180.0) % 360.0 - 180.0).abs() < 90.0).tolist()
        pairs = zip(places.tolist(), in_front, strict=True)
        return [(*text, "perp-neg", place, None if place == _OVERHEAD else front) for place, front in pairs]


class PictureConditions:
    """One id for all views: the input picture's embeddings, and where it was taken from."""

    _POSE = ("cond_elevation_deg", "cond_azimuth_deg", "cond_camera_distance")

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._digests = Digests()

    def id(self, guidance: Any) -> tuple[Any, ...]:
        pictures = (self._digests.of(getattr(guidance, name)) for name in self._names)
        return ("picture", *pictures, *(float(getattr(guidance.cfg, name)) for name in self._POSE))
