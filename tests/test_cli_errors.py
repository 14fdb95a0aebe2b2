"""Bad input on the command line: one clear line, the right exit code, nothing lost."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image
from sds_stand_ins import TinyPrior

from hash3d_cuda.cli import main

SMALL = ["--steps", "2", "--scene-size", "8", "--turntable-frames", "3", "--turntable-size", "16", "--quiet"]


@pytest.fixture(autouse=True)
def tiny_prior(monkeypatch):
    monkeypatch.setattr("hash3d_cuda.prior.load_prior", lambda name=None, device="cpu": TinyPrior(), raising=False)


def fails(capsys, code, *words, argv):
    assert main([str(word) for word in argv]) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("hash3d: error: "), captured.err
    assert "Traceback" not in captured.err and captured.out == ""
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], ["COMMAND"]),
        (["dance"], ["dance"]),
        (["generate"], ["IMAGE", "NAME"]),
        (["generate", "--resume"], ["--out"]),
        (["generate", "cube", "--steps", "0"], ["steps", "0"]),
        (["generate", "cube", "--steps", "-5"], ["steps", "-5"]),
        (["generate", "cube", "--steps", "many"], ["--steps", "many"]),
        (["generate", "cube", "--eta", "1.5"], ["eta", "1.5"]),
        (["generate", "cube", "--eta", "-0.1"], ["eta"]),
        (["generate", "cube", "--eta", "nan"], ["eta"]),
        (["generate", "cube", "--position", "0"], ["position"]),
        (["generate", "cube", "--grids", "1,2,3"], ["grids"]),
        (["generate", "cube", "--memory-budget", "much"], ["memory_budget", "much"]),
        (["generate", "cube", "--scene", "clay"], ["--scene", "clay"]),
        (["generate", "cube", "--device", "abacus"], ["device", "abacus"]),
        (["generate", "cube", "--azimuth", "3"], ["--azimuth"]),
        (["generate", "cube", "--resume", "--force"], ["--force"]),
        (["compare", "cube", "--eta", "7"], ["eta", "7"]),
        (["info", "--colour"], ["--colour"]),
    ],
)
def test_wrong_usage_is_exit_code_2(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    fails(capsys, 2, *words, argv=argv)
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def pictures(folder):
    """Files that are not usable pictures, and a word of the message each must give."""
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.effect_noise((64, 64), 40).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:1500])
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("L", (9000, 9000)).save(folder / "huge.png")
    return {"dot.png": "1x1", "cut.png": "damaged", "text.png": "not a picture", "empty.jpg": "not a picture",
            "huge.png": "9000", "missing.png": "no file", ".": "no file"}  # fmt: skip


def test_bad_pictures_are_exit_code_1(capsys, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, word in pictures(folder).items():
        fails(capsys, 1, word, argv=["generate", folder / name, "--out", tmp_path / "out", *SMALL])
    assert not (tmp_path / "out").exists()


def test_unknown_word_lists_the_vocabulary(capsys, tmp_path):
    fails(capsys, 1, "cuube", "cube", "ball", argv=["generate", "cuube", "--out", tmp_path / "out", *SMALL])
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    fails(capsys, 1, "out", "file", argv=["generate", "cube", "--out", tmp_path / "file" / "below", *SMALL])
    fails(capsys, 1, "out", "file", argv=["generate", "cube", "--out", tmp_path / "file", *SMALL])
    assert (tmp_path / "file").read_text() == "in the way"


def test_budget_too_small_for_one_entry(capsys, tmp_path):
    argv = ["generate", "cube", "--out", tmp_path / "out", "--memory-budget", "1KiB", *SMALL]
    fails(capsys, 1, "memory_budget", "1024", argv=argv)


def test_nothing_to_resume(capsys, tmp_path):
    fails(capsys, 1, "resume", argv=["generate", "--resume", "--out", tmp_path / "out"])
    assert not (tmp_path / "out").exists()


def test_a_defect_keeps_its_name_and_debug_its_traceback(capsys, monkeypatch):
    def broken(options):
        raise KeyError("surprise")

    monkeypatch.setattr("hash3d_cuda.cli.info.run", broken)
    fails(capsys, 1, "KeyError", "surprise", argv=["info"])
    with pytest.raises(KeyError):
        main(["--debug", "info"])


def test_help_of_every_command_without_heavy_imports():
    code = (
        "import sys\nfrom hash3d_cuda.cli import main\n"
        "for name in ('generate', 'compare', 'bench', 'info'):\n    assert main([name, '--help']) == 0\n"
        "assert main(['--help']) == 0 and main(['--version']) == 0\n"
        "heavy = {'torch', 'diffusers', 'PIL', 'trimesh', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in ("--eta", "--grids", "--resume", "--folder", "--objects"):
        assert option in done.stdout


def test_forwarded_commands_have_help(capsys):
    for name in ("prepare-data", "train-prior"):
        assert main([name, "--help"]) == 0
        assert f"hash3d {name}" in capsys.readouterr().out
    assert main(["prepare-data"]) == 2


def test_info_lists(capsys):
    assert main(["info", "--objects"]) == 0
    assert "teddy bear" in capsys.readouterr().out.splitlines()
    assert main(["info", "--examples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 8 and all(Image.open(line.split("\t")[1]).width >= 64 for line in lines)
    assert main(["info"]) == 0
    assert "devices" in capsys.readouterr().out
