"""Diffusion models in three parts: head, deep, tail, cut at any position; one adapter per kind of model."""

from __future__ import annotations

from .adapter import Adapter, SplitModel, find_adapter, register_adapter
from .bound_call import BoundCall
from .call import UNetCall
from .condition import ConditionAdapter
from .layout import count_positions
from .ldm import LdmAdapter
from .multi_view import multi_view, pose_from_camera
from .split import Conditioning, SplitUNet
from .transformer import TransformerAdapter
from .unconditional import UnconditionalAdapter

for _kind in (TransformerAdapter, LdmAdapter, UnconditionalAdapter, ConditionAdapter):
    register_adapter(_kind)

__all__ = [
    "Adapter",
    "BoundCall",
    "Conditioning",
    "SplitModel",
    "SplitUNet",
    "UNetCall",
    "count_positions",
    "find_adapter",
    "multi_view",
    "pose_from_camera",
    "register_adapter",
]
