"""Priors made of diffusers folders: Stable Diffusion 1.5 and 2.1, Zero123, all with random weights and few channels."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from prior_folders import LENGTH, write_stable_diffusion, write_zero123

from hash3d_cuda.prior import UnknownSubject, load_prior
from hash3d_cuda.prior.text import VIEWS, view_index
from hash3d_cuda.prior.zero123 import relative_pose

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

POSES = dict(elevation=[10.0, 20.0, 70.0], azimuth=[0.0, 180.0, 90.0], radius=[2.0, 1.9, 2.1])


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per topology, written once."""
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "sd15": write_stable_diffusion(root / "sd15", "1.5"),
        "sd21": write_stable_diffusion(root / "sd21", "2.1"),
        "zero123": write_zero123(root / "zero123"),
        "zero123-older": write_zero123(root / "zero123-older", "cc_projection"),
    }


@pytest.fixture(scope="session")
def priors(folders):
    return {name: load_prior(folder) for name, folder in folders.items()}


def picture(seed: int = 0) -> Image.Image:
    """A coloured disc with alpha."""
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    colour = np.random.default_rng(seed).integers(0, 255, 3)
    rgba = np.zeros((48, 48, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = colour, 255 * (x**2 + y**2 < 0.5)
    return Image.fromarray(rgba)


def subject_of(prior, name: str):
    return prior.resolve("a corgi" if name.startswith("sd") else picture())


def test_importing_the_package_does_not_import_diffusers():
    heavy = ("diffusers", "transformers", "torchvision", "huggingface_hub")
    code = f"import sys, hash3d_cuda.prior; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["sd15", "sd21", "zero123", "zero123-older"])
class TestEveryKind:
    def test_what_it_says_of_itself(self, priors, name: str):
        prior = priors[name]
        assert prior.prediction_type == ("v_prediction" if name == "sd21" else "epsilon")
        assert (prior.latent_shape, prior.image_size) == ((4, 8, 8), 16)
        assert prior.vocabulary is None and prior.groups == 2 and name in prior.name
        assert prior.alphas_cumprod.shape == (1000,) and 0.99 < prior.alphas_cumprod[0] < 1
        assert prior.alphas_cumprod[-1] == pytest.approx(0.0047, abs=1e-3)
        assert not any(p.requires_grad for p in (*prior.unet.parameters(), *prior.vae.parameters()))
        assert next(prior.unet.parameters()).dtype == torch.float32

    def test_encode_and_decode_are_the_vaes_scaled(self, priors, name: str):
        prior = priors[name]
        images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        latents = prior.encode(images)
        assert latents.shape == (2, 4, 8, 8) and latents.dtype == torch.float32
        expected = prior.vae.encode(images * 2 - 1).latent_dist.mode() * 0.18215
        assert torch.allclose(latents, expected)
        assert torch.equal(latents, prior.encode(images)), "no random number is drawn"
        latents.square().sum().backward()
        assert images.grad.isfinite().all() and (images.grad.abs().amax((1, 2, 3)) > 0).all()
        decoded = prior.decode(latents.detach())
        assert decoded.shape == (2, 3, 16, 16)
        assert torch.allclose(decoded, prior.vae.decode(latents.detach() / 0.18215).sample / 2 + 0.5)

    def test_conditioned_rows_come_first(self, priors, name: str):
        prior = priors[name]
        subject = subject_of(prior, name)
        tokens = prior.conditioning(subject, **POSES)["encoder_hidden_states"]
        assert len(tokens) == 6
        for item in range(3):  # one view alone gives that view's rows
            alone = {key: values[item : item + 1] for key, values in POSES.items()}
            single = prior.conditioning(subject, **alone)["encoder_hidden_states"]
            assert torch.allclose(single, tokens[[item, 3 + item]], atol=1e-6)
        assert torch.equal(tokens[3], tokens[4]) and torch.equal(tokens[4], tokens[5])
        assert not torch.allclose(tokens[0], tokens[1]) and not torch.allclose(tokens[0], tokens[3])

    def test_the_unet_takes_what_the_prior_gives(self, priors, name: str):
        prior = priors[name]
        subject = subject_of(prior, name)
        sample = prior.model_input(torch.randn(3, *prior.latent_shape), subject)
        with torch.no_grad():
            out = prior.unet(sample, torch.tensor([500] * 6), **prior.conditioning(subject, **POSES)).sample
        assert out.shape == (6, 4, 8, 8) and out.isfinite().all()

    def test_two_steps_end_to_end_with_the_cache(self, priors, name: str, tmp_path: Path):
        from hash3d_cuda.sds.loop import generate
        from hash3d_cuda.sds.settings import GenerateSettings

        prior = priors[name]
        settings = GenerateSettings(
            steps=2, views_per_step=2, scene_size=8, eta=1.0, turntable_frames=2, turntable_size=16, memory_budget=2**24
        )
        result = generate(prior, subject_of(prior, name), settings, tmp_path)
        cache = result.metrics["cache"]
        assert cache["hits"] + cache["misses"] + cache["bypasses"] == 4
        assert cache["misses"] > 0 and result.metrics["quality"] is None
        assert (tmp_path / "report.html").is_file() and result.views.isfinite().all()
        assert prior.unet.forward.__func__ is type(prior.unet).forward, "the U-Net is as it was"


@pytest.mark.parametrize(
    "elevation,azimuth,view",
    [(0, 0, 0), (0, 44, 0), (0, 316, 0), (0, 46, 1), (0, 270, 1), (0, 180, 2), (0, -170, 2), (60, 0, 3), (59, 0, 0)],
)
def test_poses_have_words(elevation: float, azimuth: float, view: int):
    assert view_index(elevation, azimuth) == view


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_the_view_is_said_at_the_end_of_the_prompt(priors, name: str):
    prior = priors[name]
    subject = prior.resolve("  A  corgi ")
    assert (subject.label, subject.name, subject.image) == ("A corgi", None, None)
    tokens = prior.conditioning(subject, **POSES)["encoder_hidden_states"]
    texts = [f"A corgi, {VIEWS[k]}" for k in (0, 2, 3)] + [""] * 3
    ids = prior.tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(tokens, prior.text_encoder(ids)[0], atol=1e-5)


def test_a_text_prior_says_what_it_takes(priors):
    with pytest.raises(UnknownSubject, match="takes a prompt, got Image"):
        priors["sd15"].resolve(picture())
    with pytest.raises(UnknownSubject, match="the prompt is empty"):
        priors["sd15"].resolve("  ")
    with pytest.raises(UnknownSubject, match=f"reads at most {LENGTH}; shorten it"):
        priors["sd15"].resolve("corgi " * 20)


def test_relative_pose_follows_zero123s_convention(priors):
    subject = priors["zero123"].resolve(picture(), elevation=20.0, azimuth=350.0, radius=1.9)
    rows = relative_pose(subject, [20.0, 50.0], [350.0, 20.0], [1.9, 2.1])
    assert torch.allclose(rows[0], torch.tensor([0.0, 0, 1, 0]), atol=1e-6)
    # 30 degrees up is 30 degrees less from the pole; 350 to 20 is 30 degrees on.
    third = math.pi / 6
    assert torch.allclose(rows[1], torch.tensor([-third, math.sin(third), math.cos(third), 0.2]), atol=1e-6)


def test_an_image_priors_rows(priors):
    """Picture latents behind the noisy ones, unscaled, and zeros for latents and token where unconditioned."""
    prior = priors["zero123"]
    subject = prior.resolve(picture())
    assert subject.image.shape == (3, 16, 16) and subject.alpha.shape == (1, 16, 16)
    assert (subject.elevation, subject.azimuth, subject.radius) == (5.0, 0.0, 2.0)
    noisy = torch.randn(3, 4, 8, 8)
    sample = prior.model_input(noisy, subject)
    assert sample.shape == (6, 8, 8, 8)
    assert torch.equal(sample[:, :4], torch.cat([noisy, noisy]))
    picture_latent = prior.vae.encode(subject.image[None] * 2 - 1).latent_dist.mode()
    assert torch.allclose(sample[:3, 4:], picture_latent.expand(3, -1, -1, -1))
    assert (sample[3:, 4:] == 0).all()
    tokens = prior.conditioning(subject, **POSES)["encoder_hidden_states"]
    assert tokens.shape == (6, 1, 16) and (tokens[3:] == 0).all() and (tokens[:3] != 0).any()
    other = prior.conditioning(prior.resolve(picture(5)), **POSES)["encoder_hidden_states"]
    assert not torch.allclose(tokens[:3], other[:3])


def test_an_image_prior_wants_a_picture(priors):
    with pytest.raises(UnknownSubject, match="takes a picture, got the word 'corgi'"):
        priors["zero123"].resolve("corgi")


def test_the_picture_is_normalised_as_the_folder_says(folders, tmp_path: Path):
    folder = shutil.copytree(folders["zero123"], tmp_path / "other")
    plain = load_prior(folder).resolve(picture()).data["embedding"]
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(
        '{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}'
    )
    assert not torch.allclose(load_prior(folder).resolve(picture()).data["embedding"], plain)


def test_loading_and_resolving_print_nothing(folders, capfd: pytest.CaptureFixture[str]):
    load_prior(folders["sd15"]).resolve("a corgi")
    load_prior(folders["zero123"]).resolve(picture())
    assert capfd.readouterr() == ("", "")


def test_half_precision_variants_load_when_there_is_nothing_else(folders, tmp_path: Path):
    folder = shutil.copytree(folders["sd15"], tmp_path / "half")
    reference = load_prior(folder).unet.conv_in.weight
    for part in ("unet", "vae", "text_encoder"):
        path = next((folder / part).glob("*.safetensors"))
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert torch.equal(load_prior(folder).unet.conv_in.weight, reference)


def test_weights_in_the_older_pickled_format_load_too(folders, tmp_path: Path):
    from safetensors.torch import load_file

    folder = shutil.copytree(folders["sd15"], tmp_path / "pickled")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    reference = load_prior(folder)
    path.unlink()
    weights = load_prior(folder).unet.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in reference.unet.state_dict().items())
