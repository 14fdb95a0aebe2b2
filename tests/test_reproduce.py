"""hash3d reproduce: what is written, errors in one line, names, and the tables of the recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reproduce_cases import OBJECTS, collect, context, experiment

from hash3d_cuda.cli.main import main
from hash3d_cuda.cli.reproduce import command_line
from hash3d_cuda.reproduce import registry, written
from hash3d_cuda.reproduce.recipes_table import asked, with_settings
from hash3d_cuda.sds import recipes
from hash3d_cuda.sds.recipes import load_recipe


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
    assert command_line(["reproduce", "--out=/home/me/x"], Path("/home/me/x")) == "hash3d reproduce --out=x"
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
