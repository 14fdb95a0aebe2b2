"""Surfaces of fields and their rasterisation: against slow ones, gradients against differences."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hash3d_cuda.cameras import camera_rays, camera_to_world
from hash3d_cuda.sds.scenes import BOUND
from hash3d_cuda.sds.scenes.isosurface import distance_field, find_topology, place_vertices
from hash3d_cuda.sds.scenes.mesh import MeshScene, vertex_normals
from hash3d_cuda.sds.scenes.raster import NvdiffrastRaster, TorchRaster, rasterise, visible_faces

trimesh = pytest.importorskip("trimesh")
POSES = torch.tensor([20.0, -35.0]), torch.tensor([10.0, 100.0]), torch.tensor([2.0, 1.8])


def noise(seed, side=10):
    field = torch.randn(side, side, side, generator=torch.Generator().manual_seed(seed))
    return F.pad(field, (1,) * 6, value=-1.0)


def trimesh_of(field):
    topology = find_topology(field > 0)
    return topology, trimesh.Trimesh(place_vertices(topology, field).numpy(), topology.faces.numpy(), process=False)


@pytest.mark.parametrize("seed", range(3))
def test_a_surface_of_noise_is_closed_and_looks_outward(seed):
    """Noise has every case of marching cubes, those with a vertex in the middle of a cell, too."""
    field = noise(seed)
    topology, mesh = trimesh_of(field)
    sides = np.bincount(mesh.faces_unique_edges.ravel())
    assert (sides % 2 == 0).all() and mesh.is_winding_consistent and mesh.volume > 0
    assert len(topology.edges) == len(topology.faces) * 3 // 2
    flat = field.flatten()
    assert (flat[topology.inner] > 0).all() and (flat[topology.outer] <= 0).all()
    corners = [torch.stack(torch.unravel_index(v, field.shape), 1) for v in (topology.inner, topology.outer)]
    assert ((corners[0] - corners[1]).abs().sum(1) == 1).all(), "neighbours on the grid"
    shared = [set(topology.faces[side].tolist()) for side in topology.sides[7].tolist()]
    assert set(topology.edges[7].tolist()) <= shared[0] & shared[1]


def test_vertices_lie_where_the_field_is_zero_and_follow_it():
    line = torch.linspace(-1, 1, 13, dtype=torch.float64)
    places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    field = 0.6 - places @ torch.tensor([0.3, 0.2, 0.93], dtype=torch.float64)
    field[0], field[-1], field[:, 0], field[:, -1], field[..., 0], field[..., -1] = [torch.tensor(-1.0).double()] * 6
    topology = find_topology(field > 0)
    vertices = place_vertices(topology, field) / 6 - 1
    plane = (vertices[:, 2] > 0.3) & (vertices.abs() < 0.8).all(1)
    assert plane.sum() > 80
    error = vertices[plane] @ torch.tensor([0.3, 0.2, 0.93], dtype=torch.float64) - 0.6
    assert error.abs().max() < 1e-9
    values = noise(0, side=2).double().requires_grad_()
    known = find_topology(values.detach() > 0)
    assert torch.autograd.gradcheck(lambda f: place_vertices(known, f), [values])


def test_a_distance_field_is_a_distance():
    line = torch.linspace(-1, 1, 21)
    radius = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0)
    steep = torch.sigmoid((0.6 - radius) * 40)
    distance = torch.from_numpy(distance_field(steep.numpy(), 0.5))
    assert torch.equal(distance > 0, steep > 0.5)
    torch.testing.assert_close(distance, (0.6 - radius) * 10, rtol=0.05, atol=0.3)


def test_the_nearest_triangle_is_seen():
    """Random triangles in either winding, also beside the view, against a loop over all of them."""
    generator = torch.Generator().manual_seed(0)
    pixel = torch.rand(2, 60, 2, generator=generator) * 24 - 4
    depth = 1 + torch.rand(2, 60, generator=generator)
    faces = torch.arange(60).view(20, 3)
    for size in (16, 5):
        seen = visible_faces(pixel, depth, faces, size)
        expected, nearest = torch.full((2, size, size), -1), torch.full((2, size, size), torch.inf).double()
        line = torch.arange(size).double() + 0.5
        for view in range(2):
            for number, face in enumerate(faces):
                basis = torch.cat([pixel[view, face].double().T, torch.ones(1, 3).double()])
                y, x = torch.meshgrid(line, line, indexing="ij")
                weights = torch.linalg.inv(basis) @ torch.stack([x.flatten(), y.flatten(), torch.ones(size**2)])
                far = (1 / (weights / depth[view, face].double()[:, None]).sum(0)).view(size, size)
                closer = (weights >= 0).all(0).view(size, size) & (far < nearest[view])
                expected[view][closer], nearest[view][closer] = number, far[closer]
        assert torch.equal(seen, expected)
        assert (seen >= 0).float().mean() > 0.3


def test_triangles_in_parts_are_the_same_triangles(monkeypatch):
    vertices, topology = MeshScene(16).surface()
    whole = rasterise(vertices, topology, *POSES, 24)
    monkeypatch.setattr("hash3d_cuda.sds.scenes.raster.PAIRS_AT_A_TIME", 50)
    assert torch.equal(rasterise(vertices, topology, *POSES, 24).face, whole.face)


def test_a_pixel_shows_the_place_on_its_ray():
    vertices, topology = MeshScene(12).surface()
    raster = rasterise(vertices, topology, *POSES, 32)
    seen = raster.interpolate(vertices)[raster.covered]
    origins, directions = (v[raster.covered] for v in camera_rays(camera_to_world(*POSES), 32))
    assert torch.linalg.cross(seen - origins, directions, dim=-1).norm(dim=-1).max() < 1e-5
    facing = (raster.interpolate(vertex_normals(vertices, topology.faces))[raster.covered] * directions).sum(-1)
    assert facing.mean() < -0.5, "the near side"
    assert (raster.interpolate(vertices)[~raster.covered] == 0).all()


def test_soft_outlines_are_close_to_coverage():
    """Against the share of 8x8 sub-pixels that the mesh covers."""
    vertices, topology = MeshScene(24).surface()
    coarse, fine = (rasterise(vertices, topology, *POSES, size) for size in (20, 160))
    truth = F.avg_pool2d(fine.covered.float()[:, None], 8)[:, 0]
    hard = coarse.covered.float()
    soft = coarse.soften(hard[..., None])[..., 0]
    assert (soft - truth).abs().sum() < 0.3 * (hard - truth).abs().sum()
    assert float(soft.sum().detach()) == pytest.approx(float(truth.sum()), rel=5e-3)
    assert soft.min() >= 0 and soft.max() <= 1


@pytest.mark.parametrize("shading", [None, "normal", "lambert"])
def test_gradients_of_the_field_against_differences(shading):
    """In double precision, along random directions: inside by places and normals, outside by the outline."""
    scene = MeshScene(12).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        scene.colour.copy_(torch.randn(scene.colour.shape, generator=generator))
    pose = [pose.double() for pose in POSES]
    weight = torch.rand(2, 3, 16, 16, generator=generator).double()
    loss = lambda: (scene.render(*pose, 16, shading).image * weight).sum()  # noqa: E731
    loss().backward()
    gradient, field = scene.field.grad.clone(), scene.field.detach().clone()
    for _ in range(3):
        way = torch.randn(field.shape, generator=generator).double()
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                scene.field.copy_(field + step * way)
                ends.append(float(loss()))
        assert float((gradient * way).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)


def test_a_mesh_of_nothing_is_an_empty_view():
    scene = MeshScene(8)
    with torch.no_grad():
        scene.field.fill_(-1.0)
    view = scene.render(*POSES, 8, "lambert")
    assert (view.image == 1).all() and (view.alpha == 0).all()
    with pytest.raises(ValueError, match="shrunk to nothing"):
        scene.mesh()


def test_a_shape_that_reaches_the_rim_is_closed():
    scene = MeshScene(8)
    with torch.no_grad():
        scene.field.fill_(1.0)
    vertices, faces, _, _ = scene.mesh()
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight
    assert np.abs(vertices).max() < BOUND * 1.2


def test_nvdiffrast_is_called_with_the_same_camera(monkeypatch):
    """nvdiffrast's documented conventions, played by a stand-in: clip space, row 0 at y = -1, triangle ids from 1."""

    def rasterize(glctx, pos, tri, resolution, ranges=None, grad_db=True):
        assert tri.dtype == torch.int32 and pos.is_contiguous() and glctx == "context"
        places = pos[..., :3] / pos[..., 3:]
        assert places.abs().max() < 1
        face = visible_faces((places[..., :2] + 1) / 2 * resolution[0], pos[..., 3], tri.long(), resolution[0])
        return torch.stack([face + 1.0] * 4, -1), None

    def interpolate(attr, rast, tri, rast_db=None, diff_attrs=None):
        return attr[tri.long()[(rast[..., 3] - 1).clamp_min(0).long()]].mean(-2), None

    def antialias(color, rast, pos, tri, topology_hash=None, pos_gradient_boost=1.0):
        return color + 0 * pos.sum()

    module = types.SimpleNamespace(rasterize=rasterize, interpolate=interpolate, antialias=antialias)
    module.RasterizeCudaContext = lambda device=None: "context"
    package = types.ModuleType("nvdiffrast")
    package.torch = module
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", module)
    scene = MeshScene(16)
    vertices, topology = scene.surface()
    monkeypatch.setattr(
        "hash3d_cuda.sds.scenes.mesh.rasterise",
        lambda *values: NvdiffrastRaster(rasterise(*values).local, topology, values[5]),
    )
    monkeypatch.setattr(TorchRaster, "local", None, raising=False)
    plain = TorchRaster.__init__

    def remember(self, local, *values):
        plain(self, local, *values)
        self.local = local

    monkeypatch.setattr(TorchRaster, "__init__", remember)
    expected = rasterise(vertices, topology, *POSES, 24)
    view = scene.render(*POSES, 24, "lambert")
    assert torch.equal(view.alpha[:, 0] > 0.5, expected.covered)
    view.image.sum().backward()
    assert scene.field.grad.isfinite().all()


def test_nvdiffrast_cannot_be_had_here():
    scene = MeshScene(8, rasteriser="nvdiffrast")
    with pytest.raises(ValueError, match=r"^rasteriser: .*nvdiffrast"):
        scene.render(*POSES, 8)
    with pytest.raises(ValueError, match=r"^rasteriser: "):
        MeshScene(8, rasteriser="opengl")
