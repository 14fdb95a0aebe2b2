"""hash3d tune as a whole, on races whose outcome is known: what is found, resuming a search, the command line."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tune_cases import BASE, COSTS, OBJECTS, WIDE, context, tiny_prior

from hash3d_cuda.cli.main import main
from hash3d_cuda.sds.settings_file import read_settings
from hash3d_cuda.tune import Request, report, tune
from hash3d_cuda.tune.measure import Measure
from hash3d_cuda.tune.race import TuneContext

LOSSES = {1: 0.6, 2: 0.15, 3: 0.05, 4: 0.0}  # by position; a seed adds or takes a little


def known_race(context, subject, kind, seed, stages, two_priors, variants, measures, tables):
    """A unit's function: fast at small positions, and lossy there."""
    with (context.out / "races").open("a") as file:
        file.write(json.dumps([subject, seed, list(variants)]) + "\n")
    noise = 0.02 * (-1) ** (seed + OBJECTS.index(subject))
    runs = {"none": {"quality": {"psnr": 20.0, "agreement": 100.0}, "speed_up": 1.0, "x": 0.0, "bound_step": 1.0}}
    for name, changes in variants.items():
        served = changes["eta"] * 0.8
        psnr = 20.0 - changes["eta"] * (LOSSES[changes["position"]] + noise)
        speed = 1 / (1 - 0.8 * served * (1 - 0.2 * changes["position"]))
        quality = {"psnr": psnr, "agreement": 30.0 - changes["eta"]}
        runs[name] = {"quality": quality, "speed_up": speed, "x": served, "bound_step": speed}
        for _ in range(stages[0]["steps"] if context.on_step is not None else 0):
            context.on_step()
    return {"runs": runs}


def known_costs(context, subject, kind, settings, positions):
    return {
        "share": 0.8,
        "r": {str(k): 0.2 * k for k in positions},
        "table": dict.fromkeys(map(str, positions), COSTS["table"]["1"]),
    }


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr("hash3d_cuda.tune.search.race", known_race)
    monkeypatch.setattr("hash3d_cuda.tune.search.calibrate", known_costs)


def request_for(**changes) -> Request:
    space = {"eta": (0.5, 1.0), "position": (1, 2, 3, 4), "grids": (WIDE,)}
    told = dict(
        title="tiny", stages=[BASE.as_dict()], full_stages=[replace(BASE, steps=50).as_dict()],
        subjects=[(name, "name") for name in OBJECTS], space=space, measure=Measure("psnr", 0.2), runs=40,
    )  # fmt: skip
    return Request(**{**told, **changes})


def races(out: Path) -> list:
    path = out / "races"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_best_setting_is_found_within_the_runs(tmp_path, known):
    content = tune(context(tmp_path), request_for())
    chosen = content["chosen"]
    assert chosen["changes"] == {"eta": 1.0, "position": 2, "grids": WIDE} and chosen["confident"]
    assert chosen["loss"] == pytest.approx(0.15, abs=0.02) and chosen["confidence"] > 0.9
    assert content["runs_done"] == sum(len(names) + 1 for *_, names in races(tmp_path)) <= 40
    assert content["plan"]["halving"][0] == 8 and content["ended"] == "all runs done"
    units = [(subject, seed) for subject, seed, _ in races(tmp_path)]
    assert len(set(units)) == len(units), "every round is on an object and a seed of its own"
    finalists = races(tmp_path)[-1][2]
    assert (
        chosen["judging_runs"]
        == content["plan"]["confirming"]
        == sum(names == finalists for *_, names in races(tmp_path)[2:])
    )
    assert chosen["whole_run"]["steps"] == 50 and chosen["whole_run"]["x"] > chosen["whole_run"]["x_here"]


def test_a_search_that_was_stopped_goes_on(tmp_path, known, monkeypatch):
    whole = tune(context(tmp_path / "whole"), request_for())
    out = tmp_path / "stopped"
    count = 0

    def stop(key, steps, left):
        nonlocal count
        count += 1
        if count == 4:  # before the third race
            raise KeyboardInterrupt

    part = tune(context(out), request_for(), stop)
    assert part["ended"] == "interrupted" and part["points"] == whole["points"][: len(part["points"])]
    assert len(races(out)) == 2
    again = tune(context(out), request_for())
    assert races(out) == races(tmp_path / "whole"), "nothing ran twice"
    assert again == whole


def test_an_interrupt_before_anything_is_known_is_one(tmp_path, known):
    def stop(key, steps, left):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(context(tmp_path), request_for(), stop)


def test_minutes_end_it_between_rounds(tmp_path, known):
    content = tune(context(tmp_path), request_for(minutes=0.0))
    assert content["ended"] == "out of time" and len(races(tmp_path)) == 1
    assert content["chosen"]["judging_runs"] == 0 and not content["chosen"]["confident"]


def test_nothing_within_the_bound_is_no_choice(tmp_path, known):
    request = request_for(measure=Measure("psnr", -1.0))
    content = tune(context(tmp_path), request)
    assert content["chosen"] is None
    (tmp_path / report.SETTINGS).write_text("eta = 1.0\n")
    report.write(content, tmp_path, "hash3d tune", "tiny", {})
    assert not (tmp_path / report.SETTINGS).exists()
    assert "No setting was faster within the bound" in (tmp_path / report.MARKDOWN).read_text()


def test_a_space_that_promises_nothing_is_one_line(tmp_path, known):
    with pytest.raises(ValueError, match=r"^tune: none of 1 combinations promises a speed-up; the U-Net is 80%"):
        tune(context(tmp_path), request_for(space={"eta": (0.0,)}))


def test_steps_left_are_told(tmp_path, known):
    seen, taken = [], []
    where = context(tmp_path, on_step=lambda: taken.append(1))
    tune(where, request_for(), lambda key, steps, left: seen.append((key, steps, left)))
    assert (
        seen[0][0] == "costs" and seen[-1][2] == 0 and all(a[2] == b[1] + b[2] for a, b in itertools.pairwise(seen[1:]))
    )
    again = []
    tune(where, request_for(), lambda key, steps, left: again.append(steps))
    assert set(again) == {0}


# The command


@pytest.fixture
def tiny(monkeypatch, known):
    """The command line with the stand-in for the shipped prior."""
    prior = tiny_prior()
    monkeypatch.setattr("hash3d_cuda.prior.load_prior", lambda *_: prior)
    monkeypatch.setattr(TuneContext, "prior", property(lambda self: prior))


def test_the_command_writes_settings_that_generate_reads(tiny, tmp_path, capsys, monkeypatch):
    out = tmp_path / "tuned"
    vary = ["--vary", "eta=0.5 1", "--vary", f"grids={WIDE}", "--vary", "min_similarity=none"]
    command = ["tune", *OBJECTS, "--out", str(out), *vary, "--scene", "gaussians", "--steps", "12", "--runs", "30"]
    monkeypatch.setattr("sys.argv", ["hash3d", *command])  # what the file's first line quotes
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "Chosen: eta 1, grids 90/360/1/1000, position 2" in printed and "(chosen)" in printed
    assert read_settings(out / "settings.toml") == {
        "scene": "gaussians",
        "eta": 1,
        "grids": [[90.0, 360.0, 1.0, 1000.0]],
        "position": 2,
    }
    assert (out / "settings.toml").read_text().startswith("# Found by hash3d tune ")
    content = json.loads((out / "tune.json").read_text())
    assert content["chosen"]["name"] in (out / "tune.md").read_text() and (out / "tune.png").stat().st_size > 5000
    assert len(content["points"]) + len({(p["subject"], p["seed"]) for p in content["points"]}) == content["runs_done"]
    before = len(races(out))
    assert main([*command, "--quiet"]) == 0 and len(races(out)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "1"], "runs: expected an integer of at least 2"),
        (["--vary", "colour=1"], "vary: 'colour'"),
        (["--measure", "agreement", "--max-loss", "1"], "--max-loss"),
        (["--measure", "psnr", "--min-agreement", "30"], "--min-agreement"),
        (["--recipe-scale", "paper"], "--recipe-scale goes with --recipe"),
        (["--recipe", "no-such"], "recipe: 'no-such'"),
        (["--confidence", "2"], "confidence: "),
        (["--minutes", "-1"], "minutes: "),
        (["--steps", "1"], "steps: "),
        (["picture.png", "--recipe", "dreamfusion"], "takes a name or prompt"),
        ([" "], "subject: expected"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, capsys, arguments, message):
    assert main(["tune", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hash3d: error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_foreign_files_are_refused(tiny, tmp_path, capsys):
    (tmp_path / "tune.md").write_text("mine")
    assert main(["tune", *OBJECTS, "--out", str(tmp_path)]) == 1
    assert "tune.md, which hash3d tune did not write" in capsys.readouterr().err
    assert (tmp_path / "tune.md").read_text() == "mine"


def test_the_anchored_sampler_and_a_settings_file_are_fixed(tiny, tmp_path):
    (tmp_path / "mine.toml").write_text('seed = 7\nsampler = "anchored"\n')
    command = ["tune", *OBJECTS, "--grids", "anchor", "--settings", str(tmp_path / "mine.toml")]
    assert main([*command, "--vary", "eta=0.5 1", "--steps", "12", "--runs", "12", "--out", str(tmp_path / "o")]) == 0
    found = read_settings(tmp_path / "o" / "settings.toml")
    assert found["sampler"] == "anchored" and found["grids"] == [[5.0, 5.0, 0.1, 1000.0]] and "seed" not in found
    assert json.loads((tmp_path / "o" / "tune.json").read_text())["seed"] == 7


def test_without_a_truth_it_is_the_agreement(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hash3d_cuda.sds.metrics.known_truth", lambda subject, size: None)
    command = ["tune", *OBJECTS, "--out", str(tmp_path), "--vary", f"grids={WIDE}", "--steps", "12", "--runs", "12"]
    assert main([*command, "--min-agreement", "29.2"]) == 0
    assert "PSNR against the views of the run without the cache at least 29.2 dB" in capsys.readouterr().out
    assert json.loads((tmp_path / "tune.json").read_text())["measure"] == "agreement"
    assert main([*command, "--measure", "psnr"]) == 2
    assert main([*command, "--measure", "beauty"]) == 2
    assert "--measure beauty: expected psnr, ssim, agreement, or one of LPIPS" in capsys.readouterr().err


def test_it_is_told_how_the_judged_settings_were_found():
    assert report.chosen_by({"halving": [], "finalists": 1}).endswith("simulation chose 1")
    assert report.chosen_by({"halving": [6, 3], "finalists": 2}) == "Rounds of 6, 3 settings chose 2"
