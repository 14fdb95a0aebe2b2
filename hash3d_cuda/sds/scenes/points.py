"""Where Gaussians start: points of a file, or spread at random in or on a sphere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hash3d_cuda.checks import check_int, check_positive, fail

FILL = 0.45
"""Radius about the origin to which the points of a file are scaled."""


@dataclass(frozen=True)
class Points:
    """First places of Gaussians.

    Attributes:
        places: float [N,3] in world axes (z up, front to +x), inside the sphere of radius ``BOUND``.
        colours: float [N,3] in 0..1, or None for grey with a little noise.
    """

    places: Tensor
    colours: Tensor | None = None

    def __post_init__(self) -> None:
        places, colours = self.places, self.colours
        if not isinstance(places, Tensor) or places.dim() != 2 or places.shape[1] != 3 or len(places) == 0:
            fail(ValueError, "points.places", "a float tensor of shape [N, 3]", places, "pass at least one point")
        if not places.is_floating_point() or not bool(places.isfinite().all()):
            fail(ValueError, "points.places", "finite floats", places, "pass places in scene units")
        if colours is not None and (not isinstance(colours, Tensor) or colours.shape != places.shape):
            expected = f"a float tensor of shape {list(places.shape)} or None"
            fail(ValueError, "points.colours", expected, colours, "pass one colour in 0..1 per point")


def sphere_points(count: int, seed: int, radius: float = 0.35, surface: bool = False) -> Points:
    """``count`` points spread evenly in a ball (DreamGaussian, Tang et al. 2023) or, with ``surface``, on a sphere."""
    count, radius = check_int("count", count, 1, 10**7), check_positive("radius", radius)
    generator = torch.Generator().manual_seed(check_int("seed", seed, 0))
    way = F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    if surface:
        return Points(way * radius)
    return Points(way * radius * torch.rand(count, 1, generator=generator).pow(1 / 3))


def load_points(path: str | Path, count: int, seed: int) -> Points:
    """Points of a mesh's surface, or of a point cloud, as a start in the manner of GaussianDreamer (Yi et al. 2023).

    The object is moved to the origin and scaled to radius ``FILL``. glTF files have y up and their front towards +z
    and are turned accordingly; other files are taken to have z up.

    Args:
        path: any file that trimesh reads: PLY, OBJ, STL, GLB, XYZ and others.
        count: how many; a point cloud with more is thinned, one with fewer is taken whole.
        seed: of the choice.

    Raises:
        OSError: the file is missing.
        ValueError: it holds no geometry.
    """
    import trimesh

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"points: no file {str(path)!r}; give a mesh or a point cloud")
    try:
        scene = trimesh.load_scene(path)
        parts = [part for part in scene.dump() if len(getattr(part, "vertices", ()))]
    except (ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise ValueError(f"points: trimesh cannot read {str(path)!r} ({error}); give a mesh or a point cloud") from None
    if not parts:
        raise ValueError(f"points: {str(path)!r} holds no points; give a mesh or a point cloud")
    share = [float(getattr(part, "area", 0.0)) or float(len(part.vertices)) for part in parts]
    drawn = np.random.default_rng(check_int("seed", seed, 0))
    counts = drawn.multinomial(count, np.array(share) / sum(share)) if len(parts) > 1 else [count]
    drawn_parts = [draw(part, number, drawn) for part, number in zip(parts, counts, strict=True)]
    places, colours = (np.concatenate(values) for values in zip(*drawn_parts, strict=True))
    if path.suffix.lower() in (".glb", ".gltf"):
        places = places[:, [2, 0, 1]]
    places = places - (places.max(0) + places.min(0)) / 2
    places *= FILL / max(np.linalg.norm(places, axis=1).max(), 1e-12)
    return Points(torch.from_numpy(places).float(), torch.from_numpy(colours).float())


def draw(part: Any, count: int, drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` places float [N,3] and colours float [N,3] in 0..1 of a mesh or a point cloud."""
    import trimesh

    if not isinstance(part, trimesh.Trimesh) or len(part.faces) == 0:
        colours = getattr(part, "colors", None)
        if colours is None or len(colours) != len(part.vertices):
            colours = np.full((len(part.vertices), 3), 127.5)
        chosen = np.arange(len(part.vertices))
        if count < len(chosen):
            chosen = np.sort(drawn.choice(len(chosen), count, replace=False))
        return np.asarray(part.vertices)[chosen], np.asarray(colours)[chosen, :3] / 255
    places, faces = trimesh.sample.sample_surface(part, count, seed=int(drawn.integers(2**31)))
    visual = part.visual.to_color() if hasattr(part.visual, "to_color") else part.visual
    corners = np.asarray(visual.vertex_colors)[part.faces[faces], :3] / 255
    near = trimesh.triangles.points_to_barycentric(part.triangles[faces], places)
    return np.asarray(places), np.clip((corners * near[..., None]).sum(1), 0, 1)
