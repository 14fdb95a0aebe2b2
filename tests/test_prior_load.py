"""What ``load_prior`` says of folders and hub ids that do not do: one line that names folder and part."""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from prior_folders import write_stable_diffusion, write_unet, write_zero123
from safetensors.torch import load_file, save_file

from hash3d_cuda.prior import hub, load_prior
from hash3d_cuda.prior import load as load_module

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that load; every test below spoils a copy."""
    root = tmp_path_factory.mktemp("whole")
    return {"text": write_stable_diffusion(root / "sd", "1.5"), "image": write_zero123(root / "zero123")}


@pytest.fixture
def spoilt(whole: dict[str, Path], tmp_path: Path):
    """Returns a function that copies a folder."""
    return lambda kind: Path(shutil.copytree(whole[kind], tmp_path / kind))


def error_of(source, kind: type[Exception] = ValueError) -> str:
    """The message of the error, one line."""
    with pytest.raises(kind) as caught, warnings.catch_warnings():
        warnings.simplefilter("error")
        load_prior(source)
    text = str(caught.value)
    assert text.startswith("prior: ") and "\n" not in text and len(text) < 600
    return text


def edit(path: Path, **changes) -> None:
    """Changes values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_of_a_text_pipeline_is_named(spoilt, part: str):
    folder = spoilt("text")
    shutil.rmtree(folder / part)
    text = error_of(folder)
    assert str(folder) in text and f"'{part}'" in text


@pytest.mark.parametrize("part", ["vae", "image_encoder", "clip_camera_projection", "scheduler"])
def test_a_missing_part_of_an_image_pipeline_is_named(spoilt, part: str):
    folder = spoilt("image")
    shutil.rmtree(folder / part)
    text = error_of(folder)
    assert str(folder) in text and f"'{part}'" in text and "is missing" in text


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights_and_configs_are_named(spoilt, part: str):
    folder = spoilt("text")
    weights = next((folder / part).glob("*.safetensors"))
    weights.rename(folder / "aside")
    assert f"'{part}' has no weights" in error_of(folder)
    (folder / "aside").rename(weights)
    (folder / part / "config.json").write_text("{")
    assert f"{part}/config.json' is not JSON" in error_of(folder)
    (folder / part / "config.json").unlink()
    assert f"'{part}' has no config.json" in error_of(folder)


@pytest.mark.parametrize(
    "kind,part", [("text", "unet"), ("text", "vae"), ("text", "text_encoder"), ("image", "clip_camera_projection")]
)
def test_damaged_weights_are_named(spoilt, kind: str, part: str):
    folder = spoilt(kind)
    path = next((folder / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])
    text = error_of(folder)
    assert f"'{part}' cannot be loaded" in text and str(folder) in text


@pytest.mark.parametrize("part,key", [("unet", "conv_in.weight"), ("vae", "encoder.conv_in.weight")])
def test_wrong_shapes_and_absent_tensors_are_named(spoilt, part: str, key: str):
    folder = spoilt("text")
    path = folder / part / WEIGHTS
    tensors = load_file(path)
    save_file({**tensors, key: tensors[key][:, :1].contiguous()}, path, metadata={"format": "pt"})
    text = error_of(folder)
    assert f"'{part}'" in text and key in text
    save_file({k: v for k, v in tensors.items() if k != key}, path, metadata={"format": "pt"})
    text = error_of(folder)
    assert f"'{part}'" in text and key in text


def test_a_text_encoder_with_absent_or_wrong_tensors_is_not_filled_at_random(spoilt):
    folder = spoilt("text")
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if "k_proj.weight" in k)
    save_file({k: v for k, v in tensors.items() if k != key}, path, metadata={"format": "pt"})
    assert "'text_encoder' has no weights for" in error_of(folder)
    save_file({**tensors, key: tensors[key][:4].contiguous()}, path, metadata={"format": "pt"})
    assert "'text_encoder'" in error_of(folder)


def test_an_unsupported_unet_is_named(spoilt, tmp_path: Path):
    folder = spoilt("text")
    edit(folder / "unet" / "config.json", _class_name="UNet3DConditionModel")
    text = error_of(folder)
    assert "'unet' is of class 'UNet3DConditionModel', only 'UNet2DConditionModel'" in text
    edit(folder / "unet" / "config.json", _class_name="UNet2DConditionModel", addition_embed_type="text_time")
    assert "not supported: addition_embed_type" in error_of(folder)
    shutil.rmtree(folder / "unet")
    write_unet(folder, in_channels=9)
    assert "'unet' has 9 input channels, expected 4" in error_of(folder)


def test_parts_that_do_not_fit_together_are_named(spoilt):
    folder = spoilt("text")
    shutil.rmtree(folder / "unet")
    write_unet(folder, cross_attention_dim=24)
    assert "'text_encoder' makes tokens 16 wide, but the U-Net takes 24" in error_of(folder)
    folder = spoilt("image")
    path = folder / "clip_camera_projection" / WEIGHTS
    save_file({"proj.weight": torch.zeros(16, 15), "proj.bias": torch.zeros(16)}, path)
    assert "one linear map from 16, holds" in error_of(folder)


def test_a_scheduler_that_cannot_be_used_is_named(spoilt):
    folder = spoilt("text")
    path = folder / "scheduler" / "scheduler_config.json"
    edit(path, prediction_type="flow")
    assert "'scheduler' has the unknown prediction_type 'flow'" in error_of(folder)
    edit(path, prediction_type="epsilon", beta_schedule="nothing")
    assert "'scheduler' cannot be used" in error_of(folder)


def test_a_tokenizer_without_words_is_named(spoilt):
    folder = spoilt("text")
    (folder / "tokenizer" / "vocab.json").unlink()
    assert "'tokenizer' has no vocab.json" in error_of(folder)


def test_what_is_no_folder_says_so(tmp_path: Path):
    assert "lacks the part 'unet' (it holds nothing)" in error_of(tmp_path)
    (tmp_path / "weights.ckpt").write_bytes(b"")
    assert "is a file" in error_of(tmp_path / "weights.ckpt")
    assert "no folder" in error_of(tmp_path / "absent")
    assert "no folder" in error_of("absent")
    for wrong in ("", 3, ["a"]):
        assert "expected a folder or a hub id" in error_of(wrong)
    with pytest.raises(ValueError, match="device"):
        load_prior(tmp_path, device="tpu")


def test_an_incomplete_installation_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hash3d_cuda.prior import shipped

    monkeypatch.setattr(shipped, "shipped_folder", lambda: tmp_path)
    text = error_of(None, FileNotFoundError)
    assert all(name in text for name in load_module.SHIPPED_FILES)


def no_network(*_: object, **__: object) -> None:
    raise AssertionError("the network was asked")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub's client that is empty, whatever the user's holds; and a client that may not talk."""
    from huggingface_hub import _snapshot_download, constants

    for module in (constants, _snapshot_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache"


def fill_cache(cache: Path, hub_id: str, folder: Path) -> None:
    """Puts a folder where the hub's client keeps a snapshot."""
    store = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(folder, store / "snapshots" / "abc")
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("abc")


def test_an_offline_user_gets_an_answer_without_any_network(empty_cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "list_files", no_network)
    text = error_of("some-org/some-model", OSError)
    assert "'some-org/some-model'" in text and "HF_HUB_OFFLINE is set" in text and "local" in text


def test_a_cached_snapshot_serves_offline_and_when_the_hub_is_away(whole, empty_cache, monkeypatch: pytest.MonkeyPatch):
    def unreachable(hub_id: str, api: object) -> list[str]:
        raise ConnectionError("no route")

    fill_cache(empty_cache, "some-org/some-model", whole["text"])
    monkeypatch.setattr(hub, "list_files", unreachable)
    assert load_prior("some-org/some-model").prediction_type == "epsilon"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "list_files", no_network)
    assert load_prior("some-org/some-model").prediction_type == "epsilon"


def test_an_unreachable_hub_is_one_line(empty_cache, monkeypatch: pytest.MonkeyPatch):
    def unreachable(hub_id: str, api: object) -> list[str]:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(hub, "list_files", unreachable)
    assert "the model hub cannot be reached (ConnectionError)" in error_of("some-org/some-model", OSError)


def test_a_hub_that_never_answers_is_left_alone(empty_cache, monkeypatch: pytest.MonkeyPatch):
    """Not even name resolution can hold the user up: the call goes on in a thread that nobody waits for."""
    release, asked = threading.Event(), threading.Event()

    def hangs(hub_id: str, api: object) -> list[str]:
        asked.set()
        release.wait(60)
        return []

    monkeypatch.setattr(hub, "list_files", hangs)
    monkeypatch.setattr(hub, "SECONDS", 0.05)
    assert "TimeoutError" in error_of("some-org/some-model", OSError)
    assert asked.is_set() and not release.is_set()
    release.set()


def test_the_hub_gets_a_few_seconds_at_most():
    assert 0 < hub.SECONDS <= 5


def test_a_repository_that_does_not_exist_is_not_called_unreachable(empty_cache, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    def absent(hub_id: str, api: object) -> list[str]:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(hub, "list_files", absent)
    assert "has no such model" in error_of("some-org/some-model", OSError)


def test_only_what_is_needed_is_downloaded(empty_cache, whole, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    listed = [
        "README.md", "model_index.json", "v1-5-pruned.ckpt", "unet/config.json", f"unet/{WEIGHTS}",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.bin", "safety_checker/model.safetensors", "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin",
    ]  # fmt: skip
    asked = {}

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        asked[hub_id] = allow_patterns
        return str(whole["text"])

    monkeypatch.setattr(hub, "list_files", lambda *_: listed)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_prior("some-org/some-model").groups == 2
    assert asked == {
        "some-org/some-model": sorted([
            "model_index.json", "unet/config.json", f"unet/{WEIGHTS}", "vae/config.json",
            "vae/diffusion_pytorch_model.bin", "tokenizer/vocab.json", "tokenizer/merges.txt",
            "text_encoder/model.safetensors",
        ])
    }  # fmt: skip
