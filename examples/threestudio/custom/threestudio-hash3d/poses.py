"""Poses on the host: threestudio draws them there, and Lightning then moves the batch to the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KEY = "hash3d_poses"  # of a batch; guidances get the batch as keyword arguments
NAMES = ("elevation", "azimuth", "camera_distances")


class HostPoses:
    """Holds a ``[B, 3]`` tensor where Lightning does not look: it moves tensors, lists, mappings and dataclasses."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def keep_poses(batch: Any) -> Any:
    """Adds the host's poses to a batch on the host, and to those within it (``random_camera``); returns the batch."""
    if not isinstance(batch, dict):
        return batch
    for value in list(batch.values()):
        keep_poses(value)
    columns = [batch.get(name) for name in NAMES]
    if all(isinstance(column, Tensor) and column.device.type == "cpu" and column.dim() == 1 for column in columns):
        batch[KEY] = HostPoses(torch.stack([column.float() for column in columns], dim=1))
    return batch


def poses_of(arguments: Mapping[str, Any], kept: HostPoses | None) -> tuple[Tensor, int]:
    """The poses of a guidance's call, float32 ``[B, 3]`` on the host, and how many copies from a GPU that took."""
    if kept is not None:
        return kept.tensor, 0
    columns = [arguments[name].detach().float() for name in NAMES]
    stacked = torch.stack(columns, dim=1)
    return stacked.cpu(), int(stacked.device.type != "cpu")
