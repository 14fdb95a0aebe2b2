"""A triangle mesh that learns: the surface of a signed field on a grid, with colours from a second grid.

This is the mesh stage of Magic3D, Fantasia3D and Magic123 (a field, as in DMTet, Shen et al. 2021, whose surface is
extracted anew for each view) and, with ``geometry=False``, the texture stage of DreamGaussian: the shape stays and
the colours learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hash3d_cuda.checks import check_choice, check_device, check_int, fail
from hash3d_cuda.sds.scenes.base import BOUND, Rendered, Scene
from hash3d_cuda.sds.scenes.isosurface import (
    Topology,
    distance_field,
    find_topology,
    large_pieces,
    place_vertices,
    without_cavities,
)
from hash3d_cuda.sds.scenes.raster import RASTERISERS, rasterise
from hash3d_cuda.sds.scenes.shading import check_shading, light_or_camera, shade, unit
from hash3d_cuda.sds.scenes.voxels import stretch, stretch_matrix

DEFAULT_RESOLUTION = 48
FIELD_RATE, COLOUR_RATE = 0.05, 0.03
"""Learning rates of Adam; the field's is in cells, so a step moves the surface by about so much."""
SMOOTH = 0.02
"""Price of a mean squared bend of the field, in cells."""
LEVEL = 0.5
COLOUR_RIM = 0.02  # colours taken over keep this far from 0 and 1, where the sigmoid would hold them for ever


class MeshScene(Scene):
    """A mesh over the cube of half-width ``BOUND``; made by :meth:`from_scene`.

    Built by itself it is a grey ball, to take a saved mesh's ``state_dict`` (of any resolution).

    Args:
        resolution: R, corners of the grids per side, 8 to 256.
        device: where it lives. On CUDA each view copies which corners are inside to the host.
        geometry: whether the shape learns, too; else only the colours do.
        rasteriser: ``"auto"``, ``"torch"`` or ``"nvdiffrast"``, see :mod:`hash3d_cuda.sds.scenes.raster`.
    """

    def __init__(
        self,
        resolution: int = DEFAULT_RESOLUTION,
        device: str | torch.device = "cpu",
        geometry: bool = True,
        rasteriser: str = "auto",
    ):
        super().__init__()
        resolution = check_int("resolution", resolution, 8, 256)
        where = check_device("device", device)
        self.rasteriser = check_choice("rasteriser", rasteriser, RASTERISERS)
        self.geometry = geometry
        line = torch.linspace(-BOUND, BOUND, resolution)
        distance = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0)
        field = ((0.6 * BOUND - distance) * (resolution - 1) / (2 * BOUND)).to(where)
        if geometry:
            self.field = nn.Parameter(field)
        else:
            self.register_buffer("field", field)
        self.colour = nn.Parameter(torch.zeros(resolution, resolution, resolution, 3, device=where))
        self._known: tuple[Tensor, Topology] | None = None

    @classmethod
    def from_scene(
        cls,
        scene: Scene,
        resolution: int = DEFAULT_RESOLUTION,
        device: str | torch.device | None = None,
        geometry: bool = True,
        rasteriser: str = "auto",
    ) -> MeshScene:
        """The surface of another scene, where its occupancy is one half, and its colours.

        Args:
            scene: has an occupancy grid; a latent one is decoded first, see
                :class:`hash3d_cuda.sds.scenes.decoded.DecodedScene`.
            resolution, geometry, rasteriser: see the class.
            device: None: that of ``scene``.

        Raises:
            ValueError: nothing is dense enough for a surface, or the scene is latent.
        """
        if scene.latent:
            fail(
                ValueError,
                "scene",
                "a scene in colours",
                f"a latent {type(scene).__name__}",
                "wrap it: DecodedScene(scene, prior.decode, scale)",
            )
        if device is None:
            device = next(scene.parameters()).device
        mesh = cls(resolution, device, geometry, rasteriser)
        occupancy, colour = scene.occupancy_grid(mesh.resolution)
        solid = large_pieces(occupancy.detach().float().cpu().numpy(), LEVEL)
        if not (solid > LEVEL).any():
            raise ValueError(
                f"scene: expected an object whose occupancy passes {LEVEL}, got at most {solid.max():.2f}; "
                "train it for more steps first"
            )
        field = distance_field(np.pad(without_cavities(solid, LEVEL), 1), LEVEL)[1:-1, 1:-1, 1:-1]
        with torch.no_grad():
            mesh.field.copy_(torch.from_numpy(field))
            mesh.colour.copy_(torch.logit(colour, eps=COLOUR_RIM))
        return mesh

    @property
    def resolution(self) -> int:
        """Corners per side."""
        return len(self.field)

    def surface(self) -> tuple[Tensor, Topology]:
        """Vertices float [V,3] in scene units, differentiable with respect to the field, and how they are joined.

        Corners on the rim of the cube count as outside, so the surface is closed.
        """
        closed = F.pad(self.field, (1,) * 6, value=-1.0)
        inside = closed.detach() > 0
        if self._known is None or not torch.equal(self._known[0], inside):
            self._known = inside, find_topology(inside)
        topology = self._known[1]
        places = place_vertices(topology, closed) - 1
        return places * (2 * BOUND / (self.resolution - 1)) - BOUND, topology

    def colour_at(self, places: Tensor) -> Tensor:
        """Colours float [N,3] in 0..1 at places float [N,3] in scene units."""
        grid = self.colour.permute(3, 2, 1, 0)[None]
        raw = F.grid_sample(grid, places.view(1, 1, 1, -1, 3) / BOUND, padding_mode="border", align_corners=True)
        return raw[0, :, 0, 0].T.sigmoid()

    def render(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        radius: Tensor,
        size: int,
        shading: str | None = None,
        light: Tensor | None = None,
    ) -> Rendered:
        """See :meth:`Scene.render`; colours are looked up at the place that each pixel sees, normals are blended from
        the vertices'."""
        shading = check_shading(shading, self.latent)
        pose = (elevation, azimuth, radius)
        vertices, topology = self.surface()
        raster = rasterise(vertices, topology, *pose, size, self.rasteriser)
        seen = raster.covered.flatten().nonzero()[:, 0]
        colour = self.colour_at(raster.interpolate(vertices).flatten(0, 2)[seen])
        values = torch.cat([colour, torch.ones_like(colour[:, :1])], 1)
        if shading is not None:
            normals = raster.interpolate(vertex_normals(vertices, topology.faces)).flatten(0, 2)[seen]
            # moved to 0 and up, as colours are, for the blending at the outline
            values = torch.cat([values, 0.5 * unit(normals) + 0.5], 1)
        flat = values.new_zeros(raster.covered.numel(), values.shape[1]).index_copy(0, seen, values)
        views = raster.soften(flat.view(*raster.covered.shape, -1)).permute(0, 3, 1, 2)
        colour, alpha, normal = views.split([3, 1, views.shape[1] - 4], 1)
        if shading is None:
            return Rendered(colour + (1 - alpha), alpha)
        return shade(colour, alpha, 2 * normal - alpha, shading, light_or_camera(light, *pose))

    def regularisation(self) -> Tensor:
        """A small price on bends of the field, which keeps it a distance and its surface smooth."""
        if not self.geometry:
            return self.colour.new_zeros(())
        bends = [self.field.diff(n=2, dim=dim).square().mean() for dim in range(3)]
        return SMOOTH * torch.stack(bends).sum()

    def parameter_groups(self, lr_scale: float) -> list[dict[str, Any]]:
        """See :meth:`Scene.parameter_groups`."""
        groups: list[dict[str, Any]] = [{"params": [self.colour], "lr": COLOUR_RATE * lr_scale}]
        return [{"params": [self.field], "lr": FIELD_RATE * lr_scale}, *groups] if self.geometry else groups

    @torch.no_grad()
    def occupancy_grid(self, resolution: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Scene.occupancy_grid`: one half at the surface, 0 and 1 half a cell from it."""
        matrix = stretch_matrix(self.resolution, resolution).to(self.field.device)
        both = torch.cat([self.field[None, None], self.colour.permute(3, 0, 1, 2)[None]], 1)
        field, colour = stretch(both, matrix)[0].split([1, 3])
        return (0.5 + field[0]).clamp(0, 1), colour.permute(1, 2, 3, 0).sigmoid()

    @torch.no_grad()
    def mesh(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Vertices float [V,3] in world axes, faces int [F,3] (counter-clockwise from outside), normals float [V,3]
        and colours float [V,3] in 0..1; raises ValueError when there are none."""
        vertices, topology = self.surface()
        if len(vertices) == 0:
            raise ValueError("the mesh has shrunk to nothing; lower the learning rate or start from another scene")
        values = vertices, topology.faces, vertex_normals(vertices, topology.faces), self.colour_at(vertices)
        return tuple(value.cpu().numpy() for value in values)  # type: ignore[return-value]

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes over another resolution, too."""
        field, colour = state.get(prefix + "field"), state.get(prefix + "colour")
        if field is not None and colour is not None and colour.shape == (*field.shape, 3):
            if field.shape != self.field.shape:
                empty = self.field.new_empty(field.shape)
                self.field = nn.Parameter(empty) if self.geometry else empty
                self.colour = nn.Parameter(self.colour.new_empty(colour.shape))
            self._known = None
        super()._load_from_state_dict(state, prefix, *args, **kwargs)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Outward normals float [V,3], each the mean of its faces' by their area."""
    a, b, c = vertices[faces].unbind(1)
    face = torch.linalg.cross(b - a, c - a, dim=-1)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(0, faces[:, corner], face)
    return unit(total)
