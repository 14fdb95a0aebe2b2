"""Comparison and evaluation: controls, bounds, files, and that a stopped evaluation goes on."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from sds_stand_ins import TinyPrior

from hash3d_cuda.bounds import step_bound, unet_bound
from hash3d_cuda.keys import Grid
from hash3d_cuda.prior.ground_truth import ground_truth_names, ground_truth_views
from hash3d_cuda.sds import controls
from hash3d_cuda.sds.compare import bound_sentence, compare, side_by_side, table_rows
from hash3d_cuda.sds.evaluate import evaluate, markdown
from hash3d_cuda.sds.metrics import image_quality, known_truth
from hash3d_cuda.sds.settings import GenerateSettings

WIDE = (Grid(90.0, 120.0, 1.0, 300.0),)
SMALL = GenerateSettings(
    steps=8, scene_size=8, eta=0.7, grids=WIDE, memory_budget="16MiB", turntable_frames=3, turntable_size=16
)  # fmt: skip


def test_bounds_are_the_papers_arithmetic():
    assert unet_bound(0.0, 0.2) == 1 and unet_bound(1.0, 0.25) == 4
    assert unet_bound(0.1, 0.224) == pytest.approx(1.084, abs=1e-3), "SD 2.1 at k=2, x=.1"
    assert step_bound(0.5, 0.224, 1.0) == pytest.approx(unet_bound(0.5, 0.224))
    assert step_bound(0.5, 0.0, 0.5) == pytest.approx(1 / 0.75)


def test_image_quality_against_the_definition():
    truth = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    off = image_quality(truth + 0.1, truth)
    assert off["psnr"] == pytest.approx(20.0, abs=1e-3) and len(off["psnr_per_view"]) == 3
    assert image_quality(truth, truth)["ssim"] == pytest.approx(1.0)
    mixed = image_quality(torch.stack([truth[0] + 0.1, truth[1] + 0.01]), truth[:2])
    assert mixed["psnr"] == pytest.approx(30.0, abs=1e-2), "a mean of decibels, view by view"


def test_compare_writes_both_runs_from_one_seed(tmp_path):
    prior = TinyPrior()
    figures = compare(prior, prior.resolve("cube"), SMALL, tmp_path)
    assert {"compare.json", "compare.webp", "report.html", "with-cache", "without-cache"} <= {
        path.name for path in tmp_path.iterdir()
    }
    stored = json.loads((tmp_path / "compare.json").read_text())
    assert stored["x"] == figures["x"] > 0 and stored["speed_up"] == figures["speed_up"]
    assert not stored["runs"]["without"]["cache"]["enabled"] and stored["runs"]["with"]["cache"]["enabled"]
    assert Image.open(tmp_path / "compare.webp").size == (16 + 8 + 16, 16)
    assert math.isfinite(figures["agreement"]["psnr"]), "the cache did change something"
    assert figures["bound_step"] == pytest.approx(
        step_bound(figures["x"], figures["hit_cost_r"], figures["unet_share_of_step"])
    )
    assert "Measured" in bound_sentence(figures)
    parts = [figures["runs"][name]["time"]["split_s"] for name in ("without", "with")]
    before, after = (part["render"] + part["encode"] + part["backward"] + part["optimizer"] for part in parts)
    assert figures["drift"] == pytest.approx(before / after)
    assert f"by a factor of {figures['drift']:.2f}" in bound_sentence(figures)
    assert [row[0] for row in table_rows(figures)][:2] == ["seconds, all steps", "seconds, U-Net"]


def test_compare_without_a_hit_says_so(tmp_path):
    prior = TinyPrior()
    figures = compare(prior, prior.resolve("cube"), replace(SMALL, eta=0.0, steps=3), tmp_path)
    assert figures["x"] == 0 and figures["bound_step"] is None
    assert "No view was served" in bound_sentence(figures)
    # one seed: what differs is the cut of the U-Net's forward, not the views or the noise
    assert figures["agreement"]["psnr"] > 60 or figures["agreement"]["psnr"] == math.inf


def test_side_by_side():
    pair = side_by_side([torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)], gap=2)
    assert pair.shape == (2, 3, 4, 10) and pair[0, 0, 0].tolist() == [0] * 4 + [1] * 2 + [0.5] * 4


def test_controls_are_what_they_say():
    names = ground_truth_names()
    truth = ground_truth_views(names[0])[0]
    means = controls.mean_views(names[:2])
    torch.testing.assert_close(means, (truth + ground_truth_views(names[1])[0]) / 2)
    assert controls.copy_score(truth[3], truth) == math.inf or controls.copy_score(truth[3], truth[3:4]) == math.inf
    best = controls.own_mean_score(truth)
    assert best > image_quality(truth[:1].expand_as(truth), truth[1:].repeat(2, 1, 1, 1)[:16])["psnr"] - 20
    prior = TinyPrior(size=64, vocabulary=names[:2])
    scene = controls.mean_view_scene(prior, replace(SMALL, steps=60, lr_scale=2.0), means)
    start = controls.mean_view_scene(prior, replace(SMALL, steps=1), means)
    assert image_quality(scene, means)["psnr"] > image_quality(start, means)["psnr"] + 1, "it is pulled to the mean"


def test_truth_only_where_it_is_known():
    name = ground_truth_names()[0]
    prior = TinyPrior(size=64, vocabulary=(name, "ball"))
    assert known_truth(prior.resolve(name), 64).shape == (16, 3, 64, 64)
    assert known_truth(prior.resolve(name), 16) is None and known_truth(prior.resolve("ball"), 64) is None


def test_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    names = ground_truth_names()[:2]
    prior, settings = TinyPrior(size=64, vocabulary=names), replace(SMALL, steps=3)
    first = evaluate(prior, settings, tmp_path, names[:1])
    row = first["objects"][0]
    assert set(row["psnr"]) == {
        "sds",
        "sds_cache",
        "mean_image",
        "mean_sds",
        "own_mean",
        "picture",
        "copy",
        "fit",
    }
    assert (tmp_path / "objects" / f"{names[0].replace(' ', '-')}.png").is_file()
    made = []
    original = controls.distil
    monkeypatch.setattr(controls, "distil", lambda *a, **k: made.append(a[1].label) or original(*a, **k))
    both = evaluate(prior, settings, tmp_path, names)
    # the second object alone: without and with the cache, then its picture (taken for names[0]) twice
    assert made == ["mean of all objects", names[1], names[1], names[0], names[0]]
    assert both["objects"][0] == json.loads((tmp_path / "quality.json").read_text())["objects"][0]
    assert both["means"]["sds"] == pytest.approx(sum(r["psnr"]["sds"] for r in both["objects"]) / 2)
    table = markdown(both)
    assert table == (tmp_path / "quality.md").read_text() and all(name in table for name in names)
