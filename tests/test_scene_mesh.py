"""The mesh that learns: taken from other scenes, fitted to views, saved, written."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hash3d_cuda.sds.export import write_glb, write_ply
from hash3d_cuda.sds.scenes import BOUND, make_scene
from hash3d_cuda.sds.scenes.mesh import MeshScene

trimesh = pytest.importorskip("trimesh")
POSES = torch.tensor([20.0, -35.0]), torch.tensor([0.0, 100.0]), torch.tensor([2.0, 1.8])
MIDDLE, BALL = torch.tensor([0.15, 0.0, -0.1]), 0.2


def trained(kind):
    """A red ball to one side."""
    scene = make_scene(kind, size=32 if kind == "voxels" else 1500, seed=0, device="cpu")
    with torch.no_grad():
        if kind == "voxels":
            line = torch.linspace(-BOUND, BOUND, 32)
            z, y, x = torch.meshgrid(line, line, line, indexing="ij")
            for level in [*scene.density, *scene.colour]:
                level.zero_()
            scene.density[-1][0, 0] = (BALL - (torch.stack([x, y, z], -1) - MIDDLE).norm(dim=-1)) * 200
            scene.colour[-1][0, 0], scene.colour[-1][0, 1:] = 3.0, -3.0
        else:
            scene.mean.mul_(0.95 * BALL / scene.mean.norm(dim=1, keepdim=True)).add_(MIDDLE)
            scene.opacity.fill_(4.0)
            scene.colour[:, 0], scene.colour[:, 1:] = 3.0, -3.0
    return scene


def shape(scene, distance):
    """Gives a mesh scene the surface where ``distance`` of places float [R,R,R,3] is zero; positive inside."""
    line = torch.linspace(-BOUND, BOUND, scene.resolution)
    places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    with torch.no_grad():
        scene.field.copy_(distance(places) * (scene.resolution - 1))
    return scene


# splats are drawn wider than they are solid: by their tails, and by 0.3 squared pixels
@pytest.mark.parametrize(("kind", "near"), [("voxels", 0.012), ("gaussians", 0.05)])
def test_a_mesh_looks_like_the_scene_it_comes_from(kind, near):
    scene = trained(kind)
    mesh = MeshScene.from_scene(scene, resolution=40)
    with torch.no_grad():
        before, after = scene.render(*POSES, 32), mesh.render(*POSES, 32)
    assert (before.alpha - after.alpha).abs().mean() < near
    assert (before.image - after.image).abs().mean() < near
    vertices, faces, normals, colours = mesh.mesh()
    assert np.abs(np.linalg.norm(vertices - MIDDLE.numpy(), axis=1) - BALL).max() < near
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight
    assert (normals * (vertices - MIDDLE.numpy())).sum(1).min() > 0
    assert (colours[:, 0] > 0.8).all() and (colours[:, 1:] < 0.2).all()


def test_pieces_that_float_about_are_left_behind():
    scene = trained("voxels")
    with torch.no_grad():
        scene.density[-1][0, 0, 2:4, 2:4, 16] = 100.0
    mesh = MeshScene.from_scene(scene, resolution=32)
    assert np.abs(np.linalg.norm(mesh.mesh()[0] - MIDDLE.numpy(), axis=1) - BALL).max() < 0.03


@pytest.mark.parametrize("target", ["ellipsoid", "ring"])
def test_silhouettes_pull_a_ball_into_another_shape(target):
    """Fifty steps on alpha alone; the ring needs another topology."""
    distances = {
        "ellipsoid": lambda p: 0.25 - (p * torch.tensor([0.7, 1.2, 0.9])).norm(dim=-1),
        "ring": lambda p: 0.12 - torch.stack([p[..., :2].norm(dim=-1) - 0.25, p[..., 2]], -1).norm(dim=-1),
    }
    azimuth = torch.arange(0.0, 360.0, 60.0)
    pose = torch.tensor([20.0, 60.0] * 3), azimuth, torch.full_like(azimuth, 2.0)
    with torch.no_grad():
        wanted = shape(MeshScene(16), distances[target]).render(*pose, 24).alpha
    mesh, errors = MeshScene(16), []
    optimizer = torch.optim.Adam(mesh.parameter_groups(1.0), betas=(0.9, 0.99), eps=1e-15)
    for step in range(50):
        some = [(2 * step) % 6, (2 * step + 1) % 6]
        loss = (mesh.render(*(p[some] for p in pose), 24).alpha - wanted[some]).square().mean()
        optimizer.zero_grad()
        (loss + mesh.regularisation()).backward()
        optimizer.step()
        assert not mesh.on_step(step, 50)
        errors.append(float(loss.detach()))
    assert sum(errors[-3:]) < (0.1 if target == "ellipsoid" else 0.4) * sum(errors[:3])


def test_colours_are_learnt_on_a_fixed_shape():
    """DreamGaussian's second stage."""
    mesh = MeshScene.from_scene(trained("voxels"), resolution=24, geometry=False)
    field, before = mesh.field.clone(), mesh.mesh()
    assert [id(p) for p in mesh.parameters()] == [id(mesh.colour)] and mesh.regularisation() == 0
    with torch.no_grad():
        alpha = mesh.render(*POSES, 24).alpha
    target = torch.tensor([0.1, 0.8, 0.2]).view(3, 1, 1) * alpha + (1 - alpha)
    optimizer, losses = torch.optim.Adam(mesh.parameter_groups(5.0), betas=(0.9, 0.99), eps=1e-15), []
    for _ in range(30):
        loss = (mesh.render(*POSES, 24).image - target).square().mean()
        optimizer.zero_grad()
        (loss + mesh.regularisation()).backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(mesh.field, field) and np.array_equal(mesh.mesh()[0], before[0])


@pytest.mark.parametrize("geometry", [True, False])
def test_a_saved_mesh_goes_on_exactly(geometry):
    def step(scene, optimizer):
        loss = (scene.render(*POSES, 16, "lambert").image - 0.3).square().mean() + scene.regularisation()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    first = MeshScene.from_scene(trained("voxels"), resolution=20, geometry=geometry)
    optimizers = [torch.optim.Adam(first.parameter_groups(1.0))]
    step(first, optimizers[0])
    other = MeshScene(12, geometry=geometry)
    other.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert other.resolution == 20
    optimizers.append(torch.optim.Adam(other.parameter_groups(1.0)))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for scene, optimizer in zip((first, other), optimizers, strict=True):
        step(scene, optimizer)
        step(scene, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True))
    assert torch.equal(first.render(*POSES, 16).image, other.render(*POSES, 16).image)


def test_occupancy_is_half_at_the_surface():
    mesh = MeshScene.from_scene(trained("voxels"), resolution=24)
    occupancy, colour = mesh.occupancy_grid(41)
    line = torch.linspace(-BOUND, BOUND, 41)
    places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    distance = (places - MIDDLE).norm(dim=-1)
    assert occupancy[distance < BALL - 0.04].min() == 1 and occupancy[distance > BALL + 0.04].max() == 0
    assert colour.shape == (41, 41, 41, 3) and colour[occupancy > 0.5][:, 0].min() > 0.8
    finer = MeshScene.from_scene(mesh, resolution=36)
    assert np.abs(np.linalg.norm(finer.mesh()[0] - MIDDLE.numpy(), axis=1) - BALL).max() < 0.02


def test_exports_write_the_meshs_own_triangles(tmp_path):
    mesh = MeshScene.from_scene(trained("voxels"), resolution=20)
    vertices, faces, _, _ = mesh.mesh()
    write_glb(mesh, tmp_path / "mesh.glb", resolution=99)
    write_ply(mesh, tmp_path / "scene.ply")
    ply = trimesh.load(tmp_path / "scene.ply", process=False)
    glb = trimesh.load(tmp_path / "mesh.glb", process=False, force="mesh")
    np.testing.assert_allclose(ply.vertices, vertices, atol=1e-6)
    np.testing.assert_allclose(glb.vertices, vertices[:, [1, 2, 0]], atol=1e-6)
    assert np.array_equal(ply.faces, faces) and np.array_equal(glb.faces, faces)
    assert (ply.visual.vertex_colors[:, 0] > 200).all() and (ply.visual.vertex_colors[:, 1] < 50).all()
    with torch.no_grad():
        mesh.field.fill_(-1.0)
    write_ply(mesh, tmp_path / "empty.ply")
    assert b"element vertex 0" in (tmp_path / "empty.ply").read_bytes()


def test_wrong_meshes_are_named():
    faint = make_scene("voxels", size=8, seed=0, device="cpu")
    with torch.no_grad():
        for level in faint.density:
            level.fill_(-20.0)
    with pytest.raises(ValueError, match=r"^scene: .*train it"):
        MeshScene.from_scene(faint)
    with pytest.raises(ValueError, match=r"^kind: .*from_scene"):
        make_scene("mesh", seed=0, device="cpu")
    for options, name in (({"resolution": 7}, "resolution"), ({"device": "meta"}, "device")):
        with pytest.raises(ValueError, match=f"^{name}: "):
            MeshScene(**options)
