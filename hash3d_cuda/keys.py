"""Keys and grids: where a camera pose and a diffusion timestep fall (section 3.2 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check_device, check_positive, describe, fail

# The order of a key's four numbers, here and in every other place. Degrees, degrees, scene units, diffusion steps.
KEY_ORDER = ("elevation", "azimuth", "radius", "timestep")
AZIMUTH = KEY_ORDER.index("azimuth")


@dataclass(frozen=True)
class Grid:
    """The four cell sizes of one hash grid, in key order. All must be positive and finite in float32."""

    elevation: float = 10.0
    azimuth: float = 10.0
    radius: float = 0.1
    timestep: float = 10.0

    def __post_init__(self) -> None:
        for name in KEY_ORDER:
            object.__setattr__(self, name, check_positive(f"Grid.{name}", getattr(self, name)))

    @property
    def sizes(self) -> tuple[float, float, float, float]:
        """The cell sizes in key order."""
        return (self.elevation, self.azimuth, self.radius, self.timestep)


# Section 4.1 of the paper, finest first.
PAPER_GRIDS = (
    Grid(10.0, 10.0, 0.1, 10.0),
    Grid(20.0, 20.0, 0.15, 20.0),
    Grid(30.0, 30.0, 0.2, 30.0),
)


def make_keys(
    elevation: float | Sequence[float] | np.ndarray | Tensor,
    azimuth: float | Sequence[float] | np.ndarray | Tensor,
    radius: float | Sequence[float] | np.ndarray | Tensor,
    timestep: float | Sequence[float] | np.ndarray | Tensor,
    device: torch.device | str | None = None,
) -> Tensor:
    """Builds keys, ``[B, 4]`` float32 in the order of ``KEY_ORDER``.

    Args:
        elevation: degrees; a number, or ``B`` numbers in a sequence, array or tensor. So are the others.
        azimuth: degrees, any multiple of the turn; the table reduces it.
        radius: scene units.
        timestep: diffusion timestep.
        device: where the keys go; by default the device of the first argument that is a CUDA tensor, else the CPU.

    Raises:
        TypeError: an argument is not numeric.
        ValueError: an argument has more than one dimension, or the lengths differ and are not 1.
    """
    columns = [
        column_of(name, value) for name, value in zip(KEY_ORDER, (elevation, azimuth, radius, timestep), strict=True)
    ]
    lengths = {len(column) for column in columns} - {1}
    if len(lengths) > 1:
        got = ", ".join(f"{name} {len(column)}" for name, column in zip(KEY_ORDER, columns, strict=True))
        raise ValueError(
            f"elevation, azimuth, radius, timestep: expected one length (or 1, which is repeated), got {got}; "
            "pass as many of each as there are views"
        )
    if device is None:
        target = next((column.device for column in columns if column.is_cuda), torch.device("cpu"))
    else:
        target = check_device("device", device)
    length = lengths.pop() if lengths else 1
    # What lies on the host goes to a GPU in one copy, which is not waited for.
    on_host = all(column.device.type == "cpu" for column in columns)
    place = torch.device("cpu") if on_host else target
    columns = [column.to(place, torch.float32, non_blocking=place.type != "cpu").expand(length) for column in columns]
    return torch.stack(columns, dim=1).to(target, non_blocking=target.type != "cpu")


def column_of(name: str, value: Any) -> Tensor:
    """Returns one component as a 1-D real tensor on the device it came on."""
    expected = "a real number, or a sequence, array or tensor of them"
    column: Tensor | None
    if isinstance(value, Tensor):
        column = value.detach()
    else:
        try:
            array = np.asarray(value)
            if array.dtype == object and isinstance(value, (Sequence, np.ndarray)):  # e.g. a list of 0-d tensors
                array = np.array([float(item) for item in value])
            column = torch.from_numpy(array.astype(np.float64, order="C")) if array.dtype.kind in "iuf" else None
        except (TypeError, ValueError, RuntimeError):
            column = None
    if column is None or column.is_complex() or column.dtype == torch.bool:
        fail(TypeError, name, expected, value, "pass numbers")
    if column.dim() > 1:
        raise ValueError(
            f"{name}: expected at most one dimension, got {describe(column)}; flatten it to one number per view"
        )
    return column.reshape(-1)
