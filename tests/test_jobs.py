"""The file of jobs, who works on what, and the summary: no prior, no steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from hash3d_cuda.jobs import BadJobs, ClaimLost, Job, Ledger, Status, read_jobs, summarise, table_text, work
from hash3d_cuda.jobs import claims as claims_module
from hash3d_cuda.jobs.processes import is_alive, own_process
from hash3d_cuda.jobs.summary import markdown, page, write_summary

JOBS = [Job(name, line, {"prompt": name}) for line, name in enumerate(("a", "b", "c"), start=1)]
NOBODY = SimpleNamespace(requested=False)
FINISHED = SimpleNamespace(interrupted=False)


def elsewhere(ledger, monkeypatch):
    """Lets ``ledger``'s claims come from another machine."""
    take = ledger.take

    def taken(job):
        with monkeypatch.context() as patch:
            patch.setattr(claims_module, "place", lambda: "another machine")
            return take(job)

    ledger.take = taken


def die(ledger, job):
    """A worker takes the job and ends without a word."""
    claim = ledger.take(job)
    path = ledger.folder / job.name / f"{claim.number}.claim"
    values = json.loads(path.read_text())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.write_text(json.dumps({**values, "process": [gone.pid, "0"]}))


def test_reads_jobs(tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_text('# first\n{"out": "a", "prompt": "x", "seed": 1}\n\n{"prompt": "x", "out": "b 2"}\n')
    jobs = read_jobs(path)
    assert [(job.name, job.line, job.values) for job in jobs] == [
        ("a", 2, {"prompt": "x", "seed": 1}), ("b 2", 4, {"prompt": "x"}),
    ]  # fmt: skip
    path.write_text('{"out": "a", "prompt": "one\u2028line"}', encoding="utf-8")
    assert read_jobs(path)[0].values == {"prompt": "one\u2028line"}
    path.write_bytes(b'{"out": "a", "prompt": "\xff"}')
    with pytest.raises(BadJobs, match="expected UTF-8, got byte 0xff"):
        read_jobs(path)
    assert Job("a", 9, {"seed": 1, "prompt": "x"}).digest == jobs[0].digest != jobs[1].digest


def test_says_everything_that_is_wrong_at_once(tmp_path):
    lines = [
        '{"out": "a"', "[1]", '{"prompt": "x"}', '{"out": "../a"}', '{"out": ".hidden"}', '{"out": "a", "ok": 1}',
        '{"out": "a", "ok": 1}', '{"out": "b"}', '{"out": "summary.md"}',
    ]  # fmt: skip
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(lines))

    def check(job):
        if "ok" not in job.values:
            raise ValueError("not\nok")

    with pytest.raises(BadJobs) as caught:
        read_jobs(path, check)
    numbers = [problem.removeprefix(f"{path}:").partition(":")[0] for problem in caught.value.problems]
    assert numbers == ["1", "2", "3", "4", "5", "7", "8", "9"]
    assert "not ok" in caught.value.problems[6] and "also that of line 6" in caught.value.problems[5]
    assert all("\n" not in problem for problem in caught.value.problems)
    path.write_text('{"out": "a"}')

    def twice(job):
        raise BadJobs(["one", "two"])

    with pytest.raises(BadJobs) as caught:
        read_jobs(path, twice)
    assert caught.value.problems == [f"{path}:1: one", f"{path}:1: two"]
    path.write_text("\n# nothing\n")
    with pytest.raises(BadJobs, match="empty file"):
        read_jobs(path)


def test_a_job_is_taken_once(tmp_path):
    jobs = [Job(str(number), number, {}) for number in range(30)]
    taken: list[str] = []

    def take_all():
        ledger = Ledger(tmp_path)
        taken.extend(job.name for job in jobs if ledger.take(job) is not None)

    threads = [threading.Thread(target=take_all) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken, key=int) == [job.name for job in jobs]


def test_a_dead_workers_job_is_taken_up_and_a_bound_holds(tmp_path):
    ledger, (job, *_) = Ledger(tmp_path, retries=1), JOBS
    die(ledger, job)
    assert ledger.status(job) is Status.WAITING, "tried once, and its worker is gone"
    claim = ledger.take(job)
    assert claim.number == 2 and ledger.status(job) is Status.RUNNING and Ledger(tmp_path).take(job) is None
    ledger.end(claim, "interrupted")
    assert ledger.status(job) is Status.WAITING, "interrupted ones do not count"
    die(ledger, job)
    assert ledger.status(job) is Status.FAILED and ledger.take(job) is None
    assert "ended without a word" in ledger.error(job)
    assert Ledger(tmp_path, retries=2).take(job).number == 4, "a larger bound tries again"


def test_a_silent_worker_on_another_machine_loses_its_job(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: clock.now)
    far, near, job = Ledger(tmp_path), Ledger(tmp_path, lease=10.0), JOBS[0]
    elsewhere(far, monkeypatch)
    claim = far.take(job)
    beat = tmp_path / job.name / "1.beat"
    for number in range(4):
        beat.write_text(json.dumps({"beat": number}))
        assert near.status(job) is Status.RUNNING and near.take(job) is None
        clock.now += 9.0
    clock.now += 2.0
    assert near.take(job).number == 2
    with far.heart(claim) as heart:
        deadline = time.time() + 10
        while not heart.lost and time.time() < deadline:
            time.sleep(0.01)
        with pytest.raises(ClaimLost, match="a: another worker"):
            heart.check()


def test_a_worker_that_stood_still_looks_before_it_goes_on(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: clock.now)
    ledger = Ledger(tmp_path, lease=600.0)  # so that the heart's thread looks once and then sleeps
    with ledger.heart(ledger.take(JOBS[0])) as heart:
        while not (tmp_path / "a" / "1.beat").exists():
            time.sleep(0.01)
        heart.check()
        (tmp_path / "a" / "2.claim").write_text("{}")
        heart.check()
        clock.now += 201.0
        with pytest.raises(ClaimLost):
            heart.check()


def test_own_processes_are_known():
    assert is_alive(own_process())
    assert not is_alive([os.getpid(), "1"]), "the number came again"
    assert not is_alive(None) and not is_alive([2**22 + 1, None])


def test_changed_jobs_are_noticed(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.take(JOBS[0])
    changed = [Job(job.name, job.line, {"prompt": "another"}) for job in JOBS]
    assert ledger.changed(JOBS) == [] and ledger.changed(changed) == changed[:1]
    assert ledger.status(changed[0]) is Status.RUNNING, "whatever it is, somebody is at it"


def test_attempts_at_another_job_of_the_name_do_not_count(tmp_path):
    ledger, keeping, job = Ledger(tmp_path, retries=0), Ledger(tmp_path, keep=True), Job("a", 1, {}, {"seed": 1})
    other = Job("a", 1, {}, {"seed": 2, "eta": 0.5})
    ledger.end(ledger.take(job), "done")
    assert ledger.differences(other) == ["eta", "seed"] and ledger.differences(job) == []
    assert keeping.status(other) is Status.DONE and ledger.status(other) is Status.WAITING
    ledger.end(ledger.take(other), "failed", "no room")
    assert ledger.status(other) is Status.FAILED and ledger.status(job) is Status.WAITING, "done, and then unmade"
    assert ledger.take(job).number == 3 and ledger.take(job) is None


def run_work(ledger, make, jobs=JOBS, asked=NOBODY):
    said: list[str] = []
    work(jobs, ledger, make, asked, said.append, lambda error: isinstance(error, ValueError))
    return said


def test_works_until_all_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr("hash3d_cuda.jobs.worker.IDLE", 0.0)
    tries: list[str] = []

    def make(claim, check):
        check("a step")
        tries.append(claim.job.name)
        if claim.job.name == "b" and claim.number < 3:
            raise OSError("no room")
        if claim.job.name == "c":
            raise ValueError("wrong input")
        return FINISHED

    ledger = Ledger(tmp_path)
    said = run_work(ledger, make)
    assert tries == ["a", "b", "b", "b", "c"], "wrong input is not tried again"
    assert [ledger.status(job) for job in JOBS] == [Status.DONE, Status.DONE, Status.FAILED]
    assert "b: failed: no room" in said and ledger.error(JOBS[2]) == "wrong input"
    assert run_work(ledger, make) == [] and len(tries) == 5, "nothing is left to do"


def test_waits_for_others_and_takes_up_what_they_leave(tmp_path, monkeypatch):
    monkeypatch.setattr("hash3d_cuda.jobs.worker.IDLE", 0.01)
    other = Ledger(tmp_path)
    claim = other.take(JOBS[0])
    made: list[tuple[str, int]] = []

    def make(claim_, check):
        made.append((claim_.job.name, claim_.number))
        if len(made) == 2:
            threading.Timer(0.1, other.end, (claim, "failed", "gone wrong")).start()
        return FINISHED

    run_work(Ledger(tmp_path), make)
    assert made == [("b", 1), ("c", 1), ("a", 2)]


def test_an_interrupt_ends_the_work_and_a_second_run_goes_on(tmp_path):
    asked = SimpleNamespace(requested=False)

    def make(claim, check):
        asked.requested = True
        return SimpleNamespace(interrupted=True)

    ledger = Ledger(tmp_path)
    assert run_work(ledger, make, asked=asked) == ["a: started", "a: interrupted after 0 s"]
    assert {ledger.status(job) for job in JOBS} == {Status.WAITING}

    def stop(claim, check):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_work(ledger, stop)
    assert ledger.status(JOBS[0]) is Status.WAITING and ledger.attempts(JOBS[0])[-1].end["how"] == "interrupted"


def test_summary_in_every_form(tmp_path):
    ledger = Ledger(tmp_path / "state")
    ledger.end(ledger.take(JOBS[1]), "failed", "bad <word> | worse", final=True)
    ledger.end(ledger.take(JOBS[2]), "done")
    summary = summarise(JOBS, ledger, tmp_path)
    assert summary["counts"] == {"waiting": 1, "running": 0, "done": 1, "failed": 1}
    write_summary(summary, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    written = (tmp_path / "summary.md").read_text()
    assert written == markdown(summary) and "bad <word> \\| worse |" in written
    text = (tmp_path / "summary.html").read_text()
    assert text == page(summary) and "bad &lt;word&gt;" in text and 'href="c/report.html"' in text
    assert table_text(summary).splitlines()[-1] == "1 waiting, 1 done, 1 failed"
