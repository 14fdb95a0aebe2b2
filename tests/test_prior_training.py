"""Training of the shipped prior: stop and go on, saving, optimiser, schedule, and the small networks' properties."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("PIL")

from hash3d_cuda.prior import load_prior, objective
from hash3d_cuda.prior import train as training
from hash3d_cuda.prior.data import Batch, Views
from hash3d_cuda.prior.model import UNET_CONFIG, Conditioner, camera_features, images_to_latents, latents_to_images
from hash3d_cuda.prior.muon import Muon, make_optimizers, orthogonalise
from hash3d_cuda.prior.shipped import ShippedPrior, save_prior

NAMES = ["teddy bear", "cactus"]


def write_views(path: Path, views: int = 4, names: list[str] = NAMES) -> Path:
    """Random pictures in the form that ``hash3d prepare-data`` writes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (len(names), views, 64, 64, 3), np.uint8)
    poses = rng.uniform((-10, 0, 1.8), (60, 360, 2.2), (len(names), views, 3)).astype(np.float32)
    np.savez(path, images=images, poses=poses, names=np.array(names))
    return path


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with training views. Every look at the clock is a second, so minutes mean steps; validation is short,
    and the U-Net narrow."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(training, "validate", functools.partial(objective.validate, items=1))
    monkeypatch.setattr(training, "sample_grid", functools.partial(objective.sample_grid, steps=1))
    monkeypatch.setitem(UNET_CONFIG, "block_out_channels", (16, 16, 24))
    write_views(tmp_path / "train.npz")
    return tmp_path


def make_trainer(data: Path, out: str, steps: int) -> training.Trainer:
    views = Views(data / "train.npz")
    settings = training.TrainSettings(minutes=steps / 60, batch=2)
    (data / out).mkdir(exist_ok=True)
    return training.Trainer(views, views, data / out, settings)


def state_of(trainer: training.Trainer) -> dict[str, torch.Tensor]:
    """Every tensor that the next step depends on."""
    found = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    found |= {f"average.{k}": v for k, v in trainer.average.state_dict().items()}
    for number, optimizer in enumerate(trainer.optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            found |= {f"{number}.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return found


def assert_same(first: training.Trainer, second: training.Trainer) -> None:
    a, b = state_of(first), state_of(second)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    for name in ("step", "samples", "seconds"):
        assert getattr(first, name) == getattr(second, name)


def test_a_stopped_run_goes_on_exactly_where_it_was(data: Path, capsys: pytest.CaptureFixture[str]):
    first = make_trainer(data, "run", steps=4)
    step = first.train_step
    first.train_step = lambda: (setattr(first, "stopping", first.step == 1), step())[
        1
    ]  # asked to stop in the second step
    first.run()
    assert first.step == 2 and first.spent == 0.5
    torch.manual_seed(99)
    second = make_trainer(data, "run", steps=4)
    second.resume(data / "run" / "checkpoint.pt")
    assert_same(first, second)
    first.train_step, first.stopping = step, False
    first.run()  # the one that never left memory
    second.run()
    assert second.step == 4 and second.spent == 1
    assert_same(first, second)
    lines = [json.loads(line) for line in (data / "run" / "log.jsonl").read_text().splitlines()]
    assert {"step", "samples", "minutes", "psnr_t500"} <= set(lines[0])


def test_a_checkpoint_of_another_vocabulary_is_refused(data: Path):
    trainer = make_trainer(data, "run", steps=1)
    trainer.run()
    write_views(data / "train.npz", names=[*NAMES, "sofa"])
    with pytest.raises(ValueError, match="knows 2 names, the data has 3"):
        make_trainer(data, "run", steps=1).resume(data / "run" / "checkpoint.pt")


def test_a_run_may_start_from_a_trained_prior(data: Path):
    first = make_trainer(data, "run", steps=2)
    first.run()
    second = make_trainer(data, "more", steps=2)
    second.start_from(data / "run" / "prior")
    saved = first.average.state_dict()
    assert all(torch.equal(value, saved[name].half().float()) for name, value in second.model.state_dict().items())
    second.run()
    about = json.loads((data / "more" / "prior" / "prior.json").read_text())
    assert second.step == 2 and about["trained"]["samples"] == first.samples + second.samples
    write_views(data / "train.npz", names=[*NAMES, "sofa"])
    with pytest.raises(ValueError, match="knows 2 names, the data has 3"):
        make_trainer(data, "third", steps=1).start_from(data / "run" / "prior")


def test_ctrl_c_ends_after_the_step_with_everything_saved(data: Path, monkeypatch: pytest.MonkeyPatch):
    """And the same command goes on from there."""
    step = training.Trainer.train_step

    def interrupted(self: training.Trainer) -> float:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(training.Trainer, "train_step", interrupted)
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    arguments = ["--data", str(data), "--out", str(data / "run"), "--batch", "2", "--minutes", str(4 / 60)]
    try:
        assert training.main(arguments) == 0
        assert torch.load(data / "run" / "checkpoint.pt", weights_only=True)["step"] == 2
        assert load_prior(data / "run" / "prior").vocabulary == NAMES
        assert training.main(arguments) == 0
        assert torch.load(data / "run" / "checkpoint.pt", weights_only=True)["step"] == 4
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


def test_learning_rate_warms_up_stays_and_falls():
    settings = training.TrainSettings(lr=1.0, warmup=0.1, decay_from=0.5)
    rates = {spent: training.learning_rate(settings, spent) for spent in (0, 0.05, 0.1, 0.3, 0.5, 0.75, 1)}
    assert rates == pytest.approx({0: 0.02, 0.05: 0.5, 0.1: 1, 0.3: 1, 0.5: 1, 0.75: 0.5, 1: 0.01})


def test_the_data_says_what_it_lacks(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="prepare-data"):
        Views(tmp_path / "train.npz")
    np.savez(tmp_path / "train.npz", images=np.zeros(1))
    with pytest.raises(ValueError, match=r"lacks \['names', 'poses'\]"):
        Views(tmp_path / "train.npz")


@pytest.mark.parametrize("shape", [(48, 432), (96, 16), (64, 64)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]):
    """Whatever the scale, for singular values spread over a factor of 30, and along the same singular vectors."""
    small = min(shape)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, 1.5, small)) @ v
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.6 and values.max() < 1.3
    along = torch.diagonal(u.T @ orthogonalise(matrix) @ v.T)
    assert torch.allclose(along.sort().values, values.sort().values, atol=1e-3)


def test_muon_takes_steps_of_adams_size_and_decays():
    weight = torch.nn.Parameter(torch.full((8, 4, 3, 3), 2.0))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    moved = weight.detach() - 2.0 * (1 - 0.05)
    assert 0.1 < moved.square().mean().sqrt() / 0.1 < 0.3


def test_every_parameter_has_one_optimizer():
    model = torch.nn.ModuleDict(
        {"names": torch.nn.Embedding(3, 4), "inner": torch.nn.Linear(4, 4), "conv_in": torch.nn.Conv2d(3, 3, 1)}
    )
    muon, adam = make_optimizers(model, 0.1, 0.0)
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(model["inner"].weight)]
    assert len(adam.param_groups[0]["params"]) == len(list(model.parameters())) - 1


def test_camera_features_are_periodic_in_azimuth_and_tell_poses_apart():
    azimuth = torch.tensor([0.0, 37.0, 359.0])
    elevation, radius = torch.full((3,), 20.0), torch.full((3,), 2.0)
    features = camera_features(elevation, azimuth, radius)
    assert torch.allclose(features, camera_features(elevation, azimuth + 360, radius), atol=1e-4)
    assert torch.allclose(features, camera_features(elevation, azimuth - 720, radius), atol=1e-4)
    for changed in (
        (elevation + 5, azimuth, radius),
        (elevation, azimuth + 5, radius),
        (elevation, azimuth, radius + 0.1),
    ):
        assert ((camera_features(*changed) - features).abs().amax(1) > 0.05).all()
    assert (features.abs() <= 1).all()


def test_latents_are_the_picture_exactly():
    images = (torch.randint(0, 257, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)) / 256).requires_grad_()
    latents = images_to_latents(images)
    assert latents.shape == (2, 48, 16, 16) and latents.abs().max() <= 1
    assert torch.equal(latents_to_images(latents), images)
    assert torch.equal(latents[0, :16, 3, 5].view(4, 4), images[0, 0, 12:16, 20:24] * 2 - 1)
    latents.sum().backward()
    assert (images.grad == 2).all()


def test_dropped_rows_get_the_null_condition():
    conditioner = Conditioner(3)
    torch.nn.init.normal_(conditioner.null_tokens)
    torch.nn.init.normal_(conditioner.null_summary)
    poses = [torch.rand(4) for _ in range(3)]
    tokens, summary = conditioner(conditioner.names(torch.tensor([0, 1, 2, 0])), *poses)
    dropped = torch.tensor([True, False, True, False])
    new_tokens, new_summary = conditioner.drop(tokens, summary, dropped)
    assert torch.equal(new_tokens[[1, 3]], tokens[[1, 3]]) and torch.equal(new_summary[[1, 3]], summary[[1, 3]])
    assert torch.equal(new_tokens[[0, 2]], conditioner.null(2)[0]) and torch.equal(
        new_summary[[0, 2]], conditioner.null(2)[1]
    )


def test_a_tenth_of_the_conditions_is_dropped_in_training():
    seen = []

    def model(noisy, t, batch, dropped):
        seen.append(dropped)
        return noisy

    batch = Batch(torch.zeros(50, dtype=torch.long), torch.rand(50, 3, 8, 8), torch.zeros(50, 3))
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        objective.training_loss(model, batch, objective.noise_schedule(), generator)
    assert torch.stack(seen).float().mean() == pytest.approx(objective.DROP_CONDITION, abs=0.02)


def test_a_perfect_prediction_has_no_loss_and_noise_follows_equation_1():
    batch = Batch(torch.zeros(4, dtype=torch.long), torch.rand(4, 3, 8, 8), torch.zeros(4, 3))
    alphas, generator = objective.noise_schedule(), torch.Generator().manual_seed(0)
    assert objective.training_loss(lambda *_: images_to_latents(batch.images), batch, alphas, generator) == 0
    t = torch.tensor([0, 400, 999])
    noise = torch.randn(3, 48, 2, 2, generator=torch.Generator().manual_seed(5))
    noisy = objective.add_noise(torch.ones(3, 48, 2, 2), t, alphas, torch.Generator().manual_seed(5))
    abar = alphas[t].view(3, 1, 1, 1)
    assert torch.allclose(noisy, abar.sqrt() + (1 - abar).sqrt() * noise)


def test_a_saved_prior_comes_back(tmp_path: Path):
    torch.manual_seed(0)
    model = objective.Model(2)
    save_prior(model, NAMES, tmp_path, trained={"samples": 7})
    prior = load_prior(tmp_path)
    assert isinstance(prior, ShippedPrior) and prior.vocabulary == NAMES and prior.about["trained"] == {"samples": 7}
    for mine, theirs in ((model.unet, prior.unet), (model.conditioner, prior.conditioner)):
        loaded = theirs.state_dict()
        assert all(torch.equal(value.half().float(), loaded[key]) for key, value in mine.state_dict().items())
    poses = dict(elevation=[10.0, 20.0], azimuth=[0.0, 90.0], radius=[2.0, 2.0])
    with torch.no_grad():
        condition = prior.conditioning(prior.resolve("a Cactus"), **poses)
        assert condition["encoder_hidden_states"].shape[0] == condition["class_labels"].shape[0] == 4
        index = torch.tensor([1, 1])
        pose = torch.tensor(list(zip(*poses.values())))
        expected = prior.conditioner(prior.conditioner.names(index), *pose.unbind(-1))[0]
        assert torch.allclose(condition["encoder_hidden_states"][:2], expected, atol=1e-6)
        assert torch.equal(condition["encoder_hidden_states"][2:], prior.conditioner.null(2)[0])


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "conditioner.safetensors", "prior.json", "unet/config.json"]
)
def test_a_damaged_prior_folder_names_the_file(tmp_path: Path, name: str):
    save_prior(objective.Model(2), NAMES, tmp_path, trained={})
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError) as caught:
        load_prior(tmp_path)
    assert (
        path.name.split(".")[0] in str(caught.value)
        and str(tmp_path) in str(caught.value)
        and "\n" not in str(caught.value)
    )
    path.unlink()
    with pytest.raises(ValueError, match=r"missing|has no config\.json"):
        load_prior(tmp_path)


def test_a_prior_of_another_size_is_refused(tmp_path: Path):
    save_prior(objective.Model(2), NAMES, tmp_path, trained={})
    path = tmp_path / "prior.json"
    path.write_text(path.read_text().replace('"cactus"', '"cactus", "sofa"'))
    with pytest.raises(ValueError, match=r"does not fit.*names\.weight"):
        load_prior(tmp_path)
