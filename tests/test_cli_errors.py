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
    monkeypatch.setattr(
        "hash3d_cuda.prior.load_prior", lambda name=None, device="cpu", encoder=None: TinyPrior(), raising=False
    )


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
        (["generate", "cube", "--decide", "device", "--target-x", "0.5"], ["target_x", "decide"]),
        (["generate", "cube", "--target-x", "0.5", "--target-quality", "0.9"], ["target_quality", "target_x"]),
        (["generate", "cube", "--keep"], ["--keep goes with --jobs"]),
        (["generate", "cube", "--memory-budget", "much"], ["memory_budget", "much"]),
        (
            ["generate", "cube", "--memory-budget", "1KiB"],
            ["memory_budget", "1024", "raise --memory-budget"],
        ),
        (["compare", "cube", "--memory-budget", "10MB"], ["memory_budget", "raise --memory-budget"]),
        (["generate", "cube", "--scene-size", "100000"], ["scene_size", "512", "100000"]),
        (["compare", "cube", "--scene-size", "513"], ["scene_size", "513"]),
        (["generate", ""], ["subject", "''"]),
        (["generate", "--resume", "--out", "x", " "], ["subject", "' '"]),
        (["compare", ""], ["subject", "''"]),
        (["generate", "cube", "--out", ""], ["--out", "expected a folder", "''"]),
        (["compare", "cube", "--out", " "], ["--out", "expected a folder"]),
        (["train-prior"], ["--data", "--out", "hash3d train-prior --help"]),
        (["train-prior", "--data", "x", "--out", "y", "--minutes", "nan"], ["--minutes", "nan"]),
        (["train-prior", "--data", "x", "--out", "y", "--batch", "0"], ["--batch", "0"]),
        (["train-prior", "--data", "x", "--out", "y", "--save-minutes", "-1"], ["--save-minutes", "-1"]),
        (["train-prior", "--data", "x", "--out", "y", "--device", "abacus"], ["device", "abacus"]),
        (["train-prior", "--data", "x", "--out", ""], ["--out", "''"]),
        (["prepare-data"], ["--furniture", "--out", "hash3d prepare-data --help"]),
        (["prepare-data", "--furniture", "x", "--out", "y", "--views", "0"], ["--views", "0"]),
        (["prepare-data", "--furniture", "x", "--out", "y", "--seed", "-1"], ["--seed", "-1"]),
        (
            ["prepare-data", "--furniture", "x", "--out", "y", "--objects", "unicorn"],
            ["--objects", "unicorn"],
        ),
        (["generate", "cube", "--scene", "clay"], ["--scene", "clay"]),
        (["generate", "cube", "--device", "abacus"], ["device", "abacus"]),
        (["generate", "cube", "--azimuth", "3"], ["--azimuth"]),
        (["generate", "cube", "--fresh-power", "2"], ["--fresh-power", "--sampler anchored", "uniform"]),
        (["generate", "cube", "--first-fresh", "8"], ["--first-fresh", "--sampler anchored", "uniform"]),
        (["generate", "cube", "--preset", "fast", "--fresh-until", "2"], ["fresh_until", "2"]),
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
            "huge.png": "9000", "missing.png": "no file", ".": "is a folder"}  # fmt: skip


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


def test_a_folder_is_no_subject_unless_the_prior_knows_the_word(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for subject in ("photos", "./photos", "photos.png"):
        (tmp_path / subject).mkdir(exist_ok=True)
        fails(capsys, 1, f"{subject!r} is a folder", argv=["generate", subject, "--out", "out", *SMALL])
    assert not (tmp_path / "out").exists()


def test_budget_too_small_for_the_first_entry(capsys, tmp_path):
    """How large an entry is shows at the first step only."""
    chains = 3 * 100_003 * 36 + 40
    for command in ("generate", "compare"):
        out = tmp_path / "made" / command
        argv = [command, "cube", "--out", out, "--memory-budget", str(chains + 200), *SMALL]
        fails(capsys, 2, "memory_budget", str(chains + 200), "raise --memory-budget", "fewer --grids", argv=argv)
    assert list(tmp_path.iterdir()) == [], "the empty folders are gone"


def test_the_limit_on_voxels_is_the_scenes():
    from hash3d_cuda.cli.options import LARGEST_GRID
    from hash3d_cuda.sds.scenes import make_scene

    with pytest.raises(ValueError, match=f"at most {LARGEST_GRID}, got"):
        make_scene("voxels", size=LARGEST_GRID + 1, seed=0, device="cpu")


@pytest.mark.parametrize("command", ["train-prior", "prepare-data"])
def test_missing_input_leaves_no_folder(capsys, tmp_path, command):
    source = {"train-prior": "--data", "prepare-data": "--furniture"}[command]
    fails(
        capsys, 1, "no ", str(tmp_path / "none"), argv=[command, source, tmp_path / "none", "--out", tmp_path / "out"]
    )
    assert not (tmp_path / "out").exists()


def test_benchmarks_that_fail_say_so_in_one_line(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_one.py").write_text("def test_one():\n    assert False\n")
    for code, words, options in (
        (1, ["no benchmark matches -k 'nothing'"], ["-k", "nothing"]),
        (1, ["exit code 1"], []),
        (2, ["pytest does not take"], ["-k", "((("]),
    ):
        assert main(["bench", "--folder", str(tmp_path), *options]) == code
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("hash3d: error: bench: ")
        assert all(word in lines[0] for word in words), lines[0]


def test_files_of_others_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "views").mkdir()
    for name in ("views/user.html", "report.html"):
        (tmp_path / name).write_text("mine")
    argv = ["generate", "cube", "--out", ".", *SMALL]
    fails(capsys, 1, "views, report.html", "--force", argv=argv)
    fails(capsys, 1, "views, report.html", argv=["compare", "cube", "--out", ".", *SMALL])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "views"]
    assert main([*argv, "--force"]) == 0
    assert (tmp_path / "report.html.kept").read_text() == (tmp_path / "views" / "user.html").read_text() == "mine"
    assert (tmp_path / "metrics.json").is_file() and (tmp_path / "report.html").read_text() != "mine"
    assert main(argv) == 0, "now there is a run of ours"
    assert (tmp_path / "views" / "user.html").read_text() == "mine"


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
