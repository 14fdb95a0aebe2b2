"""One object on several ranks: the decisions of one process with the same views, and ranks that stop, fail or go."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from rank_processes import _context, outcome, run_ranks, start_ranks
from sds_stand_ins import TinyPrior, skip_pages

from hash3d_cuda.cli import main
from hash3d_cuda.cli.generate import Making
from hash3d_cuda.cli.main import UsageError
from hash3d_cuda.distributed import Ranks
from hash3d_cuda.keys import Grid
from hash3d_cuda.sds.checkpoint import find_checkpoint
from hash3d_cuda.sds.guidance import step_noise
from hash3d_cuda.sds.loop import generate
from hash3d_cuda.sds.sampler import StepViews
from hash3d_cuda.sds.settings import GenerateSettings

SMALL = GenerateSettings(
    steps=7, views_per_step=3, scene_size=8, eta=0.7, grids=(Grid(90.0, 120.0, 1.0, 300.0),), memory_budget="16MiB",
    turntable_frames=2, turntable_size=16, checkpoint_every=3,
)  # fmt: skip
OPTIONS = [
    "--views-per-step=2", "--scene-size=8", "--turntable-frames=2", "--turntable-size=16", "--steps=6", "--quiet",
    "--eta=0.7", "--grids=90,120,1,300", "--memory-budget=16MiB", "--checkpoint-every=2", "--rank-timeout=60",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
    skip_pages(monkeypatch)


class Act:
    """Does something on one rank after one step."""

    def __init__(self, rank, step, act):
        self.rank, self.step, self.act = rank, step, act

    def __call__(self, progress):
        if progress.step == self.step and dist.get_rank() == self.rank:
            self.act()


def kill(how):
    return lambda: os.kill(os.getpid(), how)


def fail():
    raise OSError("the disk is gone")


def make(out, settings=SMALL, subject="cube", ranks=None, **options):
    prior = TinyPrior()
    content = subject if subject == "cube" else Image.new("RGBA", (16, 16), (200, 30, 30, 255))
    return generate(prior, prior.resolve(content), settings, out, ranks=ranks, **options)


def make_together(*args, step=0, rank=0, act=None, **options):
    ranks = Ranks(dist.group.WORLD)
    result = make(*args, ranks=ranks, progress=None if act is None else Act(rank, step, act), **options)
    assert bool(result.metrics) == ranks.writes
    scene = torch.cat([value.flatten() for value in result.scene.state_dict().values()])
    return result.interrupted, scene, result.metrics.get("cache"), result.views, result.metrics.get("history")


def together(size, *args, **options):
    return run_ranks(size, call, args, options)


def call(args, options):
    return make_together(*args, **options)


@pytest.mark.parametrize(
    "size, subject, more",
    [
        (2, "cube", {}),
        (3, "picture", {"schedule": "uniform", "shading": "lambert", "views_per_step": 4}),
    ],
)
def test_ranks_together_hit_and_store_what_one_process_would(tmp_path, size, subject, more):
    settings = replace(SMALL, **more)
    alone = make(tmp_path / "alone", settings, subject)
    told = together(size, tmp_path / "together", settings, subject)
    cache = told[0][2]
    for name in ("hits", "misses", "bypasses", "entries", "capacity"):
        assert cache[name] == alone.metrics["cache"][name], name
    assert cache["hits"] > 0 and told[0][4] == alone.metrics["history"], "step by step"
    assert all(torch.equal(rank[1], told[0][1]) for rank in told), "one scene, bit for bit"
    assert (told[0][3] - alone.views).square().mean() < 1e-4, "up to the order of sums"
    assert find_checkpoint(tmp_path / "together") is None


def test_an_interrupt_of_one_rank_ends_all_and_a_resumed_run_goes_on(tmp_path):
    whole = together(2, tmp_path / "whole")
    part = together(2, tmp_path / "part", rank=1, step=4, act=kill(signal.SIGINT))
    assert [rank[0] for rank in part] == [True, True]
    assert json.loads((tmp_path / "part" / "checkpoint" / "state.json").read_text())["step"] == 4
    resumed = together(2, tmp_path / "part", resume=True)
    assert torch.equal(resumed[0][1], whole[0][1]) and resumed[0][4] == whole[0][4]


def test_a_killed_rank_is_an_error_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    ranks = start_ranks(2, call, (tmp_path,), dict(rank=1, step=5, act=kill(signal.SIGKILL)))
    (kind, message), none = (outcome(*rank) for rank in ranks)
    assert kind == "RankLost" and "start all ranks again" in message and none is None
    assert json.loads((find_checkpoint(tmp_path) / "state.json").read_text())["step"] == 3
    assert not make(tmp_path, resume=True).interrupted, "on however many ranks"


def test_a_rank_that_fails_ends_the_others(tmp_path):
    lost, failed = together(2, tmp_path, rank=1, step=5, act=fail)
    assert lost[0] == "RankLost" and failed == ("OSError", "the disk is gone")


def test_more_ranks_than_views(tmp_path):
    for kind, message in together(2, tmp_path, replace(SMALL, views_per_step=1)):
        assert kind == "ValueError" and "views_per_step: expected at least 2, one for each rank, got 1" in message


def make_apart(out, how):
    """Rank 1 makes something else than rank 0, in a way that no later exchange would show."""
    settings, prior = SMALL, TinyPrior()
    if dist.get_rank() == 1:
        settings = replace(SMALL, lr_scale=0.5) if how == "settings" else SMALL
        prior = TinyPrior(seed=1) if how == "weights" else prior
    subject = prior.resolve(Image.new("RGBA", (16, 16), (200, 30 + dist.get_rank() * (how == "picture"), 30, 255)))
    return generate(prior, subject, settings, out, ranks=Ranks(dist.group.WORLD)).interrupted


@pytest.mark.parametrize("how, words", [("settings", "lr_scale: "), ("weights", "weights: "), ("picture", "picture: ")])
def test_ranks_that_make_different_things_are_told_so(tmp_path, how, words):
    for kind, message in run_ranks(2, make_apart, tmp_path, how):
        assert kind == "ValueError" and f"ranks: expected the same on ranks 0 to 1, got {words}" in message


def test_what_one_may_not_write_nobody_makes(tmp_path):
    (tmp_path / "mesh.glb").write_text("mine")
    first, second = together(2, tmp_path)
    assert first[0] == "ValueError" and second[0] == "RankLost" and "mesh.glb" in first[1] and "mesh.glb" in second[1]


def test_a_view_has_the_same_noise_on_however_many_ranks():
    whole = StepViews([0.0] * 5, [0.0] * 5, [2.0] * 5, [500] * 5)
    part = StepViews([0.0] * 2, [0.0] * 2, [2.0] * 2, [500] * 2, first=3, whole=whole)
    noise = step_noise(torch.empty(5, 3, 2, 2), whole, torch.Generator().manual_seed(1))
    assert torch.equal(step_noise(torch.empty(2, 3, 2, 2), part, torch.Generator().manual_seed(1)), noise[3:])


def start_as_torchrun_does(argv, restarts=0, act=None, load=TinyPrior):
    """``hash3d ARGV`` in two processes with torchrun's variables, priors from ``load``; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        names["TORCHELASTIC_RESTART_COUNT"] = restarts
        processes.append(_context.Process(target=run_command, args=(names, argv, act, load), daemon=True))
        processes[-1].start()
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


def run_command(names, argv, act, load):
    import hash3d_cuda.prior
    from hash3d_cuda.sds.run import SdsRun

    torch.set_num_threads(1)
    os.environ.update({name: str(value) for name, value in names.items()})
    hash3d_cuda.prior.load_prior = lambda name=None, device="cpu", encoder=None: load()
    before = SdsRun.train_step

    def train_step(run):
        if act is not None and run.step == 5 and names["RANK"] == 1:
            os.kill(os.getpid(), act)
        return before(run)

    SdsRun.train_step = train_step
    os._exit(main(argv))


def test_what_ranks_cannot_share_is_wrong_usage_before_anything_is_loaded(tmp_path, capfd):
    argv = ["generate", "cube", "--out", str(tmp_path / "out"), *OPTIONS]
    assert start_as_torchrun_does([*argv, "--target-x=0.5"], load=fail) == [2, 2]
    told = capfd.readouterr().err  # of two processes, at times in one line
    assert (
        told.count("hash3d: error: target_x: expected None") == told.count("hash3d: error") == 2
        and "Traceback" not in told
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, value", [
    ("target_x", 0.5), ("target_quality", 0.9), ("audit", 0.1), ("max_change", 0.2), ("decide", "device"),
    ("host_budget", "1GiB"), ("views_per_step", 1),
])  # fmt: skip
def test_every_setting_that_ranks_refuse_is_named(monkeypatch, name, value):
    monkeypatch.setattr("hash3d_cuda.distributed.group.check_group", lambda name, group: group)
    ranks = SimpleNamespace(size=2, group="their group")
    ranks.check_views = lambda views: Ranks.check_views(ranks, views)
    Making(ranks=ranks).check(SMALL, replace(SMALL, cache=False, target_x=0.5))
    with pytest.raises(UsageError, match=rf"^{name}: expected .+"):
        Making(ranks=ranks).check(SMALL, replace(SMALL, **{name: value}))
    Making().check(replace(SMALL, **{name: value}))


def test_torchruns_processes_share_an_object_and_a_restart_goes_on(tmp_path, capfd):
    argv = ["generate", "cube", "--out", str(tmp_path / "killed"), *OPTIONS]
    assert start_as_torchrun_does(argv, act=signal.SIGKILL) == [1, -signal.SIGKILL]
    lines = capfd.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("hash3d: error: process_group: rank 0 of 2")]
    assert len(errors) == 1 and "Traceback" not in "\n".join(lines)
    assert json.loads((find_checkpoint(tmp_path / "killed") / "state.json").read_text())["step"] == 4
    assert start_as_torchrun_does(argv, restarts=1) == [0, 0]
    metrics = tmp_path / "killed" / "metrics.json"
    cache = json.loads(metrics.read_text())["cache"]
    assert cache["hits"] + cache["misses"] + cache["bypasses"] == 12 and find_checkpoint(tmp_path / "killed") is None
    made = os.stat(metrics).st_mtime_ns
    assert start_as_torchrun_does(argv, restarts=2) == [0, 0]
    assert os.stat(metrics).st_mtime_ns == made, "what is complete is not made again"
