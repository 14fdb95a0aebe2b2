"""Recipes from the command line: stages in folders, Ctrl-C and --resume in each, what is refused."""

from __future__ import annotations

import json
import os
import signal

import pytest
from PIL import Image
from sds_stand_ins import TinyPrior

from hash3d_cuda.cli import main
from hash3d_cuda.cli.progress import Bar
from hash3d_cuda.sds.checkpoint import find_checkpoint

FEW = ["--turntable-frames", "3", "--turntable-size", "16", "--memory-budget", "16MiB", "--quiet"]
MINE = """
title = "Mine"
kind = "image"
[[stages]]
title = "grid"
common = { scene = "voxels", scene_size = 8, eta = 0.7, grids = [[90, 120, 1, 300]], second_weight = 0.5 }
small = { steps = 5 }
[[stages]]
title = "mesh"
common = { scene = "mesh", scene_size = 8, eta = 0.7, grids = [[90, 120, 1, 300]], second_weight = 0.5 }
small = { steps = 4 }
"""


@pytest.fixture(autouse=True)
def tiny_prior(monkeypatch):
    monkeypatch.setattr(
        "hash3d_cuda.prior.load_prior", lambda name=None, device="cpu", encoder=None: TinyPrior(), raising=False
    )


@pytest.fixture
def request_of(tmp_path):
    recipe, image = tmp_path / "mine.toml", tmp_path / "in.png"
    recipe.write_text(MINE)
    Image.new("RGB", (16, 16), (200, 80, 40)).save(image)
    return ["generate", str(image), "--recipe", str(recipe), *FEW]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def views(folder):
    return [Image.open(path).tobytes() for path in sorted((folder / "views").iterdir())]


def stop_at(monkeypatch, stage, step):
    """Ctrl-C after a step of a stage."""
    text = f"stage {stage}"
    monkeypatch.setattr(
        Bar, "__call__", lambda self, p: text in self.label and p.step == step and os.kill(os.getpid(), signal.SIGINT)
    )


def test_stages_in_folders(tmp_path, request_of):
    out = tmp_path / "out"
    assert main([*request_of, "--out", str(out)]) == 0
    for folder, stage, steps in ((out / "stage-1", 1, 5), (out, 2, 4)):
        told = metrics(folder)
        assert told["recipe"]["title"] == "Mine" and told["recipe"]["scale"] == "small"
        assert (told["recipe"]["stage"], told["recipe"]["stages"], told["steps"]) == (stage, 2, steps)
        assert told["settings"]["scene"] == ("voxels" if stage == 1 else "mesh")
        counts = [told["cache"][name] for name in ("hits", "misses", "bypasses")]
        assert sum(counts) == 2 * 2 * steps and find_checkpoint(folder) is None
    assert main([*request_of, "--out", str(out), "--steps", "2", "--no-cache"]) == 0, "an earlier result is replaced"
    assert metrics(out)["steps"] == 2 and not metrics(out / "stage-1")["cache"]["enabled"]


@pytest.mark.parametrize(("stage", "step"), [(1, 3), (1, 5), (2, 2)])
def test_resume_in_any_stage_equals_a_run_in_one_go(capsys, tmp_path, request_of, monkeypatch, stage, step):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*request_of, "--out", str(whole), "--seed", "3"]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, stage, step)
        assert main([*request_of, "--out", str(out), "--seed", "3"]) == 1
    assert "resume with --resume" in capsys.readouterr().err
    assert main([*request_of, "--out", str(out)]) == 1 and "--resume to go on" in capsys.readouterr().err
    assert main(["generate", "--resume", "--out", str(out), "--quiet"]) == 0, capsys.readouterr().err
    for folder in ("", "stage-1"):
        assert views(out / folder) == views(whole / folder), "bit for bit"
        assert metrics(out / folder)["history"] == metrics(whole / folder)["history"]
        assert find_checkpoint(out / folder) is None
    assert metrics(out)["settings"]["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["cube", "--recipe", "dreamgaussian"], "takes a picture, but the subject is the name 'cube'"),
        (["in.png", "--recipe", "dreamfusion"], "takes a name or prompt, but the subject is a picture"),
        (["cube", "--recipe", "nothing"], "neither a file nor one of dreamgaussian"),
        (["cube", "--recipe", "broken.toml"], "kind: expected"),
        (["cube", "--recipe", "dreamfusion", "--eta", "2"], "eta"),
        (["cube", "--recipe", "dreamfusion", "--prompt", "x"], "asks one prior only"),
        (["cube", "--prompt", "x"], "--prompt goes with --recipe"),
        (["cube", "--recipe-scale", "paper"], "--recipe-scale goes with --recipe"),
        (["in.png", "--recipe", "magic123", "--second-prior", "x"], "--second-prior needs --prompt"),
        (["in.png", "--recipe", "magic123", "--prior", "x"], "give --second-prior DIR and --prompt TEXT"),
    ],
)  # fmt: skip
def test_usage_errors(capsys, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text('title = "x"\nkind = "film"')
    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    assert main(["generate", *arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_help_lists_the_recipes(capsys):
    from hash3d_cuda.sds.recipes import RECIPES

    assert main(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in RECIPES)
