"""The SDS loop from start to files: determinism, the cache, interruption and resuming, bad weights, full
disks."""

from __future__ import annotations

import json
import os
import resource
import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image
from sds_stand_ins import SIZE, TinyPrior

from hash3d_cuda.keys import Grid
from hash3d_cuda.sds.checkpoint import find_checkpoint
from hash3d_cuda.sds.finite import NonFinite
from hash3d_cuda.sds.loop import generate
from hash3d_cuda.sds.settings import GenerateSettings

WIDE = (Grid(90.0, 120.0, 1.0, 300.0),)  # cells so large that a dozen steps already hit
SMALL = GenerateSettings(
    steps=12, scene_size=8, eta=0.7, grids=WIDE, memory_budget="16MiB", turntable_frames=3, turntable_size=16
)  # fmt: skip
FILES = {
    "turntable.webp", "views", "contact-sheet.png", "scene.ply", "mesh.glb", "metrics.json", "report.html",
}  # fmt: skip


def make(out, settings=SMALL, prior=None, subject="cube", **options):
    prior = prior or TinyPrior()
    return generate(prior, prior.resolve(subject), settings, out, **options)


class StopAt:
    """Presses Ctrl-C after one step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, progress):
        if progress.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def counts(result):
    return {name: result.metrics["cache"][name] for name in ("hits", "misses", "bypasses")}


def test_writes_everything_and_leaves_the_unet_alone(tmp_path):
    prior = TinyPrior()
    before = {name: value.clone() for name, value in prior.unet.state_dict().items()}
    (tmp_path / "mine.txt").write_text("keep")
    result = make(tmp_path, prior=prior)
    names = {path.name for path in tmp_path.iterdir()}
    assert FILES - {"mesh.glb"} <= names and "mine.txt" in names
    assert not {"checkpoint", ".partial", ".write-test"} & names
    assert ("mesh.glb" in names) != bool(result.metrics["notes"])
    assert len(list((tmp_path / "views").iterdir())) == 16 and result.views.shape == (16, 3, SIZE, SIZE)
    assert Image.open(tmp_path / "turntable.webp").n_frames == 3
    assert all(torch.equal(before[name], value) for name, value in prior.unet.state_dict().items())
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/") >= 17 and "http" not in page.replace("http://www.w3.org", "")


def test_metrics_add_up(tmp_path):
    seen = []
    result = make(tmp_path, progress=seen.append)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    cache = metrics["cache"]
    assert cache["hits"] + cache["misses"] + cache["bypasses"] == SMALL.steps * SMALL.views_per_step
    assert cache["hits"] > 0 and cache["bypasses"] > 0
    assert cache["x"] == pytest.approx(cache["hits"] / 24)
    assert cache["hit_rate"] == pytest.approx(cache["hits"] / (cache["hits"] + cache["misses"]))
    assert metrics["history"]["step"][-1] == 12 and metrics["history"]["x"][-1] == pytest.approx(cache["x"], abs=1e-4)
    time = metrics["time"]
    assert sum(time["split_s"].values()) == pytest.approx(time["total_s"])
    assert all(time["split_s"][name] > 0 for name in ("render", "unet_full", "unet_hit", "table", "backward", "encode"))
    assert time["split_s"]["optimizer"] > 0 == time["split_s"]["decode"] and time["without_cache"]["unet_share"] > 0
    assert metrics["memory"]["table_bytes"] <= SMALL.memory_budget
    assert metrics["settings"] == json.loads(json.dumps(SMALL.as_dict())) and metrics["quality"] is None
    assert [p.step for p in seen] == list(range(1, 13)) and (seen[-1].hits, seen[-1].x) == (
        cache["hits"],
        cache["x"],
    )
    assert result.metrics["steps"] == 12 and not result.interrupted


def test_same_seed_same_object(tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    assert torch.equal(first.views, second.views) and counts(first) == counts(second)
    other = make(tmp_path / "c", replace(SMALL, seed=1))
    assert not torch.equal(first.views, other.views)


def test_eta_zero_equals_no_cache(tmp_path):
    without = make(tmp_path / "a", replace(SMALL, cache=False))
    never = make(tmp_path / "b", replace(SMALL, eta=0.0))
    assert counts(without) == counts(never) == {"hits": 0, "misses": 0, "bypasses": 24}
    torch.testing.assert_close(without.views, never.views, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scene", ["voxels", "gaussians"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, scene):
    settings = replace(SMALL, scene=scene, scene_size=8 if scene == "voxels" else 64)
    whole = make(tmp_path / "whole", settings)
    part = make(tmp_path / "part", settings, progress=StopAt(5), note={"asked": "cube"})
    assert part.interrupted and part.metrics["steps"] == 5 and part.metrics["interrupted"]
    assert (tmp_path / "part" / "scene.ply").is_file(), "what there is was written"
    checkpoint = find_checkpoint(tmp_path / "part")
    assert json.loads((checkpoint / "state.json").read_text())["note"] == {"asked": "cube"}
    resumed = make(tmp_path / "part", settings, resume=True)
    assert torch.equal(resumed.views, whole.views), "bit for bit"
    assert counts(resumed) == counts(whole) and not resumed.interrupted
    assert resumed.metrics["history"] == whole.metrics["history"]
    assert find_checkpoint(tmp_path / "part") is None


def test_resume_twice_and_from_a_periodic_checkpoint(tmp_path):
    whole = make(tmp_path / "whole")
    settings = replace(SMALL, checkpoint_every=3)
    make(tmp_path / "part", settings, progress=StopAt(4))
    make(tmp_path / "part", settings, progress=StopAt(8), resume=True)
    assert torch.equal(make(tmp_path / "part", settings, resume=True).views, whole.views)


def test_an_unfinished_run_is_protected(tmp_path):
    make(tmp_path, progress=StopAt(5))
    with pytest.raises(ValueError, match=r"--resume.*--force"):
        make(tmp_path)
    with pytest.raises(ValueError, match="subject"):
        make(tmp_path, subject="ball", resume=True)
    with pytest.raises(ValueError, match="eta"):
        make(tmp_path, replace(SMALL, eta=0.2), resume=True)
    assert find_checkpoint(tmp_path) is not None
    assert make(tmp_path, force=True).metrics["steps"] == 12
    with pytest.raises(ValueError, match="resume: no unfinished run"):
        make(tmp_path, resume=True)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "cache.safetensors"])
def test_a_truncated_checkpoint_is_refused(tmp_path, name):
    make(tmp_path, progress=StopAt(5))
    path = find_checkpoint(tmp_path) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError):
        make(tmp_path, resume=True)
    assert path.is_file(), "nothing was thrown away"


def test_second_interrupt_quits_at_once(tmp_path):
    def twice(progress):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=twice)
    assert signal.getsignal(signal.SIGINT) is before


def test_nan_weights_are_refused_by_name(tmp_path):
    prior = TinyPrior()
    with torch.no_grad():
        prior.unet.conv_in.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFinite, match=r"conv_in\.weight"):
        make(tmp_path, prior=prior)


def test_a_loss_that_explodes_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    class Exploding(TinyPrior):
        calls = 0

        def encode(self, images):
            self.calls += 1
            return super().encode(images) * (float("inf") if self.calls > 8 else 1.0)

    with pytest.raises(NonFinite, match="step 8"):
        make(tmp_path, replace(SMALL, checkpoint_every=4), prior=Exploding())
    about = json.loads((find_checkpoint(tmp_path) / "state.json").read_text())
    assert about["step"] == 8


def test_a_full_disk_costs_nothing(tmp_path):
    """Files above 4 KB cannot be written any more, as on a disk that is full."""
    good = make(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with (
            pytest.warns(RuntimeWarning, match="no checkpoint at step"),
            pytest.raises(OSError, match="cannot write"),
        ):
            make(tmp_path, replace(SMALL, seed=9, checkpoint_every=6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert not (tmp_path / ".partial").exists() and not (tmp_path / "checkpoint.new").exists()
    assert torch.equal(make(tmp_path).views, good.views)


def test_a_picture_pulls_its_own_view(tmp_path):
    picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    picture.paste((200, 30, 30, 255), (10, 10, 30, 30))
    prior = TinyPrior()
    distances = []
    for weight in (0.0, 50.0):
        settings = replace(SMALL, steps=25, reference_weight=weight, cache=False)
        subject = prior.resolve(picture)
        scene = generate(prior, subject, settings, tmp_path / str(weight)).scene
        pose = [torch.tensor([value]) for value in (subject.elevation, subject.azimuth, 2.0)]
        with torch.no_grad():
            distances.append(float((scene.render(*pose, SIZE).image[0] - subject.image).square().mean()))
    assert distances[1] < 0.5 * distances[0]
