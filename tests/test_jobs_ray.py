"""Workers on Ray: what is asked of a cluster and what becomes of the answers, on a stand-in; and on Ray where it is
installed."""

from __future__ import annotations

import json
import sys
import threading
from types import SimpleNamespace

import pytest
from sds_stand_ins import TinyPrior, job_statuses, skip_pages, write_jobs

from hash3d_cuda.cli import main
from hash3d_cuda.jobs import Job, Ledger, ray_workers
from hash3d_cuda.jobs.follow import Follower
from hash3d_cuda.jobs.ray_workers import Order, count_workers, run_worker

SMALL = ["--scene-size=8", "--turntable-frames=2", "--turntable-size=16", "--memory-budget=16MiB", "--no-cache"]


class StandIn:
    """Runs tasks at once, with the calls of Ray that are made. ``crash``: numbers of workers whose process ends."""

    class RayError(Exception): ...

    class WorkerCrashedError(RayError): ...

    def __init__(self, resources, crash=()):
        self.exceptions = SimpleNamespace(RayError=self.RayError, WorkerCrashedError=self.WorkerCrashedError)
        self.resources, self.crash, self.told, self.cancelled = resources, crash, [], []

    def is_initialized(self):
        return False

    def init(self, **options):
        self.told.append(options)

    def shutdown(self):
        self.told.append("down")

    def cluster_resources(self):
        return self.resources

    def remote(self, **options):
        self.told.append(options)
        return lambda function: SimpleNamespace(remote=lambda *args: Task(self, function, args))

    def wait(self, tasks, num_returns, timeout):
        return tasks[-1:], tasks[:-1]

    def get(self, task):
        return task()

    def cancel(self, task):
        self.cancelled.append(task.number)


class Task:
    def __init__(self, ray, function, args):
        self.ray, self.function, self.args, self.number = ray, function, args, args[4]

    def __call__(self):
        if self.number in self.ray.crash:
            raise self.ray.WorkerCrashedError("the task's worker died\nunexpectedly")
        return self.function(*self.args)


@pytest.fixture
def stand_in(monkeypatch):
    def make(**resources):
        ray = StandIn(resources)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    monkeypatch.setattr(
        "hash3d_cuda.prior.load_prior", lambda name=None, device="cpu", encoder=None: TinyPrior(), raising=False
    )
    skip_pages(monkeypatch)
    return make


def write(tmp_path, *jobs):
    return write_jobs(tmp_path, jobs, SMALL)


AB = {"out": "a", "prompt": "cube"}, {"out": "b", "prompt": "ball"}


def test_jobs_on_a_cluster(tmp_path, stand_in, capsys):
    ray = stand_in(CPU=8.0)
    assert main([*write(tmp_path, *AB), "--ray=0", "--ray-cpus=2", "--steps=1"]) == 0
    needs = {"max_retries": 3, "num_cpus": 2.0, "num_gpus": 0.0}
    assert ray.told == [{"log_to_driver": True}, needs, "down"]
    assert job_statuses(tmp_path) == {"a": "done", "b": "done"}
    state = tmp_path / "made" / ".hash3d-jobs"
    assert sorted(path.name for path in state.iterdir()) == ["a", "b"], "no mark is left"
    made = json.loads((tmp_path / "made" / "b" / "metrics.json").read_text())["settings"]
    assert (made["cache"], made["steps"]) == (False, 1)
    told = capsys.readouterr()
    assert {"hash3d: a: done", "hash3d: b: started"} <= set(told.err.splitlines())
    assert "2 done" in told.out


def test_a_lost_worker_is_told_and_others_go_on(tmp_path, stand_in, capsys):
    stand_in(CPU=1.0).crash = (2,)
    assert main([*write(tmp_path, *AB), "--ray=3", "--steps=1"]) == 1
    assert job_statuses(tmp_path) == {"a": "done", "b": "done"}
    error = capsys.readouterr().err
    assert "hash3d: 3 workers, and room for 1 by now" in error
    assert "hash3d: error: ray: worker 2: its process ended without a word, 4 times" in error


def test_an_interrupt_asks_the_workers_to_end(tmp_path, stand_in, capsys, monkeypatch):
    ray = stand_in(CPU=2.0)

    class Asked(threading.Event):
        def __enter__(self):
            self.requested = True
            return self

        def __exit__(self, *_): ...

    monkeypatch.setattr("hash3d_cuda.sds.interrupt.Interrupt", Asked)
    ray.crash = (1,)
    assert main([*write(tmp_path, *AB), "--ray=2"]) == 1
    assert ray.cancelled == [0, 1]
    error = capsys.readouterr().err
    assert error.count("2 of 2 jobs are not over; the same command goes on") == 1, "the driver says so, no worker"
    assert "hash3d: error" not in error


def test_a_cluster_without_room(tmp_path, stand_in, capsys):
    ray = stand_in(CPU=4.0)
    assert main([*write(tmp_path, *AB), "--ray=0", "--ray-gpus=0.5"]) == 1
    assert "room for a worker (1 CPU, 0.5 GPU), got one with 4 CPU, 0 GPU" in capsys.readouterr().err
    assert ray.told[-1] == "down"


@pytest.mark.parametrize(
    "workers, most, cpus, gpus, resources, expected",
    [
        (0, 9, 1, 0, {"CPU": 4}, 4), (0, 3, 1, 0, {"CPU": 4}, 3), (0, 9, 0.1, 0, {"CPU": 0.3}, 3),
        (0, 9, 4, 1, {"CPU": 64, "GPU": 8}, 8), (0, 9, 4, 0.5, {"CPU": 16, "GPU": 8}, 4), (7, 2, 1, 0, {"CPU": 4}, 7),
    ],
)  # fmt: skip
def test_workers_fit_the_cluster(tmp_path, workers, most, cpus, gpus, resources, expected):
    said: list[str] = []
    assert count_workers(Order([], tmp_path, workers, most, cpus, gpus), resources, said.append) == expected
    assert bool(said) == (expected > 4 and workers > 0)


def test_jobs_for_gpus_are_checked_on_a_machine_without(tmp_path, stand_in, monkeypatch):
    """What each asks of Ray follows from the jobs; a worker that has no GPU refuses them."""
    ray = stand_in(CPU=4.0, GPU=2.0)
    (tmp_path / "gpu.toml").write_text('device = "cuda"\n')
    monkeypatch.setattr(ray_workers, "run_worker", lambda *_: "")
    for job, more, gpus in (
        ({"device": "cuda"}, [], 1.0),
        ({"settings": str(tmp_path / "gpu.toml")}, [], 1.0),
        ({}, ["--device=cuda"], 1.0),
        ({"device": "cuda"}, ["--ray-gpus=0.5"], 0.5),
        ({}, [], 0.0),
    ):
        assert main([*write(tmp_path, {**AB[0], **job}, AB[1]), "--ray=0", "--quiet", *more]) == 1
        assert ray.told[-2]["num_gpus"] == gpus, (job, more)


def test_a_machine_that_does_not_share_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_workers, "UNSEEN", 0.0)
    problem = run_worker(["generate"], str(tmp_path), str(tmp_path / "state"), "1", 0, 1)
    assert f"'{tmp_path / 'state'}' is not the driver's; --out" in problem
    assert "must be on shared storage" in run_worker([], str(tmp_path / "none"), str(tmp_path), "1", 0, 1)
    assert not (tmp_path / "state").exists()


def test_each_driver_at_work_has_a_mark(tmp_path):
    with ray_workers.marked(tmp_path) as first:
        with ray_workers.marked(tmp_path) as second:
            assert second != first and ray_workers.sees(tmp_path, first) and ray_workers.sees(tmp_path, second)
        assert ray_workers.sees(tmp_path, first) and not ray_workers.sees(tmp_path, second)
    assert list(tmp_path.iterdir()) == []


def test_marks_of_drivers_that_were_killed_are_removed(tmp_path):
    with ray_workers.marked(tmp_path) as mark:
        about = json.loads((tmp_path / (ray_workers.MARK + mark)).read_text())
    killed, elsewhere, broken = (tmp_path / (ray_workers.MARK + name) for name in ("killed", "elsewhere", "broken"))
    killed.write_text(json.dumps({**about, "process": [about["process"][0], "0"]}))
    elsewhere.write_text(json.dumps({"place": "another machine", "process": [1, "0"]}))
    broken.write_text("")  # a full disk; who made it cannot be known
    with ray_workers.marked(tmp_path) as mark:
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {elsewhere.name, broken.name, ray_workers.MARK + mark}


def test_what_keeps_a_worker_from_working(tmp_path, capsys):
    (tmp_path / "jobs.jsonl").write_text("{")
    words = ["generate", f"--jobs={tmp_path / 'jobs.jsonl'}"]
    with ray_workers.marked(tmp_path) as mark:
        here = str(tmp_path), str(tmp_path), mark
        assert "it refuses the jobs" in run_worker(words, *here, 0, 1)
        assert "expected a JSON object" in capsys.readouterr().err
        problem = run_worker(["generate", "--jobs=none.jsonl"], *here, 0, 1)
    assert "No such file or directory: 'none.jsonl'" in problem


def test_under_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*write(tmp_path, *AB), "--ray=1"]) == 2
    assert "--ray: expected one process, got 2 of torchrun" in capsys.readouterr().err


def test_without_ray(tmp_path, monkeypatch, capsys, stand_in):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*write(tmp_path, *AB), "--ray=1"]) == 1
    assert "hash3d-cuda[ray]" in capsys.readouterr().err


def test_tells_what_becomes_of_jobs(tmp_path):
    jobs = [Job(name, line, {}) for line, name in enumerate("abc", start=1)]
    ledger, said = Ledger(tmp_path, retries=1), []
    ledger.end(ledger.take(jobs[2]), "done")
    ledger.end(ledger.take(jobs[1]), "failed", "no room")
    follower = Follower(jobs, ledger, said.append)
    claim = ledger.take(jobs[0])
    follower.look()
    ledger.end(claim, "interrupted")
    ledger.end(ledger.take(jobs[1]), "failed", "no room")
    follower.look()
    follower.look()
    assert said == ["a: started", "a: interrupted", "b: attempt 2", "b: failed: no room"]


def test_on_ray_itself(tmp_path):
    """Where the extra is installed: two workers of a local cluster, with the shipped prior."""
    pytest.importorskip("ray", reason="it is in the extra ray")
    import subprocess

    argv = write(tmp_path, {"out": "a", "prompt": "cactus"}, {"out": "b", "prompt": "teddy bear"})
    words = [sys.executable, "-m", "hash3d_cuda", *argv, "--ray=2", "--steps=2"]
    told = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert told.returncode == 0, told.stderr
    assert job_statuses(tmp_path) == {"a": "done", "b": "done"} and "hash3d: b: done" in told.stderr
