"""Files from scenes and views: what a reader finds in them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from forked import Forked

from hash3d_cuda.sds.export import animation, write_glb, write_ply, write_turntable, write_views
from hash3d_cuda.sds.export.mesh import surface, to_linear
from hash3d_cuda.sds.scenes import BOUND, make_scene

Image = pytest.importorskip("PIL.Image")
trimesh = pytest.importorskip("trimesh")

CENTRE, AXES = np.array([0.1, -0.05, 0.15]), np.array([0.3, 0.1, 0.2])


class Solid:
    """An ellipsoid, red where y is positive and dark blue elsewhere, with a speck beside it."""

    def __init__(self, axes=AXES, centre=CENTRE, speck=True):
        self.axes, self.centre, self.speck = axes, centre, speck

    def occupancy_grid(self, resolution):
        line = torch.linspace(-BOUND, BOUND, resolution)
        places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
        distance = ((places - torch.tensor(self.centre)) / torch.tensor(self.axes)).norm(dim=-1)
        occupancy = (0.5 + (1 - distance)).clamp(0, 1).float()
        if self.speck:
            occupancy[3:5, 3:5, 3:5] = 1.0
        side = (places[..., 1:2] > self.centre[1]).float()
        return occupancy, side * torch.tensor([1.0, 0.0, 0.0]) + (1 - side) * torch.tensor([0.0, 0.0, 0.5])


def frames(count=5, height=20, width=24):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def smooth_frames(count=6, height=32, width=32):
    ramp = torch.linspace(0, 1, width).expand(3, height, width)
    return torch.stack([ramp * (0.3 + 0.7 * i / count) for i in range(count)])


def read_ply(path):
    """Header's property names, and one float row per vertex (all properties float32)."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    names = [line.split()[-1].decode() for line in head.splitlines() if line.startswith(b"property float")]
    return names, np.frombuffer(body, "<f4").reshape(-1, len(names))


def test_views_are_lossless_and_numbered(tmp_path):
    views = frames(12)
    paths = write_views(views, tmp_path / "views")
    assert [p.name for p in paths][:2] == ["view_00.png", "view_01.png"] and len(paths) == 12
    assert sorted(p.name for p in (tmp_path / "views").iterdir()) == [p.name for p in paths]
    read = np.stack([np.asarray(Image.open(path)) for path in paths])
    assert np.array_equal(read, (views * 255).round().byte().permute(0, 2, 3, 1).numpy())


def test_a_turntable_keeps_every_frame_and_runs_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "find_ffmpeg", lambda: None)
    shown = torch.cat([smooth_frames(), smooth_frames()[-1:]])
    assert write_turntable(shown, tmp_path / "turntable.webp") == [tmp_path / "turntable.webp"]
    picture = Image.open(tmp_path / "turntable.webp")
    assert picture.info.get("loop") == 0 and picture.size == (32, 32)
    assert picture.n_frames in (6, 7), "two equal frames may be one that is shown longer"
    picture.seek(2)
    got = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1) / 255
    assert (got - shown[2]).abs().mean() < 0.02
    assert not (tmp_path / "turntable.mp4").exists()
    with pytest.raises(ValueError, match="frames"):
        write_turntable(shown[:0], tmp_path / "turntable.webp")


def test_a_film_has_even_sides_and_all_frames(tmp_path):
    reader = pytest.importorskip("imageio_ffmpeg")
    written = write_turntable(smooth_frames(6, 33, 35), tmp_path / "turntable.webp")
    assert written[1] == tmp_path / "turntable.mp4"
    about = next(reader.read_frames(str(written[1])))
    assert about["size"] == (36, 34) and about["pix_fmt"].startswith("yuv420p")
    assert reader.count_frames_and_secs(str(written[1]))[0] == 6


def test_a_film_that_cannot_be_written_is_an_os_error(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(OSError, match="cannot write"):
        animation.write_mp4(animation.to_bytes(frames()), tmp_path / "missing" / "a.mp4", animation.find_ffmpeg())


def test_gaussians_are_written_as_splat_viewers_read_them(tmp_path):
    scene = make_scene("gaussians", size=9, seed=0, device="cpu")
    write_ply(scene, tmp_path / "scene.ply")
    names, table = read_ply(tmp_path / "scene.ply")
    expected = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    assert names == expected.split() and table.shape == (9, 17)
    g = scene.gaussians()
    np.testing.assert_allclose(table[:, :3], g.mean.detach())
    np.testing.assert_allclose(0.5 + 0.28209479 * table[:, 6:9], g.colour.detach(), rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-table[:, 9])), g.opacity.detach(), rtol=1e-5)
    np.testing.assert_allclose(np.exp(table[:, 10:13]), g.scale.detach(), rtol=1e-5)
    np.testing.assert_allclose(table[:, 13:], g.quaternion.detach())
    assert len(trimesh.load(tmp_path / "scene.ply").vertices) == 9


def test_other_scenes_are_written_as_points_on_their_surface(tmp_path):
    write_ply(Solid(speck=False), tmp_path / "scene.ply")
    cloud = trimesh.load(tmp_path / "scene.ply")
    distance = np.linalg.norm((cloud.vertices - CENTRE) / AXES, axis=1)
    assert len(cloud.vertices) > 500 and distance.max() < 1.01 and distance.min() > 0.7
    red = cloud.vertices[:, 1] > CENTRE[1] + 1e-6
    assert (cloud.colors[red, :3] == [255, 0, 0]).all() and (cloud.colors[~red, :3] == [0, 0, 128]).all()


def test_an_empty_point_cloud_is_a_valid_file(tmp_path):
    write_ply(Solid(axes=AXES * 0 + 1e-6, centre=CENTRE + 0.003, speck=False), tmp_path / "scene.ply")
    text = (tmp_path / "scene.ply").read_text()
    assert text.startswith("ply\n") and "element vertex 0" in text and text.endswith("end_header\n")


def test_a_surface_lies_where_the_object_is():
    vertices, faces, normals, colours = surface(Solid(), 64)
    np.testing.assert_allclose(np.linalg.norm((vertices - CENTRE) / AXES, axis=1), 1, atol=0.03)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * np.pi * AXES.prod(), rel=0.05)
    outward = (normals * (vertices - CENTRE) / AXES**2).sum(1)
    assert (outward > 0).all(), "normals and winding point outwards"
    assert colours[vertices[:, 1] > CENTRE[1] + 0.02].min(0).tolist() == pytest.approx([1, 0, 0], abs=1e-5)


def test_a_glb_has_y_up_and_linear_colours(tmp_path):
    write_glb(Solid(), tmp_path / "mesh.glb", resolution=48)
    data = (tmp_path / "mesh.glb").read_bytes()
    assert data[:4] == b"glTF" and int.from_bytes(data[8:12], "little") == len(data)
    mesh = trimesh.load(io.BytesIO(data), file_type="glb", force="mesh", process=False)
    low, high = mesh.bounds
    # the world's y, z, x are glTF's x, y, z
    np.testing.assert_allclose((low + high) / 2, CENTRE[[1, 2, 0]], atol=0.02)
    np.testing.assert_allclose((high - low) / 2, AXES[[1, 2, 0]], atol=0.02)
    assert mesh.volume > 0 and b"NORMAL" in data
    blue = mesh.visual.vertex_colors[mesh.vertices[:, 0] < CENTRE[1] - 0.03]
    assert (blue == [0, 0, round(255 * float(to_linear(np.array(0.5)))), 255]).all()


def test_an_object_that_fills_the_cube_is_closed():
    vertices, faces, _, _ = surface(Solid(axes=np.full(3, 5.0)), 24)
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight
    assert BOUND <= np.abs(vertices).max() < BOUND + 1 / 23, "at most one cell outside"


def test_nothing_dense_enough_is_said_in_one_line(tmp_path):
    scene = make_scene("voxels", size=8, seed=0, device="cpu")
    with torch.no_grad():
        for level in scene.density:
            level.fill_(-9.0)
    with pytest.raises(ValueError, match=r"^nothing is dense enough") as caught:
        write_glb(scene, tmp_path / "mesh.glb")
    assert "\n" not in str(caught.value) and not (tmp_path / "mesh.glb").exists()


@pytest.mark.parametrize("kind", ["voxels", "gaussians"])
def test_real_scenes_become_meshes(tmp_path, kind):
    scene = make_scene(kind, size=16 if kind == "voxels" else 200, seed=0, device="cpu")
    with torch.no_grad():
        values = scene.density[0] if kind == "voxels" else scene.opacity
        values += 4.0
    write_glb(scene, tmp_path / "mesh.glb", resolution=32)
    mesh = trimesh.load(tmp_path / "mesh.glb", force="mesh")
    assert len(mesh.faces) > 50 and np.abs(mesh.vertices).max() <= BOUND + 1e-6


def test_a_full_disk_is_an_os_error(tmp_path):
    """In a process of its own, files above 1 KB cannot be written."""
    import resource

    scene, noise = make_scene("gaussians", size=200, seed=0, device="cpu"), torch.rand(4, 3, 40, 40)
    with torch.no_grad():
        scene.opacity += 4.0
    tries = {
        "ply": lambda: write_ply(scene, folder / "a.ply"), "glb": lambda: write_glb(scene, folder / "a.glb"),
        "views": lambda: write_views(noise, folder / "views"),
        "webp": lambda: write_turntable(noise, folder / "a.webp"),
    }  # fmt: skip

    def act():
        animation.find_ffmpeg()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        for name, attempt in tries.items():
            try:
                attempt()
            except OSError:
                print(name)

    folder, printed = tmp_path / "written", tmp_path / "printed"
    folder.mkdir()
    printed.mkdir()
    status, output, errors = Forked(act, folder, printed).end()
    assert status == 0 and output.split() == ["ply", "glb", "views", "webp"], errors
