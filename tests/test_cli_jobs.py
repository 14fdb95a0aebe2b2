"""hash3d generate --jobs: from the file to the folders, and again after a kill or Ctrl-C."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time

import pytest
from PIL import Image
from sds_stand_ins import TinyPrior, job_statuses, skip_pages, write_jobs

from hash3d_cuda.cli import main
from hash3d_cuda.sds.checkpoint import find_checkpoint

SMALL = [
    "--scene-size=8", "--turntable-frames=3", "--turntable-size=16", "--memory-budget=16MiB", "--steps=8", "--eta=0.7",
    "--grids=90,120,1,300", "--checkpoint-every=2",
]  # fmt: skip
_context = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def tiny_prior(monkeypatch):
    loads: list[object] = []

    def load(name=None, device="cpu", encoder=None):
        loads.append(name)
        return TinyPrior()

    monkeypatch.setattr("hash3d_cuda.prior.load_prior", load, raising=False)
    skip_pages(monkeypatch)
    return loads


def write(tmp_path, *jobs):
    return write_jobs(tmp_path, jobs, SMALL)


def views(folder):
    return [Image.open(path).tobytes() for path in sorted((folder / "views").iterdir())]


def settings(tmp_path, name):
    return json.loads((tmp_path / "made" / name / "metrics.json").read_text())["settings"]


def test_jobs_from_start_to_summary(tmp_path, capsys, tiny_prior):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (20, 20)).save(picture)
    (tmp_path / "made" / "taken").mkdir(parents=True)
    (tmp_path / "made" / "taken" / "mesh.glb").write_text("mine")
    argv = write(
        tmp_path,
        {"out": "named", "prompt": "cube", "seed": 3, "steps": 4, "cache": False},
        {"out": "pictured", "image": str(picture), "elevation": -5, "grids": [[90, 120, 1, 300]], "views-per-step": 3},
        {"out": "taken", "prompt": "ball"},
        {"out": "recipe", "prompt": "ball", "recipe": "dreamfusion", "steps": 3},
    )
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert job_statuses(tmp_path) == {"named": "done", "pictured": "done", "taken": "failed", "recipe": "done"}
    assert captured.out.splitlines()[-2:] == ["3 done, 1 failed", f"wrote {tmp_path / 'made' / 'summary.html'}"]
    assert "mesh.glb, which hash3d did not write" in captured.out and "Traceback" not in captured.err
    assert (tmp_path / "made" / "taken" / "mesh.glb").read_text() == "mine"
    named, pictured = settings(tmp_path, "named"), settings(tmp_path, "pictured")
    assert (named["seed"], named["steps"], named["cache"]) == (3, 4, False)
    assert (pictured["steps"], pictured["views_per_step"], pictured["eta"]) == (8, 3, 0.7)
    assert len(tiny_prior) == 1, "one prior for all jobs"
    before = os.stat(tmp_path / "made" / "named" / "metrics.json").st_mtime_ns
    assert main([*argv, "--quiet"]) == 1
    assert os.stat(tmp_path / "made" / "named" / "metrics.json").st_mtime_ns == before, "what is done is left alone"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "job, words",
    [
        ({"prompt": "cube", "steps": 0}, "steps"),
        ({"prompt": "cube", "steps": "many"}, "--steps: invalid int value: 'many'"),
        ({"prompt": "cube", "eta": 2}, "eta: expected a finite number from 0"),
        ({"prompt": "cube", "speed": 3}, "speed: expected an option"),
        ({"prompt": "cube", "force": True}, "force: expected an option"),
        ({"prompt": "cube", "eta": True}, "eta: expected a number"),
        ({"prompt": "cube", "cache": "no"}, "cache: expected what --cache takes"),
        ({"prompt": "cube", "elevation": 3}, "--elevation and --azimuth describe a picture"),
        ({"prompt": "unicorn"}, "one of cube, ball"),
        ({"prompt": " "}, "subject"),
        ({"image": "no/such.png"}, "no/such.png"),
        ({"image": "cube"}, "image: no file 'cube'"),
        ({"seed": 1}, 'expected "image" or "prompt"'),
        ({"prompt": "cube", "subject": "cube"}, 'expected "image" or "prompt"'),
        ({"prompt": ["cube"]}, "prompt: expected a string"),
        ({"prompt": "cube", "recipe": "nonesuch"}, "nonesuch"),
        ({"prompt": "cube", "recipe": "dreamgaussian"}, "takes a picture"),
        ({"prompt": "cube", "recipe_scale": "small"}, "--recipe-scale goes with --recipe"),
        ({"prompt": "cube", "memory_budget": "1KiB"}, "memory_budget"),
        ({"prompt": "cube", "help": True}, "help: expected an option"),
    ],
)
def test_a_wrong_line_is_an_error_before_anything_is_made(tmp_path, capsys, job, words):
    argv = write(tmp_path, {"out": "good", "prompt": "cube"}, {"out": "x", **job}, {"out": "y"})
    assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    found = [line.partition("jobs.jsonl:")[2][:1] for line in lines]
    assert found == ["2", "3"] and all(line.startswith("hash3d: error: ") for line in lines)
    assert words in lines[0], lines[0]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "more, words",
    [
        (["cube"], "subjects are in the file"), (["--resume"], "by itself"), (["--force"], "by itself"),
        (["--keep", "--overwrite"], "not allowed with"),
        (["--retries=-1"], "--retries"), (["--lease=0"], "--lease"), (["--ray=-1"], "--ray"),
        (["--ray=1", "--ray-cpus=0"], "--ray-cpus"), (["--ray=1", "--ray-gpus=2"], "--ray-gpus"),
        (["--ray-gpus=0.5"], "--ray-gpus goes with --ray"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_jobs(tmp_path, capsys, more, words):
    assert main([*write(tmp_path, {"out": "a", "prompt": "cube"}), *more]) == 2
    assert words in capsys.readouterr().err


def test_no_file(tmp_path, capsys):
    assert main(["generate", "--jobs", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl" in capsys.readouterr().err
    assert main(["generate", "--jobs", ""]) == 1
    assert "Is a directory: '.'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "reproduce", "tune"])
def test_what_one_process_writes_is_refused_under_torchrun(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, "all" if command == "reproduce" else "cube", "--out", str(tmp_path / "out")]) == 2
    assert f"{command}: expected one process, got 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_settings_files_device_is_the_workers_own(tmp_path, monkeypatch):
    (tmp_path / "gpu.toml").write_text('device = "cuda"\n')
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("hash3d_cuda.sds.settings.check_device", lambda name, device: device)
    seen = []
    monkeypatch.setattr("hash3d_cuda.cli.jobs.make", lambda options, values, making: seen.append(values["device"]))
    main(write(tmp_path, {"out": "a", "prompt": "cube", "settings": str(tmp_path / "gpu.toml")}))
    assert seen[0] == "cuda:3"


def test_all_faults_of_a_line_are_told(tmp_path, capsys):
    bad = {"prompt": "cube", "steps": 0, "eta": 2, "speed": 3, "seed": "x", "position": 4, "jitter": 7}
    assert main(write(tmp_path, {"out": "a", **bad}, {"out": "b", "image": "no/such.png", "eta": -1})) == 2
    told = [line.partition("jobs.jsonl:")[2] for line in capsys.readouterr().err.splitlines()]
    assert [line.split(":")[0] for line in told] == ["1"] * 5 + ["2"] * 2
    for line, words in zip(
        told, ("speed: ", "seed: ", "--jitter: ", "steps: ", "eta: ", "eta: ", "no/such"), strict=True
    ):
        assert words in line, told


def steps_made(tmp_path, *names):
    return [settings(tmp_path, name)["steps"] for name in names]


def test_changed_jobs_are_refused_kept_or_made_anew(tmp_path, capsys):
    one = [{"out": "a", "prompt": "cube", "steps": 1}, {"out": "b", "prompt": "ball", "steps": 1}]
    assert main([*write(tmp_path, *one), "--quiet"]) == 0
    assert main([*write(tmp_path, one[1], {**one[0], "eta": 0.7}), "--quiet", "--device=cpu"]) == 0, "the same in truth"
    other = [{**one[0], "prompt": "ball"}, {**one[1], "steps": 2}, {"out": "c", "prompt": "cube", "steps": 1}]
    argv = [*write(tmp_path, *other), "--quiet"]
    capsys.readouterr()
    assert main(argv) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "'a' was begun with other fields or options (subject)" in errors[0]
    assert "'b' was begun with other fields or options (steps)" in errors[1] and "--overwrite" in errors[1]
    assert not (tmp_path / "made" / "c").exists()
    assert main([*argv[:-1], "--keep"]) == 0
    errors = capsys.readouterr().err.splitlines()
    assert errors[:2] == [
        f"hash3d: {name}: kept as it is, made with another {what}" for name, what in (("a", "subject"), ("b", "steps"))
    ]
    assert steps_made(tmp_path, "a", "b", "c") == [1, 1, 1] and set(job_statuses(tmp_path).values()) == {"done"}
    assert main([*argv, "--overwrite"]) == 0
    assert steps_made(tmp_path, "a", "b", "c") == [1, 2, 1]
    assert json.loads((tmp_path / "made" / "a" / "metrics.json").read_text())["subject"]["label"] == "ball"
    assert main(argv) == 0, "now these are the jobs"
    assert main([*argv, "--eta=0.2"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all("(eta)" in line for line in errors)


def test_an_unfinished_job_with_other_options_begins_anew(tmp_path, monkeypatch):
    argv = [*write(tmp_path, {"out": "a", "prompt": "cube"}), "--quiet"]
    worker = start(argv, monkeypatch)
    wait_for(lambda: find_checkpoint(tmp_path / "made" / "a") is not None, worker)
    worker.kill()
    worker.join(120)
    assert main([*argv, "--steps=3"]) == 2
    assert main([*argv, "--steps=3", "--keep"]) == 0 and steps_made(tmp_path, "a") == [3]
    assert find_checkpoint(tmp_path / "made" / "a") is None


class Slow(TinyPrior):
    """A prior that leaves time for a signal."""

    def encode(self, images):
        time.sleep(0.05)
        return super().encode(images)


def start(argv, monkeypatch, prior=Slow):
    """A worker in a process of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "hash3d_cuda.prior.load_prior", lambda name=None, device="cpu", encoder=None: prior(), raising=False
        )
        process = _context.Process(target=lambda: sys.exit(main([*argv, "--quiet"])), daemon=True)
        process.start()
    return process


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_workers_job_is_taken_up_by_another_from_its_checkpoint(tmp_path, monkeypatch):
    argv = write(tmp_path, {"out": "a", "prompt": "cube"}, {"out": "b", "prompt": "ball"})
    made = tmp_path / "made"
    victim = start(argv, monkeypatch)
    wait_for(lambda: find_checkpoint(made / "a") is not None, victim)
    other = start(argv, monkeypatch)
    wait_for(lambda: (made / ".hash3d-jobs" / "b" / "1.claim").exists(), other)
    about = json.loads((find_checkpoint(made / "a") / "state.json").read_text())
    victim.kill()
    other.join(240)
    assert (victim.exitcode, other.exitcode) == (-signal.SIGKILL, 0) and about["step"] >= 2
    assert job_statuses(tmp_path) == {"a": "done", "b": "done"}
    attempts = {path.name for path in (made / ".hash3d-jobs" / "a").iterdir()}
    assert {"1.claim", "2.claim", "2.end"} <= attempts and "1.end" not in attempts
    for name, word in (("a", "cube"), ("b", "ball")):
        assert main(["generate", word, "--out", str(tmp_path / word), "--quiet", *SMALL]) == 0
        assert views(made / name) == views(tmp_path / word), "as if nothing had happened"


@pytest.mark.parametrize("most, done, told", [(2, 0, 1), (2, 1, 1), (2, 2, 0), (0, 0, 0)])
def test_jobs_that_failed_for_good_under_torchrun(tmp_path, monkeypatch, capsys, most, done, told):
    """torchrun starts processes anew as long as one ends with an error and restarts are left: a line says so."""
    argv = [*write(tmp_path, {"out": "a", "prompt": "cube"}), "--quiet"]
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(most))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(done))
    monkeypatch.setattr("hash3d_cuda.cli.jobs.make", fail)
    assert main(argv) == 1 and job_statuses(tmp_path) == {"a": "failed"}
    lines = [line for line in capsys.readouterr().err.splitlines() if "1 of 1 jobs failed for good" in line]
    assert len(lines) == told and all("torchrun will start its processes anew" in line for line in lines)


def fail(*_):
    raise ValueError("wrong input")


def test_a_worker_killed_after_its_work_loses_nothing(tmp_path):
    argv = [*write(tmp_path, {"out": "a", "prompt": "cube", "steps": 2}), "--quiet"]
    assert main(argv) == 0
    state = tmp_path / "made" / ".hash3d-jobs" / "a"
    (state / "1.end").unlink()
    claim = json.loads((state / "1.claim").read_text())
    (state / "1.claim").write_text(json.dumps({**claim, "process": [claim["process"][0], "0"]}))
    before = os.stat(tmp_path / "made" / "a" / "metrics.json").st_mtime_ns
    assert main(argv) == 0
    assert (state / "2.end").exists() and os.stat(tmp_path / "made" / "a" / "metrics.json").st_mtime_ns == before


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(tmp_path, monkeypatch, capfd):
    argv = write(tmp_path, {"out": "a", "prompt": "cube"}, {"out": "b", "prompt": "ball", "steps": 1})
    worker = start(argv, monkeypatch)
    wait_for(lambda: find_checkpoint(tmp_path / "made" / "a") is not None, worker)
    os.kill(worker.pid, signal.SIGINT)
    worker.join(120)
    assert worker.exitcode == 1 and job_statuses(tmp_path) == {"a": "waiting", "b": "waiting"}
    assert "2 of 2 jobs are not over; the same command goes on" in capfd.readouterr().err
    assert main([*argv, "--quiet"]) == 0
    assert job_statuses(tmp_path) == {"a": "done", "b": "done"}
