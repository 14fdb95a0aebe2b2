"""The page of claims: every figure from the experiments' JSON, every verdict by its rule, and never out of date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hash3d_cuda.bounds import unet_bound
from hash3d_cuda.reproduce import (
    claims,
    figure2,
    figure9,
    figure10,
    figure12,
    figure14,
    macs,
    recipes_table,
    studies,
    table3,
    table4,
)  # fmt: skip
from hash3d_cuda.reproduce import paper_numbers as paper
from hash3d_cuda.reproduce.base import Context
from hash3d_cuda.reproduce.claim_data import FAILS, HOLDS, NOT_HERE, NOT_JUDGED, NOT_RUN, PART, Missing, Results, number
from hash3d_cuda.reproduce.claim_list import CLAIMS
from hash3d_cuda.reproduce.claim_rules import CHANGE
from hash3d_cuda.reproduce.sweep import label

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "reproduce"
JUDGES = {claim.title: claim.judge for claim in CLAIMS}


def made(name: str, summary: dict[str, Any]) -> Results:
    """The results of one experiment."""
    told = {"machine": "a machine", "date": "2000-01-01", "command": "hash3d reproduce", "objects": ["sofa"]}
    content = {"id": name, "title": name, "summary": summary, **told}
    return Results({name: json.loads(json.dumps(content))})


def rows(name: str, *found: dict[str, Any]) -> Results:
    return made(name, {"rows": list(found)})


def figure_2(own: float = 0.9, far: float = 0.5) -> Results:
    least = {"same noise, raw": 0.95, "own noise, raw": own, "own noise, centred": 0.6}
    return made(
        "figure-2", {"rows": [], "within_10": least, "far": {"azimuth": 180, "raw": far}, "others": {"raw": 0.4}}
    )


def figure_3(lowest: float, wide: float) -> Results:
    same = {"PSNR, dB": 36.0, "lowest": lowest, "a neighbour instead, dB": 28.0}
    return rows("figure-3", {"delta": 5, **same}, {"delta": 20, **same, "PSNR, dB": wide})


def point(**found: Any) -> dict[str, Any]:
    return {"seconds": 1.0, "speed-up": 1.1, "bound": 1.2, "x": 0.2, "PSNR change, dB": 0.0, **found}


def figure_9(*points: tuple[float, float, float]) -> Results:
    """(eta, speed-up, change)."""
    found = [point(eta=eta, grids="stretched") | {"speed-up": s, "PSNR change, dB": c} for eta, s, c in points]
    return rows("figure-9", point(eta="no cache", grids="-"), *found, point(eta=0.1, grids="paper"))


def changes(name: str, column: str, values: dict[str, tuple[float, float, float]], **same: Any) -> Results:
    """Rows of (change of PSNR, x, speed-up)."""
    return rows(
        name,
        *(
            point(**{column: key}, **same) | {"PSNR change, dB": change, "x": x, "speed-up": speed}
            for key, (change, x, speed) in values.items()
        ),
    )


def table_4(fine: float, coarse: float, adaptive: float) -> Results:
    values = {"constant (10)": (fine, 0.1, 1.0), "constant (30)": (coarse, 0.3, 1.1), "adaptive": (adaptive, 0.2, 1.1)}
    return changes("table-4", "cells", values, grids="stretched")


def table_3(needed: float, every: float, slow: float) -> Results:
    found = [
        point(retrieval="storing all features") | {"PSNR change, dB": every, "seconds in the table": slow},
        point(retrieval="hashing, room for every view") | {"PSNR change, dB": 0.0, "seconds in the table": 1.0},
    ]
    return made("table-3", {"rows": found, "full_size": {"all_gib": needed}})


def tables(own: float, strong: float) -> Results:
    same = {"system": "DreamFusion", "drift": 1.0}
    return rows(
        "tables-1-2", point(cache="no cache", **same),
        point(cache="cache, the recipe's own settings", **same) | {"PSNR change, dB": own, "x": 0.01},
        point(cache="cache, eta 0.5, stretched", **same) | {"PSNR change, dB": strong},
    )  # fmt: skip


def counted(zero: float) -> Results:
    sd = {"model": "sd21", "before_gmacs": 678.6, "after_gmacs": 622.21, "r": 0.22}
    return rows("macs", sd, {"model": "zero123", "before_gmacs": zero, "after_gmacs": 154.76, "r": 0.19})


def later(own: float) -> Results:
    found = {"along": "timestep", "raw, same noise": 0.99, "raw, own noise": own}
    return rows("figure-2", {"offset": 10, **found}, {"offset": 300, **found, "raw, own noise": 0.1})


CASES = [
    ("Features of nearby views are alike", figure_2(), HOLDS),
    ("Features of nearby views are alike", figure_2(own=0.7), PART),
    ("Features of adjacent timesteps are alike", later(0.9), HOLDS),
    ("Features of adjacent timesteps are alike", later(0.7), PART),
    ("Novel views for free", figure_3(31.0, 22.0), HOLDS),
    ("Novel views for free", figure_3(25.0, 22.0), PART),
    ("Novel views for free", figure_3(25.0, 35.0), FAILS),
    ("MACs", counted(168.78), HOLDS),
    ("MACs", counted(190.0), PART),
    ("Quality is kept or slightly better", tables(0.2, 0.0), HOLDS),
    ("Quality is kept or slightly better", tables(0.0, 0.0), PART),
    ("Quality is kept or slightly better", tables(0.0, -0.5), PART),
    ("Quality is kept or slightly better", tables(-0.3, -0.5), FAILS),
    ("Hashing against storing all features", table_3(98.0, -0.2, 2.0), HOLDS),
    ("Hashing against storing all features", table_3(98.0, 0.3, 0.5), PART),
    ("Time falls as eta rises", figure_9((0.01, 1.0, 0), (0.7, 1.2, 0)), HOLDS),
    ("Time falls as eta rises", figure_9((0.01, 1.0, 0), (0.7, 0.99, 0)), FAILS),
    ("Quality improves for eta below 0.3", figure_9((0.01, 1, 0.0), (0.1, 1, 0.3), (0.3, 1, -1)), HOLDS),
    ("Quality improves for eta below 0.3", figure_9((0.01, 1, 0.0), (0.1, 1, 0.05), (0.3, 1, 1)), FAILS),
    ("Little is gained above eta 0.3", figure_9((0.01, 1.0, 0), (0.3, 1.2, 0), (0.7, 1.21, 0)), HOLDS),
    ("Little is gained above eta 0.3", figure_9((0.01, 1.0, 0), (0.3, 1.2, 0), (0.7, 1.6, 0)), FAILS),
    ("Hashing features beats hashing noise",
     changes("figure-10", "cached", {"features": (0, 0.2, 1.1), "noise": (-1, 0.2, 1.2)}, eta=0.5), HOLDS),
    ("Hashing features beats hashing noise",
     changes("figure-10", "cached", {"features": (0, 0.2, 1.1), "noise": (0, 0.2, 1.2)}, eta=0.5), PART),
    ("The adaptive grid is best", table_4(0.0, -0.3, 0.1), HOLDS),
    ("The adaptive grid is best", table_4(0.0, 0.0, -0.4), PART),
    ("Both stages of the look-up are needed",
     changes("figure-12", "retrieval", {"ours": (0, 0, 1), "no key hashing": (-1, 0, 1), "no aggregation": (-1, 0, 1)}),
     HOLDS),
    ("Both stages of the look-up are needed",
     changes("figure-12", "retrieval", {"ours": (0, 0, 1), "no key hashing": (-1, 0, 1), "no aggregation": (0, 0, 1)}),
     PART),
    ("Position is a trade-off", changes("figure-14", "position", {7: (0, 0.2, 1.0), 1: (-0.2, 0.2, 1.2)}), HOLDS),
    ("Position is a trade-off", changes("figure-14", "position", {7: (-0.2, 0.2, 1.2), 1: (0, 0.2, 1.0)}), FAILS),
]  # fmt: skip


@pytest.mark.parametrize(
    ("title", "results", "expected"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_verdicts_follow_the_figures(title, results, expected):
    judgement = JUDGES[title](results)
    assert judgement.verdict == expected, judgement
    assert len(results.used) == 1


def test_every_claim_has_cases_or_is_not_measurable():
    for title, judge in JUDGES.items():
        if title not in {name for name, _, _ in CASES}:
            assert judge(Results({})).verdict == NOT_HERE, title
        else:
            with pytest.raises(Missing, match="was not run"):
                judge(Results({}))


def test_views_far_away_that_are_alike_too_are_told():
    assert (
        JUDGES["Features of nearby views are alike"](figure_2(far=0.9)).remark
        == "but views 180 degrees apart are above 0.8 too"
    )
    assert JUDGES["Features of nearby views are alike"](figure_2(far=0.5)).remark == ""


@pytest.mark.parametrize(("speed_up", "drift", "expected"), [(1.02, 1.0, FAILS), (1.4, 1.0, HOLDS), (1.4, 1.3, FAILS)])
def test_a_systems_speed_up_is_judged_at_its_own_settings_and_less_the_drift(speed_up, drift, expected):
    results = tables(0.0, 0.0)
    own = results.found["tables-1-2"]["summary"]["rows"][1]
    own |= {"speed-up": speed_up, "drift": drift}
    verdicts = {system.title: claims.judged_system(system, results).verdict for system in paper.SYSTEMS}
    assert verdicts.pop("DreamFusion") == expected and set(verdicts.values()) == {NOT_RUN}


def test_a_run_without_true_views_is_not_called_not_run():
    """With real weights no PSNR is known; the times are, and the rest was run all the same."""
    results = tables(0.0, 0.0)
    for row in results.found["tables-1-2"]["summary"]["rows"]:
        row |= {CHANGE: None, "bound": None, "speed-up": 1.4, "drift": 1.0}
    system = next(system for system in paper.SYSTEMS if system.title == "DreamFusion")
    judged = claims.judged_system(system, results)
    assert judged.verdict == HOLDS and judged.measured.endswith("| unknown") and "unknown at x" in judged.measured
    claim = next(claim for claim in claims.CLAIMS if claim.title == "Quality is kept or slightly better")
    judgement, sources = claims.judged_claim(claim, results)
    assert judgement.verdict == NOT_JUDGED and CHANGE in judgement.measured and sources
    assert claims.judged_claim(claim, Results({}))[0].verdict == NOT_RUN


def figures(**changed: Any) -> dict[str, Any]:
    """What a sweep says of one run."""
    names = (
        "seconds", "speed_up", "bound_step", "unet_speed_up", "bound_unet", "hit_rate", "x", "drift", "table_seconds",
    )  # fmt: skip
    rest = {"quality": {"psnr": 25.0, "ssim": 0.9}, "slots_bytes": 1, "table_bytes": 2, "picture": ""}
    return dict.fromkeys(names, 1.0) | rest | changed


def summary_of(module: Any, context: Context) -> dict[str, Any]:
    """What an experiment makes of made-up results of its own units."""
    if module is macs:
        each = {"before": 1.0, "after": 0.9, "full": 1.0, "hit": 0.2, "r": 0.2, "eta": 0.1}
        return module.summarise(context, dict.fromkeys(macs.MODELS, each))
    if module is recipes_table:
        run = figures(drift=1.0, psnr_change=0.0)
        runs = dict.fromkeys(recipes_table.CACHES, run)
        both = {"title": "DreamFusion", "kind": "text", "two_priors": False, "runs": runs}
        return module.summarise(context, {"dreamfusion, sofa": both})
    if module is figure2:
        entries = [{"offset": [e, a], "noise": n, "raw": 1.0, "centred": 1.0} for e in (0.0, 10.0) for a in (0.0, 10.0)
                   for n in figure2.NOISES]  # fmt: skip
        time = [{"offset": 10, "noise": n, "raw": 1.0, "centred": 1.0} for n in figure2.NOISES]
        return module.summarise(context, {"sofa": {"pose": entries, "time": time, "others": [entries[0]]}})
    results = {
        unit.key: {"runs": {label(told): figures() for told in unit.arguments["variants"]}}
        for unit in module.units(context)
    }
    return module.summarise(context, results)


@pytest.mark.parametrize(
    "module", [figure2, figure9, figure10, figure12, figure14, macs, recipes_table, table3, table4],
    ids=lambda module: module.ID,
)  # fmt: skip
def test_the_rules_read_what_the_experiments_write(module, tmp_path, monkeypatch):
    """A column renamed there must not turn a claim into "not run" here."""
    monkeypatch.setattr(studies, "cuts", lambda context: range(1, 4))
    monkeypatch.setattr(recipes_table, "paper_macs_of", lambda result: (1.0, 0.9))
    results = made(module.ID, summary_of(module, Context(tmp_path, True, ("sofa",), 5)))
    used: list[str] = []
    for judge in JUDGES.values():
        results.used.clear()
        try:
            judge(results)
        except Missing as missing:
            assert "was not run" in str(missing), missing
        used += results.used
    assert module.ID in used


def test_the_papers_own_numbers():
    assert (
        pytest.approx([image + text for image, text in zip(paper.IMAGE, paper.TEXT, strict=True)], abs=0.005)
        == paper.BOTH
    )
    assert [round(system.bound, 2) for system in paper.SYSTEMS] == [1.09] * 9
    assert unet_bound(paper.ETA, paper.hit_cost(paper.TEXT)) == pytest.approx(paper.TEXT[0] / paper.TEXT[1])
    assert paper.compared((1.0, 3.0), (2.0, 4.0), 25, 2) == "+1.00 ± 1.00"


def test_numbers_of_rows():
    assert number({"a": "26.05 ± 3.1"}, "a") == 26.05 and number({"a": -1}, "a") == -1
    for bad in ({}, {"a": "none"}, {"a": None}, {"a": True}):
        with pytest.raises(Missing, match="'a' holds no number"):
            number(bad, "a")


def test_page_without_results_says_not_run(tmp_path):
    text = claims.page(Results.load(tmp_path))
    assert text.count(f"| {NOT_RUN} |") >= len(paper.SYSTEMS) and "figure-2 was not run" in text
    assert HOLDS not in [line.split("**: ")[-1] for line in text.splitlines() if "**Verdict**" in line]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two experiments' results, and a file that is none."""
    for results in (figure_2(), counted(168.78)):
        for name, content in results.found.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "reproduce.json").write_text('{"format": 1, "files": []}')
    return tmp_path


def test_page_tells_figures_and_where_they_are_from(folder):
    text = claims.page(Results.load(folder))
    assert "at least 0.950 within 10 degrees" in text
    assert "figure-2 (2000-01-01, a machine, 1 objects): `hash3d reproduce`" in text


def test_check_fails_when_the_page_is_out_of_date(folder, capsys):
    page = folder / "page.md"
    told = [str(folder), "--out", str(page)]
    assert claims.main([*told, "--check"]) == 1 and "cannot be read" in capsys.readouterr().err
    assert claims.main(told) == 0 and claims.main([*told, "--check"]) == 0
    capsys.readouterr()
    content = json.loads((folder / "figure-2.json").read_text())
    content["summary"]["within_10"]["own noise, raw"] = 0.1
    (folder / "figure-2.json").write_text(json.dumps(content))
    assert claims.main([*told, "--check"]) == 1
    assert "differs from its results from line" in capsys.readouterr().err


def test_a_damaged_file_is_one_line(folder, capsys):
    (folder / "figure-2.json").write_text("{")
    assert claims.main([str(folder), "--out", str(folder / "page.md")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "figure-2.json' is damaged" in error
    assert claims.main([str(folder / "misspelt"), "--out", str(folder / "page.md")]) == 1
    assert "is no folder" in capsys.readouterr().err and not (folder / "page.md").exists()


def test_committed_page_is_what_the_committed_results_give():
    """After new results: ``python -m hash3d_cuda.reproduce.claims benchmarks/results/reproduce``."""
    results = Results.load(RESULTS) if RESULTS.is_dir() else Results({})  # none were committed yet
    assert claims.check(claims.page(results), ROOT / claims.PAGE) is None
