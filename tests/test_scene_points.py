"""Gaussians that start from points, and gsplat's densification."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from hash3d_cuda.sds.scenes import BOUND, Points, load_points, make_scene, sphere_points
from hash3d_cuda.sds.scenes import densify as densify_module
from hash3d_cuda.sds.scenes import gaussians as gaussians_module
from hash3d_cuda.sds.scenes import splat as splat_module
from hash3d_cuda.sds.scenes.points import FILL
from hash3d_cuda.sds.scenes.splat import Gaussians, splat_gsplat, splat_torch, world_to_camera

trimesh = pytest.importorskip("trimesh")
POSES = torch.tensor([20.0, -35.0]), torch.tensor([0.0, 100.0]), torch.tensor([2.0, 1.8])


def start(points, **options):
    return make_scene("gaussians", size=200, seed=0, device="cpu", points=points, **options)


def test_gaussians_start_at_given_points_in_their_colours():
    generator = torch.Generator().manual_seed(1)
    places = (torch.rand(50, 3, generator=generator) - 0.5) * 0.5
    colours = torch.rand(50, 3, generator=generator) * 0.9 + 0.05
    g = start(Points(places, colours)).gaussians()
    assert torch.equal(g.mean, places) and len(g.opacity) == 50
    torch.testing.assert_close(g.colour, colours)
    nearest = (torch.cdist(places, places) + torch.eye(50)).amin(1)
    torch.testing.assert_close(g.scale, nearest.clamp(0.002, 0.12)[:, None].expand(-1, 3), rtol=1e-3, atol=1e-5)
    grey = start(Points(places)).gaussians().colour
    assert (grey - 0.5).abs().max() < 0.15
    latent = start(Points(places, colours), channels=4, latent=True)
    assert latent.colour.shape == (50, 4) and torch.equal(latent.mean.detach(), places)
    assert len(start(Points(places[:1])).mean) == 1


def test_the_usual_start_is_points_in_a_ball():
    ball, sphere = sphere_points(500, 3, radius=0.4), sphere_points(500, 3, radius=0.4, surface=True)
    assert ball.places.norm(dim=1).max() <= 0.4 and ball.places.norm(dim=1).min() < 0.2
    torch.testing.assert_close(sphere.places.norm(dim=1), torch.full((500,), 0.4))
    plain = make_scene("gaussians", size=200, seed=0, device="cpu")
    assert torch.equal(plain.mean.detach(), sphere_points(200, 0).places)


def test_a_mesh_file_is_sampled_evenly_and_turned_upright(tmp_path):
    """A long box along y, which is up in glTF and stays y elsewhere; red above the middle."""
    box = trimesh.creation.box((0.5, 4.0, 1.0))
    box = box.subdivide().subdivide()
    red = box.vertices[:, 1:2] > 0
    box.visual.vertex_colors = np.where(red, [[255, 0, 0, 255]], [[0, 0, 255, 255]]).astype(np.uint8)
    for suffix, up in (("glb", 2), ("ply", 1)):
        box.apply_translation([7.0, 0, 0])
        box.export(tmp_path / f"box.{suffix}")
        points = load_points(tmp_path / f"box.{suffix}", 400, seed=0)
        size = points.places.amax(0) - points.places.amin(0)
        assert len(points.places) == 400 and int(size.argmax()) == up
        assert points.places.norm(dim=1).max() == pytest.approx(FILL, abs=1e-5)
        top = points.places[:, up] > 0.2
        assert top.sum() > 50 and (points.colours[top][:, 0] > 0.9).all()
        again = load_points(tmp_path / f"box.{suffix}", 400, seed=0)
        assert torch.equal(again.places, points.places) and torch.equal(again.colours, points.colours)
        assert len(start(tmp_path / f"box.{suffix}").mean) == 200


def test_a_point_cloud_is_thinned_or_taken_whole(tmp_path):
    places = np.random.default_rng(0).normal(size=(300, 3))
    colours = np.tile(np.array([[0, 255, 0, 255]], np.uint8), (300, 1))
    trimesh.PointCloud(places, colours).export(tmp_path / "cloud.ply")
    few, all_ = load_points(tmp_path / "cloud.ply", 100, 0), load_points(tmp_path / "cloud.ply", 1000, 0)
    assert len(few.places) == 100 and len(all_.places) == 300
    assert (all_.colours == torch.tensor([0.0, 1.0, 0.0])).all()
    assert len({tuple(row) for row in few.places.tolist()}) == 100


def test_wrong_points_are_named(tmp_path):
    (tmp_path / "no.ply").write_text("not a mesh")
    (tmp_path / "no.xyz3").write_text("not a mesh")
    with pytest.raises(FileNotFoundError, match=r"^points: no file"):
        start(tmp_path / "missing.ply")
    for name in ("no.ply", "no.xyz3"):
        with pytest.raises(ValueError, match=r"^points: .*no\.") as caught:
            start(tmp_path / name)
        assert "\n" not in str(caught.value)
    for places, colours in (
        (torch.zeros(0, 3), None), (torch.zeros(3), None), (torch.tensor([[0.0, torch.nan, 0.0]]), None),
        (torch.zeros(2, 3), torch.zeros(3, 3)), (torch.zeros(2, 3).long(), None),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^points\."):
            Points(places, colours)
    with pytest.raises(ValueError, match=r"^points: "):
        make_scene("voxels", size=8, seed=0, device="cpu", points=sphere_points(10, 0))


class StandInStrategy:
    """``gsplat.DefaultStrategy`` as far as it is used: doubles the half of the Gaussians that is pulled most."""

    key_for_gradient = "means2d"
    refine_start_iter, refine_stop_iter, refine_every, reset_every = 500, 15_000, 100, 3000

    def initialize_state(self, scene_scale=1.0):
        return {"grad2d": None, "count": None, "scene_scale": scene_scale}

    def step_post_backward(self, params, optimizers, state, step, info, packed=False):
        assert {"means", "scales", "quats", "opacities"} <= set(params) and set(params) == set(optimizers)
        assert not packed and state["scene_scale"] == BOUND
        pull = info["means2d"].grad.norm(dim=-1).sum(0)
        if self.refine_start_iter < step < self.refine_stop_iter and step % self.refine_every == 0:
            chosen = pull.argsort(descending=True)[: len(pull) // 2]
            for name, value in list(params.items()):
                params[name] = torch.nn.Parameter(torch.cat([value, value[chosen]]))


@pytest.fixture(params=["stand-in", "gsplat"])
def gsplat(request, monkeypatch):
    """gsplat's strategy, its own where gsplat is installed; views are drawn in torch with what its kernels report."""

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, eps2d, packed):
        rotation = viewmats[:, :3, :3]
        position, kept = -(rotation.mT @ viewmats[:, :3, 3:])[..., 0], {}

        def project(*values):
            kept["means2d"], variance, depth = splat_project(*values)
            kept["radii"] = variance.detach()[..., ::2].sqrt()
            return kept["means2d"], variance, depth

        with monkeypatch.context() as patch:
            patch.setattr(splat_module, "project", project)
            view = splat_torch(
                Gaussians(means, scales, quats, opacities, colors), rotation, position, width,
                colors.new_zeros(colors.shape[1]),
            )  # fmt: skip
        meta = {**kept, "width": width, "height": height, "n_cameras": len(viewmats), "gaussian_ids": None}
        return view.image.permute(0, 2, 3, 1), view.alpha.permute(0, 2, 3, 1), meta

    def splat(gaussians, elevation, azimuth, radius, size, background=None, info=None):
        view = world_to_camera(gaussians_module.camera_to_world(elevation, azimuth, radius))
        return splat_gsplat(gaussians, *view, size, background, info)

    splat_project = splat_module.project
    strategy = pytest.importorskip("gsplat").DefaultStrategy if request.param == "gsplat" else StandInStrategy
    module = types.SimpleNamespace(rasterization=rasterization, DefaultStrategy=strategy)
    monkeypatch.setitem(sys.modules, "gsplat", module)
    monkeypatch.setattr(gaussians_module, "splat", splat)
    return densify_module.GsplatStrategy


def test_gsplats_strategy_adds_gaussians_and_the_optimizer_goes_on(gsplat):
    torch.manual_seed(0)
    scene = make_scene("gaussians", size=60, seed=0, device="cpu")
    scene.strategy = gsplat()
    scene.strategy.strategy.grow_grad2d = 1e-6
    optimizer, counts = torch.optim.Adam(scene.parameter_groups(1.0)), [60]
    # a run of 600 steps refines every 32nd from the 30th to the 420th
    for step, refined in ((31, False), (32, True), (33, False), (64, True), (448, False)):
        shading = "textureless" if step % 2 else None
        loss = (scene.render(*POSES, 16, shading).image - 0.2).square().mean()
        with torch.no_grad():
            scene.render(*POSES, 8)  # a look in between changes nothing
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        renewed = scene.on_step(step, 600)
        if renewed:
            optimizer = torch.optim.Adam(scene.parameter_groups(1.0))
        counts.append(len(scene.mean))
        assert renewed == refined == (counts[-1] > counts[-2])
    assert {len(p) for p in scene.parameters()} == {counts[-1]}
    assert all(p.requires_grad and p.is_leaf for p in scene.parameters())
    other = make_scene("gaussians", size=60, seed=1, device="cpu")
    other.load_state_dict(scene.state_dict())
    assert torch.equal(other.mean, scene.mean)


def test_a_step_without_gradients_changes_nothing(gsplat):
    scene = make_scene("gaussians", size=60, seed=0, device="cpu")
    scene.strategy = gsplat()
    assert not scene.on_step(6, 24) and len(scene.mean) == 60


def test_densification_is_chosen_by_name(monkeypatch):
    assert make_scene("gaussians", size=10, seed=0, device="cpu", densify="auto").strategy is None
    with pytest.raises(ValueError, match=r"^densify: .*gsplat"):
        make_scene("gaussians", size=10, seed=0, device="cpu", densify="gsplat")
    with pytest.raises(ValueError, match=r"^densify: "):
        make_scene("gaussians", size=10, seed=0, device="cpu", densify="more")
    monkeypatch.setattr(densify_module, "has_gsplat", lambda: True)
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(DefaultStrategy=StandInStrategy))
    cuda = torch.device("cuda")
    assert densify_module.make_strategy("move", cuda) is None
    for name in ("auto", "gsplat"):
        assert isinstance(densify_module.make_strategy(name, cuda), densify_module.GsplatStrategy)
