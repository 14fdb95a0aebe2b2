"""Scenes whose views are a prior's latents, and the pictures of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hash3d_cuda.sds.export import write_glb, write_ply
from hash3d_cuda.sds.scenes import make_scene
from hash3d_cuda.sds.scenes.decoded import DecodedScene
from hash3d_cuda.sds.scenes.mesh import MeshScene

POSES = torch.tensor([20.0, -35.0]), torch.tensor([0.0, 100.0]), torch.tensor([2.0, 1.8])
SIZES = {"voxels": 16, "gaussians": 400}
both = pytest.mark.parametrize("kind", list(SIZES))


def latent_scene(kind, channels=4, seed=0):
    return make_scene(kind, size=SIZES[kind], seed=seed, device="cpu", channels=channels, latent=True)


def solid(scene):
    """The scene made opaque, its channels 3, -3, 3, -3 and so on."""
    with torch.no_grad():
        if hasattr(scene, "density"):
            line = torch.linspace(-0.5, 0.5, 16)
            distance = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0)
            scene.density[-1][0, 0] = 200 * (0.3 - distance)
            for level in scene.colour:
                level.zero_()
            scene.colour[0][:, ::2], scene.colour[0][:, 1::2] = 3.0, -3.0
        else:
            scene.opacity.fill_(6.0)
            scene.colour[:, ::2], scene.colour[:, 1::2] = 3.0, -3.0
    return scene


def shuffle(latents):
    """Twelve channels to pictures of twice the size: -3..3 to 0..1."""
    return F.pixel_shuffle(latents, 2) / 6 + 0.5


@both
def test_latents_are_unbounded_and_lie_over_a_background_that_learns(kind):
    scene = solid(latent_scene(kind))
    view = scene.render(*POSES, 16)
    assert view.image.shape == (2, 4, 16, 16) and view.alpha.shape == (2, 1, 16, 16)
    middle = view.image[:, :, 7:9, 7:9]
    assert (middle[:, ::2] > 2).all() and (middle[:, 1::2] < -2).all()
    with torch.no_grad():
        scene.background.copy_(torch.tensor([5.0, 6.0, 7.0, 8.0]))
        moved = scene.render(*POSES, 16)
    step = scene.background.detach()[:, None, None] * (1 - view.alpha)
    torch.testing.assert_close(moved.image, view.image + step, rtol=1e-4, atol=1e-4)


@both
def test_every_parameter_of_a_latent_scene_learns_and_is_saved(kind):
    scene, other = latent_scene(kind), latent_scene(kind, seed=1)
    (scene.render(*POSES, 16).image.square().mean() + scene.regularisation()).backward()
    grouped = [p for group in scene.parameter_groups(1.0) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in scene.parameters()}
    with torch.no_grad():
        scene.background.fill_(0.5)
    wanted = scene.render(*POSES, 16).image
    other.load_state_dict(scene.state_dict())
    assert torch.equal(other.render(*POSES, 16).image, wanted)
    loss = (scene.render(*POSES, 16).image - 1).square().mean()
    scene.zero_grad()
    loss.backward()
    assert scene.background.grad.abs().min() > 0


@both
def test_latent_scenes_cannot_be_lit_nor_written_as_they_are(kind, tmp_path):
    scene = latent_scene(kind)
    with pytest.raises(ValueError, match=r"^shading: .*latent"):
        scene.render(*POSES, 8, "lambert")
    for write, name in ((write_ply, "scene.ply"), (write_glb, "mesh.glb")):
        with pytest.raises(ValueError, match=r"^scene: .*DecodedScene"):
            write(scene, tmp_path / name)
    with pytest.raises(ValueError, match=r"^scene: .*DecodedScene"):
        MeshScene.from_scene(scene)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"channels": 4}, "channels"), ({"channels": 0, "latent": True}, "channels"), ({"channels": 65}, "channels")],
)
def test_wrong_channels_are_named(options, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        make_scene("voxels", size=8, seed=0, device="cpu", **options)


@both
def test_a_decoded_scene_has_pictures_points_and_a_mesh(kind, tmp_path):
    scene = solid(latent_scene(kind, channels=12))
    with torch.no_grad():
        scene.background.fill_(3.0)  # white
    seen = DecodedScene(scene, shuffle, 2)
    with torch.no_grad():
        view = seen.render(*POSES, 32)
        latents = scene.render(*POSES, 16)
    assert torch.equal(view.image, shuffle(latents.image).clamp(0, 1)) and view.alpha.shape == (2, 1, 32, 32)
    with torch.no_grad():
        assert seen.render(*POSES, 31).image.shape == (2, 3, 31, 31)
    occupancy, colour = seen.occupancy_grid(20)
    assert colour.shape == (20, 20, 20, 3) and colour.min() >= 0 and colour.max() <= 1
    # four channels of one colour: 1, 0, 1, 0 lie in one block of two by two pixels
    inside = colour[occupancy > 0.9]
    assert (inside.mean(1) - 0.5).abs().max() < 0.1
    write_ply(seen, tmp_path / "scene.ply")
    write_glb(seen, tmp_path / "mesh.glb", resolution=24)
    mesh = MeshScene.from_scene(seen, resolution=16)
    assert len(mesh.mesh()[1]) > 50
    assert next(seen.parameters()) is next(scene.parameters())


def test_gradients_pass_through_the_decoder():
    scene = latent_scene("voxels", channels=12)
    DecodedScene(scene, shuffle, 2).render(*POSES, 16).image.mean().backward()
    assert scene.density[0].grad.abs().sum() > 0 and scene.colour[0].grad.abs().sum() > 0


def test_only_latent_scenes_are_decoded():
    with pytest.raises(ValueError, match=r"^scene: .*latent"):
        DecodedScene(make_scene("voxels", size=8, seed=0, device="cpu"), shuffle, 2)
