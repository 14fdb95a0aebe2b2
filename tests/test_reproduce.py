"""hash3d reproduce: units run once and are taken up again, what is written, errors in one line, every experiment's
summary and picture."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import time
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from reproduce_units import (
    OBJECTS,
    break_at_three,
    context,
    double,
    interrupt_at_three,
    interrupt_the_command,
    sleep_for_ever,
    tiny_prior,
)  # fmt: skip

from hash3d_cuda.cli.main import main
from hash3d_cuda.cli.reproduce import command_line
from hash3d_cuda.reproduce import registry, runner, studies, written
from hash3d_cuda.reproduce.base import Unit, experiment_units
from hash3d_cuda.reproduce.recipes_table import asked, with_settings
from hash3d_cuda.reproduce.sweep import label, open_picture_row, sweep, with_own_hooks
from hash3d_cuda.sds import recipes
from hash3d_cuda.sds.outputs import render_views
from hash3d_cuda.sds.recipes import load_recipe
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings


def experiment(numbers=(1, 2, 3), function=double, name="doubles"):
    def plot(summary, path):
        path.write_bytes(b"picture")

    def summarise(context, results):
        rows = [{"number": int(key), "double": float(one["double"])} for key, one in results.items()]
        return {"rows": rows, "findings": [f"{len(results)} numbers."]}

    module = types.ModuleType(name)
    module.ID, module.TITLE, module.PAPER, module.plot = name, "Doubles", {"claim": "twice as much"}, plot
    module.units = lambda context: [Unit(str(n), function, {"number": n}, float(n)) for n in numbers]
    module.summarise = summarise
    return module


def calls(out: Path) -> list[int]:
    path = out / "calls"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def collect(module, where, jobs=1):
    found = {}
    failures = runner.reproduce([module], where, jobs, lambda module, results: found.update(results), quiet=True)
    return found, failures


def test_units_run_longest_first_and_only_once(tmp_path):
    where = context(tmp_path)
    assert collect(experiment(), where) == ({"1": {"double": 2}, "2": {"double": 4}, "3": {"double": 6}}, [])
    assert calls(tmp_path) == [3, 2, 1]
    again, _ = collect(experiment((1, 2, 3, 4)), where)
    assert again["4"] == {"double": 8} and calls(tmp_path) == [3, 2, 1, 4], "what is there is taken up"
    collect(experiment((1,)), context(tmp_path, seed=1))
    assert calls(tmp_path)[-1] == 1, "another seed is other work"
    assert not list((tmp_path / "units").glob("*.tmp"))


def test_two_experiments_share_a_unit(tmp_path):
    shared = [experiment(name="one"), experiment((3, 4), name="two")]
    seen = []
    runner.reproduce(shared, context(tmp_path), 1, lambda module, results: seen.append(module.ID), quiet=True)
    assert sorted(calls(tmp_path)) == [1, 2, 3, 4] and sorted(seen) == ["one", "two"]


def test_an_interrupt_loses_the_unit_under_way_alone(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        collect(experiment((2, 3, 4), interrupt_at_three), context(tmp_path))
    assert calls(tmp_path) == [4]
    found, _ = collect(experiment((2, 4), interrupt_at_three), context(tmp_path))
    assert found == {"2": {"double": 4}, "4": {"double": 8}} and calls(tmp_path) == [4, 2]


def test_a_failing_unit_is_told_and_the_others_are_kept(tmp_path):
    found, failures = collect(experiment(function=break_at_three), context(tmp_path))
    assert found == {} and failures == [runner.Failure("3", "ValueError: three is too much")]
    assert calls(tmp_path) == [2, 1]


def test_a_damaged_result_is_made_anew(tmp_path):
    collect(experiment((1,)), context(tmp_path))
    (path,) = (tmp_path / "units").iterdir()
    path.write_text(path.read_text()[:-20])
    assert collect(experiment((1,)), context(tmp_path))[0] == {"1": {"double": 2}}
    assert calls(tmp_path) == [1, 1]


def test_worker_processes_give_the_same(tmp_path):
    found, failures = collect(experiment(function=break_at_three), context(tmp_path), jobs=2)
    assert found == {} and [failure.unit for failure in failures] == ["3"]
    assert sorted(calls(tmp_path)) == [1, 2]


def test_an_interrupt_ends_the_workers(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            collect(experiment((3,), interrupt_the_command), context(tmp_path), jobs=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not multiprocessing.active_children() and not list((tmp_path / "units").iterdir())


def test_workers_of_a_parent_that_was_killed_end(tmp_path):
    asked = (experiment((1,), sleep_for_ever), context(tmp_path), 2)
    parent = multiprocessing.get_context("fork").Process(target=collect, args=asked)
    parent.start()
    worker = tmp_path / "worker"
    until(lambda: worker.exists() and worker.read_text())
    parent.kill()
    parent.join()
    until(lambda: not Path(f"/proc/{worker.read_text()}").exists())


def until(done, seconds=120.0):
    """Waits for something that other processes do; fails after far longer than it takes."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_summary_that_fails_does_not_take_the_others_along(tmp_path):
    def write(module, results):
        seen.append(module.ID)
        assert module.ID != "one", "no such row"

    seen = []
    modules = [experiment(name="one"), experiment((4,), name="two")]
    failures = runner.reproduce(modules, context(tmp_path), 1, write, quiet=True)
    assert sorted(seen) == ["one", "two"] and [failure.unit for failure in failures] == ["one"]


def test_units_with_one_key_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same key, '2'"):
        experiment_units(experiment((1, 2, 2)), context(tmp_path))


def test_what_is_written(tmp_path):
    where, module = context(tmp_path), experiment(name="macs")
    written.check_folder(tmp_path, ["macs"])
    found, _ = collect(module, where)
    written.write_experiment(module, where, found, "hash3d reproduce macs")
    content = json.loads((tmp_path / "macs.json").read_text())
    assert {"id", "title", "paper", "command", "machine", "date", "quick", "summary"} <= content.keys()
    assert (content["prior"], content["device"], content["scale"]) == ("tiny_prior", "cpu", "small")
    assert content["command"] == "hash3d reproduce macs" and content["summary"]["rows"][2]["double"] == 6.0
    page = (tmp_path / "README.md").read_text()
    for part in (
        "| number | double |",
        "| 3 | 6.000 |",
        "twice as much",
        "![Doubles](macs.png)",
        "3 numbers.",
        "tiny_prior, cpu",
    ):
        assert part in page
    written.check_folder(tmp_path, ["macs"])


def test_foreign_files_are_refused_and_left(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"out: .*README\.md.*did not write"):
        written.check_folder(tmp_path, ["macs"])
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    with pytest.raises(ValueError, match="is a file"):
        written.check_folder(tmp_path / "README.md", [])


def test_cells_of_a_table():
    assert [written.cell(v) for v in (None, True, 3, 0.12345, 12.345, 1234.5, "x")] == [
        "-", "True", "3", "0.123", "12.35", "1234", "x"
    ]  # fmt: skip
    assert written.table_lines([{"a": 1}, {"b": 2.0}])[2:] == ["| 1 | - |", "| - | 2.000 |"]


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


def test_macs_are_told_beside_the_papers(tmp_path):
    counted = {"before": 678.6, "after": 622.21, "full": 400.0, "hit": 80.0, "r": 0.2, "eta": 0.1}
    summary = registry.load("macs").summarise(context(tmp_path), {"sd21": counted})
    assert summary["rows"][0]["most that eta 0.1 gives"] == pytest.approx(1 / 0.92)
    assert "678.60 -> 622.21" in summary["findings"][0]


def test_names_and_aliases():
    assert [module.ID for module in registry.find("Figure 9")] == ["figure-9"]
    assert registry.find("table-2") == registry.find("tables-1-2")
    assert [module.ID for module in registry.find("reuse")] == ["frontier", "gates", "ageing", "mismatch"]
    assert "frontier" not in [module.ID for module in registry.find("all")]
    with pytest.raises(ValueError, match=r"figure-2, .*, all or reuse; got 'figure-99'"):
        registry.find("figure-99")


@pytest.mark.parametrize(
    "arguments, said, code",
    [
        (["figure-99"], "figure-12", 2),
        (["macs", "--objects", "unicorn"], "unicorn", 2),
        (["macs", "--steps", "1"], "steps", 2),
        (["macs", "--jobs", "0"], "jobs", 2),
        (["macs", "--prior", "nowhere/at/all"], "prior", 1),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(arguments, said, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0] and list(tmp_path.iterdir()) == []


def test_the_command(tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "macs.png").write_text("a picture of mine")
    assert main(["reproduce", "macs", "--out", str(tmp_path / "taken")]) == 1
    assert "macs.png" in capsys.readouterr().err
    assert main(["reproduce", "macs", "--jobs", "1", "--out", str(tmp_path / "out")]) == 0
    assert "678.60 -> 622.21" in (tmp_path / "out" / "README.md").read_text()
    assert "wrote" in capsys.readouterr().out


def test_results_quote_the_command_without_this_machines_folders():
    told = ["reproduce", "macs", "--out", "/home/me/my runs/macs", "--jobs=2"]
    assert command_line(told, Path("/home/me/my runs/macs")) == "hash3d reproduce macs --out macs --jobs=2"
    assert command_line(["reproduce", "--out=/tmp/x"], Path("/tmp/x")) == "hash3d reproduce --out=x"
    assert command_line(["reproduce", "--out", "a/b"], Path("a/b")) == "hash3d reproduce --out a/b"


def test_the_list_names_every_experiment(capsys):
    assert main(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == registry.known() and len(lines) > 8


def test_a_recipe_that_changed_is_run_again(tmp_path, monkeypatch):
    """Results are resumed for weeks; those of another version's settings must not stand beside new ones."""
    module, where = registry.load("tables-1-2"), context(tmp_path)
    before = {unit.key: unit.file_name(where) for unit in module.units(where)}
    assert before == {unit.key: unit.file_name(where) for unit in module.units(where)}
    monkeypatch.setattr(recipes, "load_recipe", lambda name: changed(load_recipe(name), name))
    after = {unit.key: unit.file_name(where) for unit in module.units(where)}
    assert {key.split(", ")[0] for key in before if before[key] != after[key]} == {"sds-gs"}


def changed(recipe, name):
    return recipe if name != "sds-gs" else with_settings(recipe, lambda settings: {"lr_end": 0.123})


@pytest.mark.parametrize("changes, whose", [({"source": None}, "the shipped prior's at small size"),
                                            ({}, "prior that was given at small size"),
                                            ({"scale": "paper"}, "given, the recipes at the paper's")])  # fmt: skip
def test_figures_of_another_prior_are_not_called_the_shipped_ones(tmp_path, changes, whose):
    where = context(tmp_path, **changes)
    assert whose in asked(where) and ("shipped" in asked(where)) == (where.source is None)


def test_tables_1_and_2(tmp_path):
    module = registry.load("tables-1-2")
    plain = {
        "quality": {"psnr": 20.0, "ssim": 0.8}, "hit_rate": 0.0, "x": 0.0, "seconds": 10.0, "unet_full_seconds": 5.0,
        "same_seconds": 4.0, "hit_cost_r": None,
    }  # fmt: skip
    served = plain | {"quality": {"psnr": 19.5, "ssim": 0.7}, "hit_rate": 0.6, "x": 0.5, "seconds": 4.0}
    found = {"none": plain, "paper": dict(plain), "strong": served | {"same_seconds": 2.0}}
    runs = {name: {**run, **module.against(run, plain, 0.2)} for name, run in found.items()}
    assert runs["strong"]["speed_up"] == 2.5 and runs["strong"]["drift"] == 2.0, "half of it is the machine's"
    assert runs["strong"]["bound_step"] == pytest.approx(1 / (1 - 0.5 * 0.5 * 0.8))
    assert module.against(served, plain, None)["bound_step"] is None
    results = {
        f"{name}, {thing}": {"title": name, "kind": kind, "two_priors": name == "magic123", "runs": runs}
        for name, kind in (("magic123", "image"), ("dreamfusion", "text")) for thing in OBJECTS
    }  # fmt: skip
    summary = module.summarise(context(tmp_path), results)
    assert [row["cache"] for row in summary["rows"]] == [*module.TITLES.values()] * 2
    assert [row["MACs, G"] for row in summary["rows"][::3]] == pytest.approx([847.38, 678.6], abs=0.011)
    assert summary["rows"][2]["PSNR change, dB"] == pytest.approx(-0.5) and "-0.50 dB" in summary["findings"][1]
    module.plot(summary, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
