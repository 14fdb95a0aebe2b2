"""Sweeps: the runs that experiments share, and what each of these tells with a table and a picture."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
from reproduce_cases import OBJECTS, context, tiny_prior

from hash3d_cuda.reproduce import registry, runner, studies, written
from hash3d_cuda.reproduce.sweep import label, open_picture_row, sweep, with_own_hooks
from hash3d_cuda.sds.outputs import render_views
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings


def test_a_sweep_is_the_same_runs_as_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("hash3d_cuda.reproduce.quality.perceptual_scores", lambda *_: {})
    where = context(tmp_path)
    told = [{"ablation": "none"}, {"ablation": "no-keys", "eta": 0.7, "grids": "stretched"}]
    swept = sweep(where, "cactus", "name", 6, told)["runs"]
    prior, names = where.prior, [label(one) for one in told]
    alone = sweep(where, "cactus", "name", 6, told[:1])["runs"]
    assert swept[names[0]]["picture"] == alone[names[0]]["picture"], "a cache beside it changes nothing"
    cached = swept[names[1]]
    assert {"psnr", "ssim"} <= cached["quality"].keys() and cached["x"] > 0
    assert cached["hits"] + cached["misses"] + cached["bypasses"] == 12
    assert cached["bound_step"] >= 1 or cached["hit_cost_r"] > 1
    assert not hasattr(prior.unet, "_diffusers_hook") and open_picture_row(cached["picture"]).shape == (64, 256, 3)


def test_a_prior_of_its_own_shares_weights_and_not_hooks():
    prior = tiny_prior()
    own = with_own_hooks(prior)
    assert [p.data_ptr() for p in own.unet.parameters()] == [p.data_ptr() for p in prior.unet.parameters()]
    with SdsRun(own, own.resolve("chicken"), GenerateSettings(steps=2, scene_size=8)) as run:
        run.train_step()
        assert "hash3d" in repr(own.unet._diffusers_hook.hooks.keys()).lower()
        assert not hasattr(prior.unet, "_diffusers_hook")


SWEPT = ("table-3", "table-4", "figure-9", "figure-10", "figure-12", "figure-14", "ablations", "frontier", "gates")


@dataclass(frozen=True)
class Coarse(GenerateSettings):
    """A run of a scene that is rendered quickly."""

    scene_size: int = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All experiments that are made of sweeps, at two steps of a coarse scene with the stand-in; scored quickly."""
    where = context(tmp_path_factory.mktemp("made"), objects=OBJECTS[:1], steps=2)
    modules = [registry.load(name) for name in SWEPT]

    def write(module, results):
        written.write_experiment(module, where, results, "test")

    def one_view(scene, elevation, azimuth, radius, size):
        return render_views(scene, elevation[:1], azimuth[:1], radius[:1], size).expand(16, -1, -1, -1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hash3d_cuda.reproduce.sweep.GenerateSettings", Coarse)
        patch.setattr("hash3d_cuda.reproduce.sweep.render_views", one_view)
        patch.setattr("hash3d_cuda.reproduce.quality.perceptual_scores", lambda *_: {"distance": 0.5})
        assert runner.reproduce(modules, where, 1, write, quiet=True) == []
    return where.out


@pytest.mark.parametrize("name", SWEPT)
def test_every_sweep_has_a_table_a_picture_and_findings(name, made):
    from PIL import Image

    content = json.loads((made / f"{name}.json").read_text())
    rows = content["summary"]["rows"]
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert len(rows) >= 4 and numbers and all(map(math.isfinite, numbers))
    assert all(row["PSNR change, dB"] is not None for row in rows) and rows[0]["PSNR change, dB"] == 0
    assert len(content["summary"]["findings"]) >= 2 and content["id"] == name and content["paper"]
    with Image.open(made / f"{name}.png") as picture:
        assert min(picture.size) > 100 and len(picture.convert("L").getcolors()) > 10
    assert content["title"] in (made / "README.md").read_text()


def test_sweeps_are_shared(made):
    assert len(list((made / "units").iterdir())) == 7
    retrieval = [registry.load(name).units(context(made)) for name in ("table-3", "figure-10", "figure-12")]
    assert len({unit.file_name(context(made)) for units in retrieval for unit in units}) == len(OBJECTS)


def test_the_paper_at_full_size():
    from hash3d_cuda.reproduce.table3 import at_full_size

    full = at_full_size()
    assert full["entry_mib"] == pytest.approx(5 + 1 / 16, abs=1e-3), "2x320x64x64 float16 and 4x64x64 float32"
    assert full["all_gib"] == pytest.approx(10_000 * full["entry_mib"] / 1024) and full["slots"] < 2048 / 5


def test_positions_are_all_of_the_priors(tmp_path):
    assert list(studies.cuts(context(tmp_path))) == [1, 2, 3, 4, 5, 6]
