"""Scenes: cameras, both renderers against slow ones, gradients, determinism, saving."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch
from torch.nn import functional as F

from hash3d_cuda.cameras import camera_rays, camera_to_world, focal_length
from hash3d_cuda.sds.scenes import BOUND, DEFAULT_SIZES, make_scene
from hash3d_cuda.sds.scenes import splat as splat_module
from hash3d_cuda.sds.scenes.gaussians import FAINT, GaussianScene
from hash3d_cuda.sds.scenes.splat import Gaussians, splat, splat_gsplat, splat_torch, world_to_camera
from hash3d_cuda.sds.scenes.voxels import EMPTY, VoxelScene, density_of, stretch, stretch_matrix

SIZES = {"voxels": 12, "gaussians": 80}
POSES = torch.tensor([20.0, -5.0, 55.0]), torch.tensor([0.0, 100.0, 250.0]), torch.tensor([2.0, 1.8, 2.2])
both = pytest.mark.parametrize("kind", list(SIZES))


def small(kind, seed=0):
    return make_scene(kind, size=SIZES[kind], seed=seed, device="cpu")


def some_gaussians(count=40, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    quaternion = F.normalize(draw(count, 4) - 0.5, dim=-1)
    return Gaussians(
        (draw(count, 3) - 0.5) * 0.5, 0.01 + 0.06 * draw(count, 3), quaternion, draw(count), draw(count, 3)
    )


def slow_splat(g, elevation, azimuth, radius, size):
    """Every Gaussian at every pixel, one after the other, in double precision: float64 [3,S,S] and [S,S]."""
    pose = camera_to_world(elevation[None], azimuth[None], radius[None])[0].double()
    view = torch.stack([pose[:, 0], -pose[:, 1], -pose[:, 2]])
    focal = focal_length(size)
    image, through = torch.zeros(3, size, size).double(), torch.ones(size, size).double()
    line = torch.arange(size).double() + 0.5
    py, px = torch.meshgrid(line, line, indexing="ij")
    local = (g.mean.double() - pose[:, 3]) @ view.T
    for i in local[:, 2].argsort().tolist():
        w, x, y, z = g.quaternion[i].double().tolist()
        turn = torch.tensor(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        ).double()
        cx, cy, depth = local[i].tolist()
        lens = torch.tensor([[1 / depth, 0, -cx / depth**2], [0, 1 / depth, -cy / depth**2]]).double() * focal
        half = lens @ view @ turn @ g.scale[i].double().diag()
        inverse = torch.linalg.inv(half @ half.T + 0.3 * torch.eye(2))
        d = torch.stack([px - (focal * cx / depth + size / 2), py - (focal * cy / depth + size / 2)], -1)
        alpha = (g.opacity[i] * torch.exp(-0.5 * torch.einsum("hwi,ij,hwj->hw", d, inverse, d))).clamp_max(0.999)
        alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
        image += through * alpha * g.colour[i].double()[:, None, None]
        through = through * (1 - alpha)
    return image + through, 1 - through


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"kind": "mesh"}, "kind"), ({"size": 3}, "size"), ({"size": 513}, "size"), ({"seed": -1}, "seed"),
        ({"kind": "gaussians", "size": 0}, "size"), ({"device": "meta"}, "device"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        make_scene(**{"kind": "voxels", "size": 8, "seed": 0, "device": "cpu", **options})


@both
def test_a_view_is_a_soft_ball_on_white(kind):
    scene = make_scene(kind, seed=0, device="cpu")
    with torch.no_grad():
        view = scene.render(*POSES, 24)
    assert view.image.shape == (3, 3, 24, 24) and view.alpha.shape == (3, 1, 24, 24)
    assert view.image.dtype == view.alpha.dtype == torch.float32
    assert view.image.min() >= 0 and view.image.max() <= 1 + 1e-6 and view.alpha.min() >= -1e-6
    assert view.alpha[:, :, 0, 0].max() < 0.01 and view.image[:, :, 0, 0].min() > 0.99
    assert view.alpha[:, :, 11:13, 11:13].min() > 0.3, "something in the middle to start from"
    assert DEFAULT_SIZES[kind] in (len(scene.mean),) if kind == "gaussians" else scene.grid().shape[2:] == (48,) * 3


@both
def test_every_parameter_gets_a_gradient(kind):
    scene = small(kind)
    (scene.render(*POSES, 16).image.square().mean() + scene.regularisation()).backward()
    grouped = [p for group in scene.parameter_groups(1.0) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in scene.parameters()}
    for name, value in scene.named_parameters():
        # a ball looks alike from all sides: turning a round Gaussian changes nothing
        assert value.grad.isfinite().all() and (value.grad.abs().sum() > 0 or name == "quaternion"), name
    first, second = (scene.parameter_groups(scale) for scale in (1.0, 0.5))
    assert all(b["lr"] == pytest.approx(a["lr"] / 2) for a, b in zip(first, second, strict=True))


@both
def test_a_point_appears_where_the_camera_says(kind):
    """A small blob at a known place is seen by the ray that passes through it."""
    place = torch.tensor([0.2, -0.1, 0.25])
    scene = make_scene(kind, size=25 if kind == "voxels" else 1, seed=0, device="cpu")
    with torch.no_grad():
        if kind == "voxels":
            for level in scene.density:
                level.zero_()
            scene.density[0].fill_(-20.0)
            x, y, z = ((place + BOUND) * 24).round().int().tolist()
            scene.density[-1][0, 0, z, y, x] = 200.0
            place = torch.tensor([x, y, z]) / 24 - BOUND
        else:
            scene.mean.copy_(place[None])
            scene.opacity.fill_(5.0)
        view = scene.render(*POSES, 64)
    origins, directions = camera_rays(camera_to_world(*POSES), 64)
    miss = torch.linalg.cross(place - origins, directions, dim=-1).norm(dim=-1)
    weight = view.alpha[:, 0]
    line = torch.arange(64.0)
    for b in range(3):
        row, column = divmod(int(miss[b].argmin()), 64)
        total = weight[b].sum()
        assert total > 0.5
        assert float((weight[b].sum(1) * line).sum() / total) == pytest.approx(row, abs=0.6)
        assert float((weight[b].sum(0) * line).sum() / total) == pytest.approx(column, abs=0.6)


def test_a_ray_through_even_fog_follows_beers_law():
    scene = VoxelScene(8, 0, torch.device("cpu"))
    with torch.no_grad():
        for level in scene.density:
            level.zero_()
        scene.density[0].fill_(-2.0)
        view = scene.render(*POSES, 32)
    origins, directions = camera_rays(camera_to_world(*POSES), 32)
    nearest = torch.linalg.cross(origins, directions, dim=-1).norm(dim=-1)
    chord = 2 * (BOUND**2 - nearest.square()).clamp_min(0).sqrt()
    expected = 1 - torch.exp(-density_of(torch.tensor(-2.0)) * chord)
    torch.testing.assert_close(view.alpha[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert (view.image[:, :, 0, 0] == 1).all(), "a ray that misses is white"


def test_rays_in_chunks_are_the_same_rays(monkeypatch):
    scene = small("voxels")
    whole = scene.render(*POSES, 16)
    monkeypatch.setattr("hash3d_cuda.sds.scenes.voxels.CHUNK", 100)
    assert torch.equal(scene.render(*POSES, 16).image, whole.image)


@pytest.mark.parametrize(("coarse", "fine"), [(4, 8), (12, 24), (6, 13)])
def test_stretching_is_trilinear_interpolation(coarse, fine):
    grid = torch.randn(1, 2, coarse, coarse, coarse, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(grid, (fine,) * 3, mode="trilinear", align_corners=True)
    torch.testing.assert_close(stretch(grid, stretch_matrix(coarse, fine)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [4, 7, 8, 50])
def test_voxels_of_any_size(side):
    scene = make_scene("voxels", size=side, seed=0, device="cpu")
    assert scene.grid().shape == (1, 4, side, side, side)
    assert scene.grid()[:, 0].min() >= EMPTY


def test_voxels_never_wait_for_the_device():
    """Meta tensors have no values, so whatever needs one on the host (item, nonzero) raises."""
    scene = VoxelScene(8, 0, torch.device("meta"))
    view = scene.render(*(pose.to("meta") for pose in POSES), 16)
    assert view.image.shape == (3, 3, 16, 16) and view.image.is_meta
    (view.image.mean() + scene.regularisation()).backward()
    with pytest.raises(RuntimeError):
        view.image.nonzero()


@pytest.mark.parametrize("size", [16, 21])
def test_tiled_splats_equal_slow_splats(size):
    gaussians = some_gaussians()
    view = splat(gaussians, *POSES, size)
    for b, pose in enumerate(zip(*POSES, strict=True)):
        image, alpha = slow_splat(gaussians, *pose, size)
        # at the rim of a Gaussian, where alpha is just 1/255, the two may differ by that step
        torch.testing.assert_close(view.image[b].double(), image, rtol=0, atol=1.01 / 255)
        torch.testing.assert_close(view.alpha[b, 0].double(), alpha, rtol=0, atol=1.01 / 255)
        assert (view.image[b] - image).abs().mean() < 2e-4


def test_splat_gradients_against_differences():
    """Along a random direction in parameter space, in double precision, away from the 1/255 steps."""
    g = some_gaussians(6, seed=3, dtype=torch.float64)
    names = list(vars(g))
    poses = [pose[:1].double() for pose in POSES]
    weight = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    loss = lambda **values: (splat(Gaussians(**values), *poses, 16).image * weight).sum()  # noqa: E731
    values = {name: getattr(g, name).clone().requires_grad_() for name in names}
    gradients = torch.autograd.grad(loss(**values), list(values.values()))
    generator = torch.Generator().manual_seed(2)
    for name, gradient in zip(names, gradients, strict=True):
        way = torch.randn(gradient.shape, generator=generator).double()
        step = 1e-7
        ends = [loss(**{**values, name: values[name].detach() + sign * step * way}) for sign in (1, -1)]
        difference = float((ends[0] - ends[1]).detach()) / (2 * step)
        assert float((gradient * way).sum()) == pytest.approx(difference, rel=2e-3, abs=1e-3), name


def test_gaussians_out_of_sight_draw_nothing():
    g = some_gaussians(5)
    behind = Gaussians(g.mean + torch.tensor([9.0, 0, 0]), g.scale, g.quaternion, g.opacity, g.colour)
    faint = Gaussians(g.mean, g.scale, g.quaternion, torch.full_like(g.opacity, 1e-3), g.colour)
    for nothing in (behind, faint):
        view = splat(nothing, torch.zeros(1), torch.zeros(1), torch.tensor([2.0]), 16)
        assert (view.image == 1).all() and (view.alpha == 0).all()


def test_gsplat_is_called_with_the_same_camera(monkeypatch):
    """gsplat's documented conventions, played by a stand-in: OpenCV world-to-camera matrices and intrinsics."""
    g = some_gaussians(8)

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, eps2d, packed):
        assert width == height and eps2d == splat_module.LOW_PASS and not packed
        rotation, position = viewmats[:, :3, :3], -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[..., 0]
        local = means @ rotation.mT + viewmats[:, None, :3, 3]
        pixel = local @ Ks.mT
        pixel = pixel[..., :2] / pixel[..., 2:]
        mine = splat_module.project(g, rotation, position, width)
        torch.testing.assert_close(pixel, mine[0], rtol=1e-4, atol=1e-3)
        view = splat_torch(Gaussians(means, scales, quats, opacities, colors), rotation, position, width)
        premultiplied = view.image - (1 - view.alpha)
        return premultiplied.permute(0, 2, 3, 1), view.alpha.permute(0, 2, 3, 1), {}

    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=rasterization))
    view = splat_gsplat(g, *world_to_camera(camera_to_world(*POSES)), 16)
    expected = splat(g, *POSES, 16)
    torch.testing.assert_close(view.image, expected.image, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(view.alpha, expected.alpha, rtol=1e-4, atol=1e-4)


@both
def test_a_seed_decides_everything_and_a_saved_scene_is_the_scene(kind):
    first, again, other = small(kind), small(kind), small(kind, seed=1)
    image = first.render(*POSES, 16).image
    assert torch.equal(again.render(*POSES, 16).image, image)
    assert not torch.equal(other.render(*POSES, 16).image, image)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.render(*POSES, 16).image, image)
    assert torch.equal(other.regularisation(), first.regularisation())


def test_another_number_of_gaussians_is_taken_over():
    many, few = small("gaussians"), make_scene("gaussians", size=7, seed=3, device="cpu")
    few.load_state_dict(many.state_dict())
    assert len(few.mean) == SIZES["gaussians"] and all(p.requires_grad for p in few.parameters())
    assert torch.equal(few.render(*POSES, 16).image, many.render(*POSES, 16).image)
    with pytest.raises(RuntimeError, match="colour"):
        few.load_state_dict({**many.state_dict(), "colour": torch.zeros(9, 4)})


def test_faint_gaussians_are_spent_on_splitting_solid_ones():
    def scene():
        made = GaussianScene(100, 0, torch.device("cpu"))
        with torch.no_grad():
            made.opacity.fill_(2.0)
            made.opacity[:2] = math.log(FAINT / 4)
            made.log_scale[50, 1] = math.log(0.1)
        return made

    before, after = scene(), scene()
    ids = [id(p) for p in after.parameters()]
    assert not after.on_step(23, 100), "not its turn"
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert not after.on_step(24, 100) and [id(p) for p in after.parameters()] == ids
    changed = (after.mean != before.mean).any(-1).nonzero()[:, 0].tolist()
    assert len(changed) == 4 and {0, 1} < set(changed), "two faint ones moved, two solid ones split"
    assert 50 in changed and after.opacity.sigmoid().min() > FAINT
    pair = [i for i in (0, 1) if after.log_scale[i, 1] == after.log_scale[50, 1]]
    torch.testing.assert_close((after.mean[pair[0]] + after.mean[50]) / 2, before.mean[50])
    twin = scene()
    twin.on_step(24, 100)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), after.parameters(), strict=True))


@both
def test_occupancy_agrees_with_what_is_seen(kind):
    """A solid ball to one side: occupied inside, empty outside, its colour its own."""
    scene = make_scene(kind, size=24 if kind == "voxels" else 300, seed=0, device="cpu")
    middle, ball = torch.tensor([0.2, 0.0, -0.1]), 0.15
    with torch.no_grad():
        if kind == "voxels":
            line = torch.linspace(-BOUND, BOUND, 24)
            z, y, x = torch.meshgrid(line, line, line, indexing="ij")
            distance = (torch.stack([x, y, z], -1) - middle).norm(dim=-1)
            for level in [*scene.density, *scene.colour]:
                level.zero_()
            scene.density[-1][0, 0] = (ball - distance) * 100
            scene.colour[-1][0, 0] = 6.0
        else:
            scene.mean.copy_(F.normalize(scene.mean, dim=-1) * ball * 0.8 + middle)
            scene.opacity.fill_(4.0)
            scene.colour[:, 0] = 6.0
        occupancy, colour = scene.occupancy_grid(41)
    assert occupancy.shape == (41, 41, 41) and colour.shape == (41, 41, 41, 3)
    line = torch.linspace(-BOUND, BOUND, 41)
    places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    distance = (places - middle).norm(dim=-1)
    assert occupancy[(distance - ball * 0.8).abs() < 0.02].mean() > 0.6
    assert occupancy[distance > ball + 0.1].max() < 0.1
    assert occupancy.min() >= 0 and occupancy.max() <= 1
    assert colour[occupancy > 0.5][:, 0].min() > 0.9 and colour[occupancy > 0.5][:, 1].max() < 0.65


@both
def test_gradients_lead_to_a_target(kind):
    """Thirty steps of Adam on views of another scene."""
    target = make_scene(kind, size=SIZES[kind], seed=5, device="cpu")
    with torch.no_grad():
        values = target.colour[0] if kind == "voxels" else target.colour
        values += torch.tensor([3.0, -3.0, -3.0]).view(-1, *[1] * (values.dim() - 2))
        wanted = target.render(*POSES, 16).image
    scene = small(kind)
    optimizer = torch.optim.Adam(scene.parameter_groups(1.0))
    losses = []
    for step in range(30):
        loss = (scene.render(*POSES, 16).image - wanted).square().mean()
        optimizer.zero_grad()
        (loss + scene.regularisation()).backward()
        optimizer.step()
        scene.on_step(step, 30)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.15 * losses[0]
