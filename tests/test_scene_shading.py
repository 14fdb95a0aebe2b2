"""Normals and light: where normals point, what each shading shows, and that gradients pass."""

from __future__ import annotations

import pytest
import torch

from hash3d_cuda.cameras import camera_rays, camera_to_world
from hash3d_cuda.sds.scenes import BOUND, SHADINGS, make_scene
from hash3d_cuda.sds.scenes.mesh import MeshScene
from hash3d_cuda.sds.scenes.shading import AMBIENT, DIFFUSE, shade

POSES = torch.tensor([20.0, -35.0]), torch.tensor([0.0, 100.0]), torch.tensor([2.0, 1.8])
BALL = 0.3
every = pytest.mark.parametrize("kind", ["voxels", "gaussians", "mesh"])


def solid_ball(kind):
    """Radius ``BALL`` about the origin, of one colour."""
    if kind == "mesh":
        return MeshScene(24)
    scene = make_scene(kind, size=32 if kind == "voxels" else 2500, seed=0, device="cpu")
    with torch.no_grad():
        if kind == "voxels":
            line = torch.linspace(-BOUND, BOUND, 32)
            distance = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0)
            for level in [*scene.density, *scene.colour]:
                level.zero_()
            scene.density[-1][0, 0] = (BALL - distance) * 200
        else:
            scene.mean.mul_(0.97 * BALL / scene.mean.norm(dim=1, keepdim=True))
            scene.opacity.fill_(3.0)
            scene.colour.zero_()
    return scene


def normals_of_the_ball(size):
    """float [B,3,S,S] where the rays meet it, and where they do, bool [B,S,S]."""
    origins, directions = camera_rays(camera_to_world(*POSES), size)
    along = (origins * directions).sum(-1)
    inside = along.square() - (origins.square().sum(-1) - BALL**2)
    places = origins + directions * (-along - inside.clamp_min(0).sqrt())[..., None]
    return (places / BALL).permute(0, 3, 1, 2), inside > 0.01


# Gaussians lie about the surface, and the depth that is seen with them
@pytest.mark.parametrize(("kind", "degrees"), [("voxels", 5), ("gaussians", 16), ("mesh", 3)])
def test_normals_are_those_of_a_ball(kind, degrees):
    with torch.no_grad():
        view = solid_ball(kind).render(*POSES, 32, "normal")
    expected, hit = normals_of_the_ball(32)
    solid = hit & (view.alpha[:, 0] > 0.99)
    assert solid.sum() > 0.8 * hit.sum()
    cosine = (view.normal / view.alpha * expected).sum(1)[solid]
    assert torch.rad2deg(cosine.clamp(-1, 1).acos()).mean() < degrees
    torch.testing.assert_close((view.normal / view.alpha).norm(dim=1)[solid], torch.ones(int(solid.sum())))
    assert view.normal[..., 0, 0].abs().max() < 1e-3, "nothing in the corners"


@every
def test_each_shading_shows_what_it_says(kind):
    scene = solid_ball(kind)
    with torch.no_grad():
        plain, normal, lambert, bare = (scene.render(*POSES, 24, shading) for shading in (None, *SHADINGS))
    assert plain.normal is None
    white = 1 - plain.alpha
    for view in (normal, lambert, bare):
        assert view.image.shape == (2, 3, 24, 24)
        torch.testing.assert_close(view.alpha, plain.alpha)
        assert view.image.min() >= 0 and view.image.max() <= 1 + 1e-5
    torch.testing.assert_close(normal.image, (normal.normal + normal.alpha) / 2 + white)
    light = camera_to_world(*POSES)[:, :, 2]
    facing = torch.einsum("bchw,bc->bhw", normal.normal / normal.alpha.clamp_min(1e-9), light).clamp_min(0)[:, None]
    lit = AMBIENT + DIFFUSE * facing
    torch.testing.assert_close(lambert.image, (plain.image - white) * lit + white, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bare.image, (plain.alpha * lit).expand(-1, 3, -1, -1) + white, rtol=1e-3, atol=1e-3)
    # the camera's light falls straight on the middle and slantwise on the rim
    assert bare.image[:, :, 11:13, 11:13].min() > 0.75


@every
def test_light_from_a_side_lights_that_side(kind):
    """Seen from +x with light from +y, which lies to the right: the left is in the shade."""
    scene = solid_ball(kind)
    pose = [torch.tensor([value]) for value in (0.0, 0.0, 2.0)]
    with torch.no_grad():
        view = scene.render(*pose, 32, "textureless", light=torch.tensor([[0.0, 3.0, 0.0]]))
    shown = (view.image - (1 - view.alpha))[0, 0, 12:20]
    assert shown[:, 20].mean() > 0.45 and shown[:, 10].mean() < 0.2


@every
@pytest.mark.parametrize("shading", SHADINGS)
def test_gradients_of_shaded_views_reach_the_shape(kind, shading):
    scene = solid_ball(kind)
    weight = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (scene.render(*POSES, 16, shading).image * weight).sum().backward()
    shape = {"voxels": lambda: scene.density[-1], "gaussians": lambda: scene.mean, "mesh": lambda: scene.field}[kind]()
    colour = scene.colour[-1] if kind == "voxels" else scene.colour
    assert shape.grad.isfinite().all() and shape.grad.abs().sum() > 0
    seen = colour.grad is not None and bool(colour.grad.abs().sum() > 0)
    assert seen == (shading == "lambert"), "the other two do not show colours"


def test_shading_against_differences():
    """In double precision, through normals of any length."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    colour, alpha, normal, light = draw(1, 3, 2, 2), draw(1, 1, 2, 2), draw(1, 3, 2, 2) - 0.3, draw(1, 3)
    inputs = [v.requires_grad_() for v in (colour, alpha, normal)]
    for shading in SHADINGS:
        assert torch.autograd.gradcheck(lambda *v, s=shading: shade(*v, s, light).image, inputs)


@every
@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"shading": "phong"}, ValueError, "shading"), ({"shading": 1}, TypeError, "shading"),
        ({"shading": "lambert", "light": torch.zeros(3)}, ValueError, "light"),
        ({"shading": "lambert", "light": torch.zeros(1, 3)}, ValueError, "light"),
    ],
)  # fmt: skip
def test_wrong_shadings_are_named(kind, options, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        solid_ball(kind).render(*POSES, 8, **options)


def test_shaded_voxels_never_wait_for_the_device():
    """As in the albedo's test: whatever needs a value on the host raises on meta tensors."""
    from hash3d_cuda.sds.scenes.voxels import VoxelScene

    scene = VoxelScene(8, 0, torch.device("meta"))
    view = scene.render(*(pose.to("meta") for pose in POSES), 16, "lambert")
    assert view.image.shape == view.normal.shape == (2, 3, 16, 16)
