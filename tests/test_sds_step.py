"""The rest of the step: what is encoded and decoded in it, light encoders, compiled parts, decisions on the device."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from eager_runner import EagerRunner, eager_runner  # noqa: F401  (a fixture)
from prior_folders import write_stable_diffusion, write_tiny_encoder
from sds_stand_ins import TinyPrior

from hash3d_cuda.cli.main import main
from hash3d_cuda.prior import load_prior
from hash3d_cuda.prior.tiny import load_light_encoder
from hash3d_cuda.sds import compiled
from hash3d_cuda.sds.metrics import time_metrics
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.scenes import make_scene
from hash3d_cuda.sds.settings import GenerateSettings

SMALL = GenerateSettings(steps=4, views_per_step=2, scene_size=8, eta=1.0, memory_budget=2**24, num_buckets=1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("step")
    write_tiny_encoder(root / "tiny")
    write_stable_diffusion(root / "sd", "1.5")
    return root


@pytest.fixture(scope="module")
def prior(folder):
    return load_prior(folder / "sd")


@pytest.fixture(scope="module")
def light(folder):
    return load_prior(folder / "sd", encoder=folder / "tiny")


@contextmanager
def calls_of(**modules):
    """While entered, counts the forwards of the modules by name."""
    counted = Counter()
    handles = [m.register_forward_pre_hook(lambda *_, n=n: counted.update([n])) for n, m in modules.items()]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


def parts_of(prior):
    tiny = {} if prior.light is None else {"tiny": prior.light.encoder}
    vae = prior.vae
    return {"encoder": vae.encoder, "decoder": vae.decoder, "text": prior.text_encoder, **tiny}


def count_steps(prior, settings, second=None, steps=3):
    """Forwards of the prior's parts in a few steps."""
    with (
        SdsRun(prior, prior.resolve("a corgi"), settings, second=second) as run,
        calls_of(**parts_of(prior)) as counted,
    ):
        for _ in range(steps):
            run.train_step()
    return dict(counted)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"encoder": 3}),
        ({"cache": False}, {"encoder": 3}),
        ({"scene": "gaussians", "scene_size": 20}, {"encoder": 3}),
        ({"latent": True}, {}),
        # a picture is what the refined views are compared with: one encoding and one decoding for all denoising steps
        ({"objective": "refine", "t_high": 0.1, "t_low": 0.1}, {"encoder": 3, "decoder": 3}),
    ],
)
def test_no_step_encodes_more_than_once_and_none_decodes_idly(prior, changes, expected):
    assert count_steps(prior, replace(SMALL, **changes)) == expected


def test_one_prior_that_is_asked_twice_encodes_once(prior):
    second = (prior, prior.resolve("a cat"))
    assert count_steps(prior, replace(SMALL, second_weight=0.5, cache=False), second) == {"encoder": 3}
    with_cache = replace(SMALL, second_weight=0.5)
    assert count_steps(prior, with_cache, second) == {"encoder": 3}


def test_a_light_encoder_takes_the_kl_encoders_place(light):
    assert count_steps(light, SMALL) == {"tiny": 3}
    assert count_steps(light, replace(SMALL, latent=True)) == {}
    assert "encoder 'tiny'" in light.name


def test_a_light_encoder_gives_scaled_latents_and_passes_gradients(prior, light, folder):
    from diffusers import AutoencoderTiny

    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    latents = light.encode(images)
    assert latents.shape == prior.encode(images).shape and not torch.allclose(latents, prior.encode(images))
    reference = AutoencoderTiny.from_pretrained(folder / "tiny").eval()
    again = images.detach().clone().requires_grad_()
    expected = reference.encode(again * 2 - 1).latents
    torch.testing.assert_close(latents, expected)
    (gradient,), (wanted,) = (
        torch.autograd.grad(x.square().sum(), y) for x, y in ((latents, images), (expected, again))
    )
    torch.testing.assert_close(gradient, wanted)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    assert not any(p.requires_grad for p in light.light.parameters()) and light.light.decoder is None
    assert torch.equal(light.decode(expected.detach()), prior.decode(expected.detach())), "decoding stays the VAE's"


def test_scale_and_shift_are_applied_as_pipelines_do(folder, tmp_path, light):
    shifted = write_tiny_encoder(tmp_path / "other", scaling_factor=0.5, shift_factor=0.25)
    other = load_prior(folder / "sd", encoder=shifted)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(other.encode(images), (light.encode(images) - 0.25) * 0.5)


def test_an_encoder_in_a_pipelines_folder_is_found(tmp_path):
    write_tiny_encoder(tmp_path / "pipeline" / "vae")
    assert load_light_encoder(tmp_path / "pipeline", 4, 2).config.latent_channels == 4


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("channels", {"latent_channels": 16}, "expected 4 latent channels at 2 pixels per latent.* got 16 at 2"),
        ("scale", {"encoder_block_out_channels": (8,) * 4, "num_encoder_blocks": (1,) * 4}, ".*got 4 at 8"),
    ],
)
def test_an_encoder_of_another_family_is_refused(tmp_path, name, config, message):
    with pytest.raises(ValueError, match=f"^encoder: {message}"):
        load_light_encoder(write_tiny_encoder(tmp_path / name, **config), 4, 2)


def test_wrong_encoders_are_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match=r"^encoder: expected a folder with an AutoencoderTiny.*'nowhere'"):
        load_light_encoder("nowhere", 4, 2)
    with pytest.raises(ValueError, match=r"^encoder: in .* the part 'vae' is of class 'AutoencoderKL'"):
        load_light_encoder(folder / "sd" / "vae", 4, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^encoder: in .* the part 'empty' has no config.json"):
        load_light_encoder(tmp_path / "empty", 4, 2)
    with pytest.raises(ValueError, match=r"^encoder: expected none for .*leave it away"):
        load_prior(encoder=folder / "tiny")


def test_generate_takes_an_encoder(folder, tmp_path, capsys):
    command = ["generate", "a corgi", "--prior", str(folder / "sd"), "--encoder", str(folder / "tiny"), "--steps", "2"]
    small = ["--scene-size", "8", "--turntable-frames", "1", "--turntable-size", "16", "--out", str(tmp_path / "out")]
    assert main([*command, *small]) == 0
    assert "encode" in capsys.readouterr().out


@pytest.fixture
def compiling(monkeypatch):
    """What was handed to torch.compile, by name and how often it was called; nothing is compiled."""
    calls = Counter()

    def compile_nothing(function, **options):
        name = getattr(function, "__qualname__", type(function).__name__)
        calls[name] = 0

        def called(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return called

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(compiled, "check_compiler", lambda device: None)
    monkeypatch.setattr("hash3d_cuda.sds.run.check_compiler", lambda device: None)
    return calls


def losses(settings):
    prior = TinyPrior()
    with SdsRun(prior, prior.resolve("cube"), settings) as run:
        return [float(run.train_step()) for _ in range(settings.steps)], run


@pytest.mark.parametrize(
    ("changes", "called"),
    [
        ({"compile": "unet"}, {"SplitUNet.head": 4, "SplitUNet.deep": 4, "SplitUNet.tail": 4}),
        ({"compile": "scene,encoder", "cache": False}, {"VoxelScene.render": 4, "TinyPrior.encode": 4}),
        ({"compile": "unet", "cache": False}, {"UNet2DConditionModel": 4}),
        ({"compile": "scene", "latent": True, "cache": False}, {"VoxelScene.render": 4}),
        ({"compile": "scene", "shading": "lambert", "cache": False}, {"VoxelScene.render": 4}),
    ],
)
def test_the_parts_that_are_named_are_compiled_and_called(compiling, changes, called):
    settings = replace(SMALL, grids=[(1e-3, 1e-3, 1e-3, 1e-3)], **changes)  # so that nothing hits
    plain, _ = losses(replace(settings, compile=()))
    assert not compiling
    found, _ = losses(settings)
    assert found == plain and dict(compiling) == called


def test_a_scene_can_be_traced(monkeypatch):
    """As for any backend; then it is run by eager kernels."""
    monkeypatch.setattr(compiled, "OPTIONS", {"backend": "eager"})
    torch.compiler.reset()
    scene = make_scene("voxels", size=4, seed=0, device="cpu")
    poses = torch.tensor([10.0]), torch.tensor([20.0]), torch.tensor([2.0])
    found = compiled.compiled("scene", ("scene",), scene.render)(*poses, 4)
    plain = scene.render(*poses, 4)
    torch.testing.assert_close((found.image, found.alpha), (plain.image, plain.alpha))
    torch.compiler.reset()


def test_what_cannot_be_compiled_is_said_at_once(monkeypatch):
    for changes, message in (
        ({"compile": "scene", "scene": "gaussians"}, 'no "scene" among the parts'),
        ({"compile": "encoder", "latent": True}, "no encoder in a latent scene"),
        ({"compile": "loss"}, "'scene', 'encoder', 'unet'"),
        ({"compile": True}, "names among"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^compile: .*{message}"):
            replace(SMALL, **changes)
    assert replace(SMALL, compile="unet, scene").compile == ("scene", "unet")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"^compile: expected a C\+\+ compiler.*install g\+\+"):
        SdsRun(TinyPrior(), TinyPrior().resolve("cube"), replace(SMALL, compile="scene"))


def test_decisions_on_the_device_are_counted_in_the_end(eager_runner: type[EagerRunner]):  # noqa: F811
    settings = replace(SMALL, decide="device", grids=[(90, 360, 1, 1000)])
    _, run = losses(settings)
    run.settle()
    assert run.served["hits"] > 0 and sum(run.served.values()) == settings.steps * settings.views_per_step
    assert [int(run.log.column(name).sum()) for name in run.served] == list(run.served.values())
    figures, _ = time_metrics(run.log)
    assert figures["hit_cost_r"] is None and figures["split_s"]["unet_hit"] == 0
    assert eager_runner.launches > 0


def test_counts_that_come_late_are_filed(monkeypatch):
    """The device reports nothing until it is waited for."""
    prior = TinyPrior()
    with SdsRun(prior, prior.resolve("cube"), replace(SMALL, cache=False, decide="device")) as run:
        told = {"hits": 0, "misses": 0, "bypasses": 0}
        stats = SimpleNamespace(hits=3, misses=2, bypasses=1)
        cache = SimpleNamespace(served=lambda: told, stats=lambda: stats, tables=[], remove=lambda: None)
        run.caches.append(cache)
        run.train_step()
        assert run.served == told
        run.settle()
        assert run.served == {"hits": 3, "misses": 2, "bypasses": 1} and run.log.column("hits").sum() == 3


def test_devices_decide_on_cuda_alone(tmp_path, capsys):
    arguments = ["generate", "teddy bear", "--decide", "device", "--steps", "2", "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("hash3d: error: ") and 'decide="host"' in error and error.count("\n") == 1
