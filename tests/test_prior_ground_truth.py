"""Bundled true views, vocabulary and the data preparation's geometry (only the last test needs OpenGL)."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hash3d_cuda.cameras import camera_rays, camera_to_world
from hash3d_cuda.prior import prepare
from hash3d_cuda.prior.furniture import (
    find_library,
    load_parts,
    normalising_transform,
    read_catalogue,
    require_public_domain,
)
from hash3d_cuda.prior.ground_truth import (
    ASSETS,
    INPUT_POSE,
    example_inputs,
    ground_truth_names,
    ground_truth_views,
)
from hash3d_cuda.prior.raster import Renderer, area_downsample, view_projection
from hash3d_cuda.prior.vocabulary import OBJECTS

Image = pytest.importorskip("PIL.Image")

QUAD_OBJ = """mtllib quad.mtl
v 0 0 0
v 4 0 0
v 4 2 0
v 0 2 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
vn 0 0 1
usemtl painted
f 1/1/1 2/2/1 3/3/1
usemtl glass
f 1/1/1 3/3/1 4/4/1
"""
QUAD_MTL = "newmtl painted\nKd 1 0 0\nmap_Kd paint.png\nnewmtl glass\nKd 0 0.5 1\nd 0.25\n"
QUAD_PROPERTIES = "id#1=Some library#quad\nname#1=Quad\nmodel#1=/models/quad/quad.obj\ncreator#1=Nobody\n"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library with one model: a 4 x 2 rectangle that faces +z, half textured, half translucent."""
    texture = io.BytesIO()
    Image.new("RGB", (4, 4), (10, 200, 30)).save(texture, "PNG")
    path = tmp_path / "small.sh3f"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", QUAD_PROPERTIES)
        archive.writestr("LICENSE.TXT", "Creative Commons Zero")
        archive.writestr("models/quad/quad.obj", QUAD_OBJ)
        archive.writestr("models/quad/quad.mtl", QUAD_MTL)
        archive.writestr("models/quad/paint.png", texture.getvalue())
    return path


def silhouette(views: torch.Tensor) -> torch.Tensor:
    return views.min(1).values < 0.97


def test_vocabulary_is_large_and_names_are_unambiguous():
    names = [thing.name for thing in OBJECTS]
    words = names + [alias for thing in OBJECTS for alias in thing.aliases]
    assert len(names) >= 32
    assert len(set(words)) == len(words)
    assert all(word == word.lower().strip() for word in words)


def test_every_object_has_views_an_input_and_a_credit():
    credits = (ASSETS / "CREDITS.md").read_text(encoding="utf-8")
    assert ground_truth_names() == [thing.name for thing in OBJECTS] == list(example_inputs())
    for thing in OBJECTS:
        assert f"| {thing.name} | {thing.creator} | {thing.identifier} | CC0-1.0 |" in credits
    pictures = [*(ASSETS / "views").iterdir(), *(ASSETS / "inputs").iterdir()]
    assert sum(path.stat().st_size for path in pictures) < 5_000_000


@pytest.mark.parametrize("name", [thing.name for thing in OBJECTS])
def test_views_show_an_object_inside_a_white_frame(name: str):
    images, elevations, azimuths, radii = ground_truth_views(name)
    assert images.shape == (16, 3, 64, 64) and images.dtype == torch.float32
    for edge in (images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]):
        assert (edge == 1).all()
    covered = silhouette(images).float().mean((1, 2))
    assert (covered > 0.04).all() and (covered < 0.65).all()
    assert (elevations == 30).all() and (radii == 2).all()
    assert torch.equal(azimuths, torch.arange(16) * 22.5)


@pytest.mark.parametrize("name", ["teddy bear", "red chair", "toilet", "horse"])
def test_fronts_face_the_x_axis(name: str):
    """A left-right symmetric object mirrors its view from azimuth a at -a only if its front lies along x."""
    mask = silhouette(ground_truth_views(name)[0])
    mirrored = mask[(-torch.arange(16)) % 16].flip(-1)
    overlap = (mask & mirrored).sum() / (mask | mirrored).sum()
    assert overlap > (0.6 if name == "horse" else 0.85)


def test_views_are_upright():
    """The mailbox is a dark box on a light post."""
    images = ground_truth_views("mailbox")[0].mean(1)
    assert ((images[:, :32] < 0.25).sum((1, 2)) > 4 * (images[:, 32:] < 0.25).sum((1, 2))).all()


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'unicorn'.*teddy bear.*stone lantern"):
        ground_truth_views("unicorn")


def test_example_inputs_have_alpha_and_the_pose_is_stated():
    assert INPUT_POSE == (20.0, 30.0, 2.0)
    for path in example_inputs().values():
        picture = np.asarray(Image.open(path))
        assert picture.shape == (256, 256, 4)
        assert (picture[[0, -1], :, 3] == 0).all() and (picture[:, [0, -1], 3] == 0).all()
        assert (picture[..., 3] == 255).mean() > 0.03


def test_training_poses_fill_the_ranges_and_avoid_the_evaluation_views():
    poses = prepare.training_poses(4000, (0, 1))
    assert poses.dtype == np.float32 and not prepare.near_evaluation(poses).any()
    span = np.array([70, 360, 0.4])
    for found, expected in (
        (poses.min(0), (-10, 0, 1.8)),
        (poses.max(0), (60, 360, 2.2)),
        (poses.mean(0), (25, 180, 2)),
    ):
        assert (np.abs(found - expected) < 0.01 * span).all()
    assert (poses == prepare.training_poses(4000, (0, 1))).all()
    assert (poses != prepare.training_poses(4000, (0, 2))).any()


def test_near_evaluation_is_periodic_in_azimuth_and_needs_both_angles():
    near = [(30, 359, 2), (31.9, 1.9, 1.8), (28.1, 67.5, 2.2)]
    far = [(30, 3, 2), (33, 0, 2), (30, 11.25, 2), (-10, 22.5, 2)]
    assert prepare.near_evaluation(np.array(near, float)).all()
    assert not prepare.near_evaluation(np.array(far, float)).any()


def test_clip_matrix_agrees_with_camera_rays():
    """A point on any pixel's ray projects to that pixel's centre."""
    rng, size = np.random.default_rng(0), 16
    for elevation, azimuth, radius in rng.uniform((-10, 0, 1.8), (60, 360, 2.2), (8, 3)):
        pose = camera_to_world(*(torch.tensor([v], dtype=torch.float32) for v in (elevation, azimuth, radius)))
        origins, directions = camera_rays(pose, size)
        matrix, eye = view_projection(elevation, azimuth, radius)
        np.testing.assert_allclose(eye, origins[0, 0, 0].numpy(), atol=1e-6)
        points = (origins + 1.9 * directions)[0].numpy().reshape(-1, 3)
        clip = np.concatenate([points, np.ones((len(points), 1))], 1) @ matrix.T
        column = (clip[:, 0] / clip[:, 3] + 1) / 2 * size - 0.5
        row = (1 - clip[:, 1] / clip[:, 3]) / 2 * size - 0.5
        expected_row, expected_column = np.divmod(np.arange(size * size), size)
        np.testing.assert_allclose(column, expected_column, atol=1e-4)
        np.testing.assert_allclose(row, expected_row, atol=1e-4)
        assert (np.abs(clip[:, 2]) < clip[:, 3]).all()


def test_normalisation_centres_the_box_and_reaches_the_sphere():
    points = np.random.default_rng(1).normal(size=(50, 3)) * (3, 1, 7) + (100, -4, 0)
    centre, scale = normalising_transform(points)
    moved = (points - centre) * scale
    np.testing.assert_allclose(moved.min(0), -moved.max(0), atol=1e-12)
    assert np.linalg.norm(moved, axis=1).max() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="all points coincide"):
        normalising_transform(np.ones((4, 3)))


def test_area_downsample_is_the_block_mean():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    small = area_downsample(image, 2)
    assert small[1, 0, 2] == image[4:, :4, 2].mean()
    with pytest.raises(ValueError, match="3 does not divide"):
        area_downsample(image, 3)


def test_a_model_is_read_oriented_and_split_by_material(library: Path):
    pytest.importorskip("trimesh")
    with zipfile.ZipFile(library) as archive:
        entry = read_catalogue(archive)["quad"]
        painted, glass = load_parts(archive, entry)
    assert (entry.name, entry.creator) == ("Quad", "Nobody")
    assert painted.texture is not None and (painted.texture[..., :3] == (10, 200, 30)).all() and not painted.translucent
    assert glass.texture is None and glass.translucent
    np.testing.assert_allclose(glass.colours[0], (0, 0.5, 1, 0.25), atol=0.01)
    corners = glass.positions[np.unique(glass.faces)]
    np.testing.assert_allclose(np.abs(corners), np.tile((0, 1, 0.5) / np.sqrt(5), (3, 1)), atol=1e-6)
    np.testing.assert_allclose(painted.normals[np.unique(painted.faces)], [(1, 0, 0)] * 3, atol=1e-6)


def test_a_model_with_another_licence_than_cc0_is_refused(library: Path):
    with zipfile.ZipFile(library) as archive:
        require_public_domain(archive, read_catalogue(archive)["quad"])
    with zipfile.ZipFile(library, "a") as archive:
        archive.writestr("models/quad/123 - LICENSE.html", "Released under Creative Commons Attribution 3.0")
    with zipfile.ZipFile(library) as archive, pytest.raises(ValueError, match=r"123 - LICENSE.*'quad'"):
        require_public_domain(archive, read_catalogue(archive)["quad"])


def test_a_missing_library_says_how_to_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(FileNotFoundError, match="sweethome3d-furniture"):
        find_library(tmp_path)
    assert prepare.main(["--furniture", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "broken.sh3f").write_bytes(b"not a zip")
    assert prepare.main(["--furniture", str(tmp_path / "broken.sh3f"), "--out", str(tmp_path / "out")]) == 1


def test_a_rendered_model_appears_where_the_camera_says(library: Path):
    pytest.importorskip("moderngl")
    try:
        renderer = Renderer(64)
    except RuntimeError as error:
        pytest.skip(f"no offscreen OpenGL here: {error}")
    with renderer, zipfile.ZipFile(library) as archive:
        renderer.load(load_parts(archive, read_catalogue(archive)["quad"]))
        picture = renderer.render(0.0, 0.0, 2.0).astype(int)
    # The painted half is below the diagonal from lower left to upper right; the glass lets white through.
    painted, glass = picture[38, 40], picture[26, 24]
    assert painted[1] > 150 and painted[0] < 60 and painted[3] == 255
    assert glass[2] > 240 and 150 < glass[0] < 230 and 0 < glass[3] < 128
    assert (picture[0] == (255, 255, 255, 0)).all()
