"""generate and compare from the command line, end to end on a tiny prior."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from forked import Forked
from PIL import Image
from sds_stand_ins import TinyPrior

from hash3d_cuda.cli import main
from hash3d_cuda.cli.options import default_folder, looks_like_path
from hash3d_cuda.sds.checkpoint import find_checkpoint

SMALL = ["--scene-size", "8", "--turntable-frames", "3", "--turntable-size", "16", "--memory-budget", "16MiB"]
CACHE = ["--eta", "0.7", "--grids", "90,120,1,300"]


@pytest.fixture(autouse=True)
def tiny_prior(monkeypatch):
    monkeypatch.setattr(
        "hash3d_cuda.prior.load_prior", lambda name=None, device="cpu", encoder=None: TinyPrior(), raising=False
    )


def views(folder):
    return [Image.open(path).tobytes() for path in sorted((folder / "views").iterdir())]


def test_generate_from_a_name(capsys, tmp_path):
    out = tmp_path / "cube"
    assert main(["generate", "cube", "--out", str(out), "--steps", "6", *SMALL, *CACHE]) == 0
    captured = capsys.readouterr()
    assert "cube: 6 steps" in captured.out and "cache: " in captured.out and "report.html" in captured.out
    assert "6/6" in captured.err and "hit rate" in captured.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["settings"]["grids"] == [[90, 120, 1, 300]] and metrics["settings"]["eta"] == 0.7


def test_quiet_and_default_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "ball", "--steps", "1", "--no-cache", "--quiet", *SMALL]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert (tmp_path / "hash3d-ball" / "report.html").is_file()
    assert str(default_folder("pictures/Teddy Bear.png", "-compare")) == "hash3d-teddy-bear-compare"


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "RGB", "1", "LA", "I;16", "CMYK"])
def test_generate_from_a_picture_of_any_mode(tmp_path, mode):
    picture = tmp_path / ("picture.tif" if mode in ("I;16", "CMYK") else "picture.png")
    Image.new(mode, (50, 30)).save(picture)
    argv = [
        "generate",
        str(picture),
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "2",
        "--quiet",
        "--azimuth",
        "40",
    ]
    assert main([*argv, *SMALL]) == 0
    subject = json.loads((tmp_path / "out" / "metrics.json").read_text())["subject"]
    assert subject["kind"] == "picture" and (subject["azimuth"], subject["elevation"]) == (40, 10)


def test_a_folder_called_as_the_object_is_in_nobodys_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["generate", "cube", "--out", "cube", "--steps", "1", "--quiet", *SMALL]) == 0
    assert (tmp_path / "cube" / "report.html").is_file()


def test_grids_by_name(tmp_path):
    argv = ["generate", "cube", "--out", str(tmp_path), "--steps", "1", "--quiet", "--grids", "pose", *SMALL]
    assert main(argv) == 0
    grids = json.loads((tmp_path / "metrics.json").read_text())["settings"]["grids"]
    assert grids == [[5, 5, 0.5, 1000], [7, 7, 0.5, 1000], [10, 10, 0.5, 1000]]


def test_a_preset_and_what_is_given_over_it(tmp_path):
    argv = ["generate", "cube", "--out", str(tmp_path), "--steps", "3", "--quiet", "--preset", "fast", *SMALL]
    assert main([*argv, "--reuse", "0.5", "--max-age", "9"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    settings = metrics["settings"]
    assert (settings["sampler"], settings["eta"], settings["reuse"], settings["max_age"]) == ("anchored", 1.0, 0.5, 9)
    assert settings["grids"] == [[5, 5, 0.1, 1000]] and metrics["coverage"]["regions"] == 16


def test_path_or_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ball").mkdir()
    (tmp_path / "cube").write_text("a file of that name")
    assert looks_like_path("cube") and looks_like_path("a/b") and looks_like_path("bear.JPG")
    for name in ("ball", "a photo of a cat, 4.5 kg", "word " * 99):
        assert not looks_like_path(name)


def test_interrupt_and_resume(capsys, tmp_path, monkeypatch):
    from hash3d_cuda.cli.progress import Bar

    argv = ["--steps", "7", "--quiet", *SMALL, *CACHE]
    assert main(["generate", "cube", "--out", str(tmp_path / "whole"), *argv]) == 0
    part = tmp_path / "part"
    with monkeypatch.context() as patch:
        patch.setattr(Bar, "__call__", lambda self, p: p.step == 3 and os.kill(os.getpid(), signal.SIGINT))
        assert main(["generate", "cube", "--out", str(part), *argv]) == 1
    assert capsys.readouterr().err == "hash3d: interrupted at step 3; resume with --resume\n"
    assert len(views(part)) == 16
    assert main(["generate", "ball", "--out", str(part), *argv]) == 1
    assert "--resume" in capsys.readouterr().err and find_checkpoint(part)
    assert main(["generate", "--resume", "--out", str(part), "--eta", "0.3", "--quiet"]) == 1
    assert "eta" in capsys.readouterr().err
    for option, value in (("--encoder", "light"), ("--prior", "weights"), ("--azimuth", "3")):
        assert main(["generate", "--resume", "--out", str(part), option, value, "--quiet"]) == 2
        assert f"was started without {option}, got" in capsys.readouterr().err
    assert main(["generate", "--resume", "--out", str(part), "--quiet"]) == 0, "subject and options are remembered"
    assert views(part) == views(tmp_path / "whole")
    assert find_checkpoint(part) is None


def test_compare_prints_the_table(capsys, tmp_path):
    argv = [
        "compare",
        "cube",
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "8",
        "--grids",
        "90,120,1,300",
        *SMALL,
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    for word in (
        "without",
        "with cache",
        "seconds, all steps",
        "hit rate",
        "agreement",
        "bound",
        "report.html",
    ):
        assert word in out
    stored = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert stored["settings"]["eta"] == 0.5, "compare's own default"
    assert main([*argv, "--quiet"]) == 0, "a second run replaces the first"


def test_ctrl_c_in_a_real_process(tmp_path):
    """The signal reaches a process that is busy in torch, and what it leaves can be resumed."""
    out = tmp_path / "out"
    argv = ["generate", "cube", "--out", str(out), "--steps", "100000", "--checkpoint-every", "5", *SMALL]
    (tmp_path / "printed").mkdir()
    process = Forked(lambda: main([*argv, "--no-cache"]), tmp_path, tmp_path / "printed")
    try:
        for _ in range(3000):
            if find_checkpoint(out) is not None or not process.running:
                break
            time.sleep(0.1)
        process.interrupt()
    finally:
        status, _, errors = process.end()
    assert status == 1 and "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("hash3d: interrupted at step ") and last.endswith("resume with --resume")
    assert json.loads((out / "metrics.json").read_text())["interrupted"]
