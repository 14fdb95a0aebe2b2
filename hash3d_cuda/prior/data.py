"""Rendered views as training batches."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """B views: object indices int64 [B], pictures float [B,3,S,S] in 0..1, (elevation, azimuth, radius) float [B,3]."""

    index: Tensor
    images: Tensor
    poses: Tensor


class Views:
    """All views of all objects, held as uint8 in memory.

    Args:
        path: an ``.npz`` with ``images`` uint8 [N,V,S,S,3], ``poses`` float [N,V,3], ``names`` [N].
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"data: no file {str(path)!r}; make one with `hash3d prepare-data --out DIR`")
        with np.load(path, allow_pickle=False) as file:
            missing = {"images", "poses", "names"} - set(file.files)
            if missing:
                raise ValueError(f"data: {str(path)!r} lacks {sorted(missing)}; make it with `hash3d prepare-data`")
            self.images = torch.from_numpy(file["images"]).permute(0, 1, 4, 2, 3).contiguous()
            self.poses = torch.from_numpy(file["poses"].astype(np.float32))
            self.names = [str(name) for name in file["names"]]

    def take(self, index: Tensor, view: Tensor) -> Batch:
        """The named views: ``index`` and ``view`` int64 [B]."""
        return Batch(index, self.images[index, view].float() / 255, self.poses[index, view])

    def sample(self, batch: int, generator: torch.Generator) -> Batch:
        """``batch`` views drawn evenly over objects and views."""
        objects, views = self.images.shape[:2]
        index = torch.randint(objects, (batch,), generator=generator)
        return self.take(index, torch.randint(views, (batch,), generator=generator))
