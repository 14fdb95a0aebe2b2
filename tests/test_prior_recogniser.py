"""The image encoder and its trainer, on two coloured shapes; augmentation; pictures of other things."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from hash3d_cuda.prior import UnknownSubject, augment
from hash3d_cuda.prior import train_recogniser as trainer
from hash3d_cuda.prior.data import Views
from hash3d_cuda.prior.negatives import other_entries, render_negatives
from hash3d_cuda.prior.recogniser import Recogniser
from hash3d_cuda.prior.vocabulary import OBJECTS

NAMES = ["teddy bear", "cactus"]


def shapes(colours: list[tuple[float, float, float]], views: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Discs with a dark dot that goes round with the azimuth: uint8 [colours,views,64,64,3]; their poses."""
    rng = np.random.default_rng(seed)
    poses = rng.uniform((-10, 0, 1.8), (60, 360, 2.2), (len(colours), views, 3)).astype(np.float32)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    images = np.ones((len(colours), views, 64, 64, 3))
    for i, colour in enumerate(colours):
        images[i, :, x**2 + y**2 < 0.3] = colour
        for j, azimuth in enumerate(np.radians(poses[i, :, 1])):
            images[i, j, (x - 0.3 * np.sin(azimuth)) ** 2 + (y - 0.3 * np.cos(azimuth)) ** 2 < 0.03] = 0.05
    return np.rint(255 * images).astype(np.uint8), poses


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Orange and green discs to know; blue, white-ish and purple ones to turn away."""
    folder = tmp_path_factory.mktemp("recogniser")
    known = [(0.9, 0.4, 0.1), (0.1, 0.6, 0.2)]
    for name, views, seed in (("train", 64, 0), ("eval", 8, 1)):
        images, poses = shapes(known, views, seed)
        np.savez(folder / f"{name}.npz", images=images, poses=poses, names=np.array(NAMES))
    others = [(0.1, 0.2, 0.9), (0.6, 0.1, 0.7), (0.5, 0.5, 0.5), (0.9, 0.9, 0.2), (0.2, 0.3, 0.8)]
    np.savez(folder / "negatives.npz", images=shapes(others, 8, 2)[0], names=np.array(list("abcde")))
    return folder


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    arguments = ["--data", str(data), "--out", str(out), "--steps", "80", "--batch", "40"]
    assert trainer.main(arguments) == 0
    return out


def test_the_trainer_learns_kinds_and_turns_others_away(trained: Path):
    figures = json.loads((trained / "recogniser.json").read_text())
    assert figures["settings"]["steps"] == 80
    assert figures["eval_top1"] == 1 and figures["eval_recognised"] > 0.8
    assert figures["held_out_objects_refused"] > 0.8
    assert figures["inputs"] == 2 and set(figures["azimuth_error_median_by_object"]) == set(NAMES)


def test_what_it_writes_is_small_and_loads(trained: Path, data: Path):
    path = trained / "recogniser.safetensors"
    assert path.stat().st_size < 1_000_000
    model = Recogniser.load(path, 2)
    views = Views(data / "eval.npz")
    seen = model.recognise(views.images[1, 0].float() / 255, NAMES)
    assert seen.name == "cactus" and float(seen.mixture.sum()) == pytest.approx(1) and seen.mixture[1] > 0.5
    assert 0 <= seen.azimuth < 360 and -90 < seen.elevation < 90
    with pytest.raises(UnknownSubject, match=r"none of the objects.*It knows: cactus, teddy bear"):
        model.recognise(torch.rand(3, 64, 64), NAMES)


def test_a_file_for_another_vocabulary_or_a_damaged_one_is_one_line(trained: Path, tmp_path: Path):
    path = trained / "recogniser.safetensors"
    (tmp_path / "half.safetensors").write_bytes(path.read_bytes()[:5000])
    for file, names in ((path, 3), (tmp_path / "half.safetensors", 2)):
        with pytest.raises(ValueError, match=r"image encoder of \d objects") as caught:
            Recogniser.load(file, names)
        assert "\n" not in str(caught.value) and file.name in str(caught.value)


def test_missing_data_is_one_line(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    assert trainer.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "prepare-data" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="--negatives"):
        trainer.read_negatives(tmp_path / "negatives.npz")
    np.savez(tmp_path / "negatives.npz", images=np.zeros((2, 1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="5 or more objects"):
        trainer.read_negatives(tmp_path / "negatives.npz")


def test_the_number_of_negative_views_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from hash3d_cuda.prior import prepare

    with pytest.raises(SystemExit) as caught:
        prepare.main(["--furniture", str(tmp_path), "--out", str(tmp_path), "--negatives", "0"])
    assert caught.value.code == 2 and "--negatives: 0" in capsys.readouterr().err


def test_every_fifth_object_is_held_out_with_all_its_views(data: Path):
    others, unknown = trainer.read_negatives(data / "negatives.npz")
    with np.load(data / "negatives.npz") as file:
        assert np.array_equal(unknown.permute(0, 2, 3, 1).numpy(), file["images"][4])
    assert len(others) == 32 and others.shape[1:] == (3, 64, 64)


def test_a_batch_has_known_objects_first_and_then_none_of_them(data: Path):
    views, (others, _) = Views(data / "train.npz"), trainer.read_negatives(data / "negatives.npz")
    images, kinds, poses = trainer.draw_batch(views, others, 50, torch.Generator().manual_seed(0))
    assert images.shape == (50, 3, 64, 64) and images.min() >= 0 and images.max() <= 1
    assert len(poses) == 30 and (kinds[:30] < 2).all() and (kinds[30:] == 2).all()


def test_only_the_true_objects_pose_head_is_trained(data: Path):
    model = Recogniser(2)
    batch = (torch.rand(2, 3, 64, 64), torch.tensor([1, 2]), torch.tensor([[20.0, 90.0, 2.0]]))
    trainer.loss_of(model, batch, 0.0).backward()
    assert (model.pose.bias.grad[:3] == 0).all() and (model.pose.bias.grad[3:] != 0).all()
    assert torch.allclose(trainer.pose_target(batch[2]), torch.tensor([[1.0, 0.0, 0.3491]]), atol=1e-4)


def test_azimuth_errors_go_the_short_way():
    found, true = torch.tensor([359.0, 10.0, 180.0]), torch.tensor([1.0, 350.0, 0.0])
    assert trainer.azimuth_error(found, true).tolist() == [2, 20, 180]


def left_marked(batch: int) -> torch.Tensor:
    """White pictures with a dark square left of the middle and a lighter one right of it."""
    images = torch.ones(batch, 3, 64, 64)
    images[:, :, 26:38, 20:32] = 0.1
    images[:, :, 26:38, 32:44] = 0.5
    return images


def test_augmented_pictures_are_not_mirrored_and_stay_in_range():
    images = augment.augment(left_marked(200), torch.Generator().manual_seed(0))
    assert images.min() >= 0 and images.max() <= 1
    column = torch.arange(64.0)
    grey = images.mean(1)
    dark, light = (grey < 0.3).float().sum(1), ((grey > 0.4) & (grey < 0.65)).float().sum(1)
    clear = (dark.sum(1) > 20) & (light.sum(1) > 20)
    centre = [(part * column).sum(1) / part.sum(1).clamp(min=1) for part in (dark, light)]
    assert clear.sum() > 100 and (centre[0] < centre[1])[clear].float().mean() > 0.97


def test_moved_objects_have_55_to_110_percent_of_their_size():
    darkness = torch.zeros(300, 1, 64, 64)
    darkness[:, :, 26:38, 26:38] = 1
    moved = augment.move(darkness, torch.Generator().manual_seed(0), tilt=0)
    scale = (moved.sum((1, 2, 3)) / 144).sqrt()
    assert 0.5 < scale.min() < 0.6 and 1.05 < scale.max() < 1.15
    centre = (moved.sum((1, 2)) * torch.arange(64.0)).sum(1) / moved.sum((1, 2, 3))
    assert centre.std() > 3


def test_colours_turn_about_grey():
    matrix = augment.hue_matrix(torch.tensor([0.0, 120.0, 50.0]))
    assert torch.allclose(matrix[0], torch.eye(3), atol=1e-6)
    assert torch.allclose(matrix[1] @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)
    assert torch.allclose(matrix @ torch.ones(3), torch.ones(3, 3), atol=1e-6)


def test_compression_and_softening_change_little():
    images = augment.clouds(8, 64, torch.Generator().manual_seed(0))
    for change in (augment.compress, augment.soften, augment.grain):
        changed = change(images, torch.Generator().manual_seed(1))
        assert changed.shape == images.shape and 0 < (changed - images).abs().mean() < 0.1


def test_spoilt_objects_are_clearly_changed():
    images = left_marked(64)
    others = left_marked(64).flip(2).roll(9, 3)
    spoilt = augment.spoil(images, others, torch.Generator().manual_seed(0))
    change = (spoilt - images).abs().amax((1, 2, 3))
    assert (change > 0.2).all() and spoilt.min() >= 0 and spoilt.max() <= 1


OBJ = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3\nf 1 3 4\n"


def write_library(path: Path, broken: bool = False) -> Path:
    """Five models: one of the vocabulary, one under another licence, two others, one that may be broken."""
    names = [OBJECTS[0].identifier, "attributed", "first", "second", "third"]
    lines = [
        f"id#{i}=Some library#{n}\nname#{i}={n}\nmodel#{i}=/{n}/{n}.obj\ncreator#{i}=X" for i, n in enumerate(names, 1)
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(lines))
        archive.writestr("LICENSE.TXT", "Creative Commons Zero")
        archive.writestr("attributed/LICENSE.html", "Creative Commons Attribution 3.0")
        for name in names:
            archive.writestr(f"{name}/{name}.obj", "nothing" if broken and name == "third" else OBJ)
    path.write_bytes(buffer.getvalue())
    return path


def test_other_objects_are_cc0_and_not_in_the_vocabulary(tmp_path: Path):
    with zipfile.ZipFile(write_library(tmp_path / "small.sh3f")) as archive:
        assert [entry.identifier for entry in other_entries(archive)] == ["first", "second", "third"]


def test_models_that_fail_to_load_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("moderngl")
    pytest.importorskip("trimesh")
    from hash3d_cuda.prior.raster import Renderer

    try:
        Renderer(64).__exit__()
    except RuntimeError as error:
        pytest.skip(f"no offscreen OpenGL here: {error}")
    images, names = render_negatives(write_library(tmp_path / "small.sh3f", broken=True), 3, 0, 64)
    assert names == ["first", "second"] and images.shape == (2, 3, 64, 64, 3) and images.dtype == np.uint8
    assert "skipped third" in capsys.readouterr().err
