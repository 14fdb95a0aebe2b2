"""Results that take the place of earlier ones, and of nothing else, however the swap ends."""

from __future__ import annotations

import itertools
import json
import os
import shutil

import pytest

from hash3d_cuda.sds import checkpoint
from hash3d_cuda.sds.loop import prepare_folder
from hash3d_cuda.sds.outputs import staged

METRICS = {
    "format": 1, "subject": {}, "prior": "p", "steps": 1, "settings": {}, "time": {}, "cache": {}, "versions": {},
}  # fmt: skip


def results(text, names=("report.html", "views/view_00.png", "views/view_01.png"), **more):
    """What a run writes, in short: relative path to content."""
    proof = json.dumps({**METRICS, "files": sorted({name.split("/")[0] for name in names}), "note": text} | more)
    return {**dict.fromkeys(names, text), "metrics.json": proof}


def put(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def write_results(folder, files):
    with staged(folder) as stage:
        put(stage, files)


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_results_replace_results_and_nothing_else(tmp_path):
    old, new = results("old", ("report.html", "mesh.glb", "views/view_00.png", "views/view_07.png")), results("new")
    mine = {
        "views/user.html": "mine", "turntable.mp4": "mine", "views.txt": "mine", "notes/report.html": "mine",
        "compare.json": json.dumps({"runs": {}}),
    }  # fmt: skip
    write_results(tmp_path, old)
    put(tmp_path, mine)
    write_results(tmp_path, new)
    assert content(tmp_path) == new | mine, "the mesh and view 7 are gone, what the run did not write stays"


def test_results_without_a_list_of_files_are_known_by_their_names(tmp_path):
    put(tmp_path, {"scene.ply": "old", "report.html": "old", "metrics.json": json.dumps(METRICS)})
    write_results(prepare_folder(tmp_path, resume=False, force=False), results("new"))
    assert content(tmp_path) == results("new")


def test_a_comparison_replaces_a_run_and_a_run_a_comparison(tmp_path):
    run, proof = results("run"), json.dumps({"runs": {"with": METRICS, "without": METRICS}})
    comparison = {"report.html": "both", "compare.webp": "both", "compare.json": proof}
    for files in (run, comparison, run):
        write_results(prepare_folder(tmp_path, resume=False, force=False), files)
        assert content(tmp_path) == files
    write_results(tmp_path, comparison)
    assert sorted(os.listdir(tmp_path)) == sorted(comparison), "no empty views/ is left"


@pytest.mark.parametrize(
    "proof",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps({"format": 1}),
        json.dumps(METRICS | {"format": 99}),
        json.dumps(METRICS | {"format": "1"}),
        json.dumps({"runs": METRICS}),
    ],
)
def test_what_is_not_ours_is_refused_or_kept(tmp_path, proof):
    theirs = {"report.html": "mine", "views/view_00.png": "mine", "views/user.html": "mine", "metrics.json": proof}
    put(tmp_path, theirs)
    with pytest.raises(ValueError, match=r"views, report\.html, metrics\.json, which hash3d did not write"):
        prepare_folder(tmp_path, resume=False, force=False)
    assert content(tmp_path) == theirs
    write_results(prepare_folder(tmp_path, resume=False, force=True), results("one"))
    kept = {"report.html.kept": "mine", "views/view_00.png.kept": "mine", "views/user.html": "mine"}
    assert content(tmp_path) == results("one") | kept | {"metrics.json.kept": proof}
    write_results(prepare_folder(tmp_path, resume=False, force=False), results("two"))
    assert content(tmp_path) == results("two") | kept | {"metrics.json.kept": proof}


def test_folders_in_a_files_place_and_files_in_a_folders_place_are_kept(tmp_path):
    put(tmp_path, {"report.html/mine": "mine", "report.html.kept": "taken", "views": "mine"})
    write_results(tmp_path, results("new"))
    kept = {"report.html.kept1/mine": "mine", "report.html.kept": "taken", "views.kept": "mine"}
    assert content(tmp_path) == results("new") | kept


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint.old", "checkpoint.new"])
def test_a_folder_of_another_trainers_checkpoints_is_refused(tmp_path, name):
    put(tmp_path, {f"{name}/epoch1.pt": "mine"})
    for force in (False, True):
        with pytest.raises(ValueError, match=f"{name}, where checkpoints go"):
            prepare_folder(tmp_path, resume=False, force=force)
    assert content(tmp_path) == {f"{name}/epoch1.pt": "mine"}


def test_links_are_taken_away_and_not_followed(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    write_results(out, results("old"))
    put(elsewhere, {"view_00.png": "mine", "page": "mine"})
    shutil.rmtree(out / "views")
    (out / "views").symlink_to(elsewhere)
    (out / "report.html").unlink()
    (out / "report.html").symlink_to(elsewhere / "page")
    write_results(out, results("new"))
    assert content(out) == results("new") and not (out / "views").is_symlink()
    assert content(elsewhere) == {"view_00.png": "mine", "page": "mine"}


class Stops:
    """Lets so many renamings and removals through, then fails: once, or for ever, as for a process that is killed."""

    def __init__(self, monkeypatch, allowed, for_ever):
        self.left, self.for_ever = allowed, for_ever
        for module, name in ((os, "rename"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, self.wrap(getattr(module, name)))

    def wrap(self, function):
        def call(*arguments, **options):
            self.left -= 1
            if self.left < 0 and (self.for_ever or self.left == -1):
                if options.get("ignore_errors"):
                    return None
                raise OSError(5, "Input/output error")
            return function(*arguments, **options)

        return call


def swaps_that_stop(monkeypatch, tmp_path, for_ever):
    """Each way in which a swap of old for new results can stop: its folder, and what was in it."""
    old, new = results("old", ("report.html", "mesh.glb", "views/view_00.png", "views/view_07.png")), results("new")
    for allowed in itertools.count(1):  # the first removal is of an older scratch folder
        folder = tmp_path / str(allowed)
        write_results(folder, old)
        put(folder, {"views/view_01.png": "old", "views/user.html": "mine"})
        with monkeypatch.context() as patch:
            stops = Stops(patch, allowed, for_ever)
            try:
                write_results(folder, new)
            except OSError as error:
                assert "Input/output error" in str(error)
            else:
                if stops.left >= 0:
                    return
        yield folder, old | {"views/view_01.png": "old", "views/user.html": "mine"}, new | {"views/user.html": "mine"}


def test_a_swap_that_fails_is_undone(tmp_path, monkeypatch):
    undone = 0
    for folder, old, new in swaps_that_stop(monkeypatch, tmp_path, for_ever=False):
        found = {name: text for name, text in content(folder).items() if not name.startswith(".hash3d-old/")}
        undone += found == old
        assert found in (old, new)
        write_results(folder, results("new"))
        assert content(folder) == new
    assert undone >= 9


def test_a_swap_that_is_killed_loses_neither_and_is_ended_by_the_next_run(tmp_path, monkeypatch):
    count = 0
    for folder, old, new in swaps_that_stop(monkeypatch, tmp_path, for_ever=True):
        everything = sorted(content(folder).values())
        assert {"old", "new"} <= set(everything) or content(folder) == new
        prepare_folder(folder, resume=False, force=False)
        found = {name: text for name, text in content(folder).items() if not name.startswith(".hash3d-new/")}
        assert found in (old, new), "whole, one or the other"
        write_results(folder, results("new"))
        assert content(folder) == new
        count += 1
    assert count >= 10


def test_stopped_between_two_checkpoints(tmp_path, monkeypatch):
    """However often a save is stopped at the moment that it is to take its place, there is one to go on from."""
    checkpoint.save_checkpoint(tmp_path, {"step": 1}, {})

    def stopped(source, target):
        if str(source).endswith(".new"):
            at_that_moment.append(checkpoint.find_checkpoint(tmp_path))
            raise KeyboardInterrupt
        os.rename(source, target)

    at_that_moment = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", stopped)
        for step in (2, 3):
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save_checkpoint(tmp_path, {"step": step}, {})
    assert [path and path.name for path in at_that_moment] == ["checkpoint.old"] * 2
    assert checkpoint.load_checkpoint(tmp_path).about["step"] == 1
    checkpoint.save_checkpoint(tmp_path, {"step": 4}, {})
    assert checkpoint.load_checkpoint(tmp_path).about["step"] == 4
