"""Whole steps of score distillation on a GPU that is not there: the host never waits for it.

See :mod:`simulated_cuda` for what counts as waiting. The numbers are real, so hits, misses and losses are compared with
those of the same run on a CPU.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from sds_stand_ins import TinyPrior
from simulated_cuda import CUDA, Event, GpuTensor, HostWaits, SimulatedCuda, module_to_gpu, on_gpu, simulated_cuda
from torch import Tensor

import hash3d_cuda as h3d
from hash3d_cuda import calls
from hash3d_cuda.poses import HostCopies
from hash3d_cuda.prior.base import Subject
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.sampler import StepViews, ViewSampler
from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.store import TableStore
from hash3d_cuda.tracked import TrackedTable

WIDE = (h3d.Grid(30.0, 30.0, 1.0, 100.0),)
SETTINGS = GenerateSettings(steps=12, scene_size=8, eta=1.0, grids=WIDE, memory_budget="4MiB")
A, B, C = (10.0, 20.0, 2.0, 450), (10.0, 140.0, 2.0, 450), (40.0, 260.0, 2.0, 150)
SCRIPT = [[A, B], [A, B], [A, C]]  # both miss, both hit, a hit and a miss
SERVED = [{"hits": 0, "misses": 2}, {"hits": 2, "misses": 2}, {"hits": 3, "misses": 3}]


class GpuPrior(TinyPrior):
    """The stand-in on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        module_to_gpu(self.unet)

    def conditioning(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        made = super().conditioning(*args, **kwargs)
        return {name: value.to(CUDA, non_blocking=True) for name, value in made.items()}


class Scripted:
    """A sampler whose views are written down."""

    def __init__(self, script: list[list[tuple]], drawn: ViewSampler) -> None:
        self.script, self.noise_seed, self.shading = script, drawn.noise_seed, drawn.shading

    def views(self, step: int) -> StepViews:
        return StepViews(*(list(column) for column in zip(*self.script[step], strict=True)))


@pytest.fixture
def gpu():
    with simulated_cuda() as guard:
        yield guard


def picture() -> Image.Image:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (10, 10, 30, 30))
    return image


def start(prior: Any, settings: GenerateSettings, subject: Any = "cube") -> SdsRun:
    run = SdsRun(prior, prior.resolve(subject), settings)
    run.sampler = Scripted(SCRIPT, run.sampler)
    return run


def losses(run: SdsRun) -> list[float]:
    """Of all steps, read when they are over."""
    values = [run.train_step() for _ in SCRIPT]
    return [float(value.inner if isinstance(value, GpuTensor) else value) for value in values]


@pytest.mark.parametrize("subject", ["cube", "picture"])
@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_a_step_never_waits(eta, subject):
    """Hit, miss, partial batch (eta 1) and bypass (eta 0), with poses and timesteps on the host."""
    settings, subject = replace(SETTINGS, eta=eta), picture() if subject == "picture" else subject
    expected = losses(start(TinyPrior(), settings, subject))
    with simulated_cuda() as gpu:
        run, served = start(GpuPrior(), replace(settings, device="cuda"), subject), []
        with gpu.watch():
            values = []
            for _ in SCRIPT:
                values.append(run.train_step())
                served.append(dict(run.served))
        assert gpu.copies["to device"] > 0
    if eta:
        assert [{name: step[name] for name in ("hits", "misses")} for step in served] == SERVED
        assert gpu.copies["to host"] > 0, "the serials, to pinned memory"
    else:
        assert served[-1] == {"hits": 0, "misses": 0, "bypasses": 6}
    assert all(isinstance(value, GpuTensor) for value in values)
    assert [float(value.inner) for value in values] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("reached", [True, False])
def test_what_audits_see_is_waited_for_only_when_it_is_late(reached, monkeypatch):
    """Errors are read four forwards later: a copy that has arrived by then costs nothing, another one is counted."""
    script = [step for step in SCRIPT for _ in range(3)]
    settings, found = replace(SETTINGS, target_quality=0.5, audit=0.9, eta=0.5), []
    for device in ("cpu", "cuda"):
        with simulated_cuda() if device == "cuda" else contextlib.nullcontext() as gpu:
            prior = TinyPrior() if gpu is None else GpuPrior()
            run = start(prior, replace(settings, device=device))
            run.sampler = Scripted(script, run.sampler)
            monkeypatch.setattr(Event, "reached", reached)
            with gpu.watch() if gpu is not None and reached else contextlib.nullcontext():
                for _ in script:
                    run.train_step()
            found.append((run.cache.audits(), run.served, run.cache.stats().host_syncs))
    (expected, served, _), (audits, on_gpu_served, waits) = found
    assert len(audits) > 4 and on_gpu_served == served and (waits > 0) != reached
    assert [audit[:2] + audit[3:] for audit in audits] == [audit[:2] + audit[3:] for audit in expected]
    assert [audit.error for audit in audits] == pytest.approx([audit.error for audit in expected], rel=1e-3)


def test_strict_refuses_audits(gpu):
    with pytest.raises(ValueError, match=r"^audit: .*strict"):
        HostCopies(strict=True).send("audit", on_gpu(torch.tensor(1.0)))


PLANTED = {
    "item": lambda x: x.mean().item(),
    "float": lambda x: float(x.mean()),
    "bool": lambda x: bool(x.sum() > 0),
    "if": lambda x: 1 if (x > 0).any() else 0,
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu", non_blocking=True),  # to memory that is not pinned
    "copy to cpu": lambda x: torch.empty(x.shape).copy_(x, non_blocking=True),
    "blocking copy to pinned": lambda x: torch.empty(x.shape, pin_memory=True).copy_(x),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "mask write": lambda x: x.clone().__setitem__(x > 0, 0.0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "host index": lambda x: x[[0]],
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: torch.unique(x),
    "made there": lambda x: torch.tensor([1.0], device=x.device),
    "blocking copy": lambda x: torch.ones(1).to(x.device),
    "blocking copy_": lambda x: x.clone().copy_(torch.zeros(x.shape)),
    "large copy": lambda x: torch.ones(20_000).to(x.device, non_blocking=True),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "event": lambda x: torch.cuda.Event().synchronize(),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_waiting_is_noticed(gpu, monkeypatch, planted):
    """The guard is worth something: each of these in the loop fails it."""
    prior = GpuPrior()
    encode = prior.encode

    def waiting(images: Tensor) -> Tensor:
        latents = encode(images)
        PLANTED[planted](latents.detach())
        return latents

    run = start(prior, replace(SETTINGS, device="cuda"))
    run.train_step()
    monkeypatch.setattr(run.guidance, "encode", waiting)
    with gpu.watch(), pytest.raises(HostWaits):
        run.train_step()
    run.train_step()  # outside the watch it is a step like any other


def test_gaussians_without_gsplat_are_the_exception(gpu, monkeypatch):
    """Their renderer in plain torch lists on the host which of them touch a tile."""
    from hash3d_cuda.sds.scenes import splat

    monkeypatch.setattr(splat, "has_gsplat", lambda: False)
    run = start(GpuPrior(), replace(SETTINGS, device="cuda", scene="gaussians", scene_size=32))
    with gpu.watch(), pytest.raises(HostWaits, match="nonzero"):
        run.train_step()


HARMLESS = {
    "large pinned copy": lambda x: torch.ones(20_000).pin_memory().to(x.device, non_blocking=True),
    "to pinned": lambda x: torch.empty(x.shape, pin_memory=True).copy_(x, non_blocking=True),
    "blend": lambda x: torch.where(x > 0, x, 0.0),
    "masked fill": lambda x: x.clone().masked_fill_(x > 0, 0.0),
    "index there": lambda x: x[x.flatten(1).argmax(1) % len(x)],
    "number written": lambda x: x.clone().__setitem__(0, 1.0),
}


@pytest.mark.parametrize("harmless", HARMLESS)
def test_what_does_not_wait_passes(gpu, harmless):
    x = on_gpu(torch.randn(2, 3, 4, 4))
    with gpu.watch():
        HARMLESS[harmless](x)


def test_priors_make_their_conditions_without_waiting(gpu):
    from hash3d_cuda.prior.model import CODE_WIDTH, Conditioner
    from hash3d_cuda.prior.shipped import ShippedPrior
    from hash3d_cuda.prior.text import TextPrior
    from hash3d_cuda.prior.zero123 import ImagePrior

    def empty(kind: type, **parts: Any) -> Any:
        prior = object.__new__(kind)
        vars(prior).update(device=CUDA, dtype=torch.float32, **parts)
        return prior

    def there(*shape: int) -> Tensor:
        return on_gpu(torch.randn(shape))

    image = dict(latent=there(1, 4, 4, 4), embedding=there(1, 8))
    taken = dict(elevation=0.0, azimuth=0.0, radius=2.0)
    cases = [
        (
            empty(ShippedPrior, conditioner=module_to_gpu(Conditioner(3))),
            Subject("x", data={"code": there(CODE_WIDTH)}),
        ),
        (empty(TextPrior), Subject("x", data=dict(views=there(4, 5, 8), null=there(1, 5, 8)))),
        (empty(ImagePrior, projection=module_to_gpu(torch.nn.Linear(12, 8))), Subject("x", data=image, **taken)),
    ]
    with gpu.watch(), torch.no_grad():
        for prior, subject in cases:
            tokens = prior.conditioning(subject, [10.0, 20.0], [0.0, 90.0], [2.0, 2.0])["encoder_hidden_states"]
            assert isinstance(tokens, GpuTensor) and len(tokens) == 4


def test_keys_reach_the_gpu_in_one_copy(gpu):
    there = on_gpu(torch.tensor([5.0, 6.0]))
    with gpu.watch():
        made = h3d.make_keys([1, 2], 30.0, 2.0, [500, 510], device="cuda")
        assert gpu.copies["to device"] == 1
        mixed = h3d.make_keys(there, 30.0, 2.0, [500, 510])
    assert made.inner.tolist() == [[1, 30, 2, 500], [2, 30, 2, 510]]
    assert mixed.inner.tolist() == [[5, 30, 2, 500], [6, 30, 2, 510]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_that_hit_are_copied_without_waiting(gpu, layout):
    """What follows the kernels of a query into a tensor that is not contiguous, on a GPU."""
    hit = on_gpu(torch.tensor([True, False, True]))
    found = on_gpu(torch.randn(3, 2, 4, 5))
    out = on_gpu(torch.full((3, 2, 4, 5), 7.0).to(memory_format=layout))
    with gpu.watch():
        calls._copy_hits(out, found, hit)
    assert torch.equal(out.inner[::2], found.inner[::2]) and found.inner[0].any()
    assert (out.inner[1] == 7).all()


def arguments(**changes: Any) -> dict[str, Any]:
    config = h3d.Hash3DConfig(grids=WIDE, capacity=8, memory_budget=None, num_buckets=101, **changes)
    return config.table_arguments(torch.float32, torch.device("cuda"))


def tracked() -> TrackedTable:
    return TrackedTable(h3d.HashTable((4,), (3,), **arguments()), arguments(), HostCopies(strict=True))


def ask(gpu: SimulatedCuda, table: TrackedTable, keys: Tensor) -> tuple[list[bool], Tensor]:
    """Hits as the host sees them and what was retrieved, over what was there before: sevens."""
    out = on_gpu(torch.full((len(keys), 4), 7.0))
    with gpu.watch():
        hits = table.query(keys, on_gpu(torch.zeros(len(keys), 3)), out)
    return hits, out.inner


def store(gpu: SimulatedCuda, table: TrackedTable, keys: Tensor, number: float) -> None:
    with gpu.watch():
        table.append(keys, on_gpu(torch.zeros(len(keys), 3)), on_gpu(torch.full((len(keys), 4), number)))


def key(azimuth: float) -> Tensor:
    return h3d.make_keys(0.0, azimuth, 2.0, 100.0)


def test_the_host_decides_as_the_table_does(gpu):
    """Over a random sequence in which entries leave for lack of room."""
    table = tracked()
    same = h3d.HashTable((4,), (3,), **{**arguments(), "device": "cpu"})
    generator, hits_seen = torch.Generator().manual_seed(0), 0
    for _ in range(60):
        keys = torch.randint(0, 2, (3, 4), generator=generator) * torch.tensor([30.0, 30.0, 1.0, 100.0])
        latents, features = (torch.randn(3, size, generator=generator) for size in (3, 4))
        out = torch.zeros(3, 4)
        with gpu.watch():
            hits = table.query(keys, on_gpu(latents), room := on_gpu(out.clone()))
            table.append(keys, on_gpu(latents), on_gpu(features))
        expected = same.query(keys, latents, out=out)
        same.append(keys, latents, features)
        assert hits == expected.hit.tolist()
        assert torch.equal(room.inner[expected.hit], out[expected.hit])
        hits_seen += sum(hits)
    assert 20 < hits_seen < 160


def test_a_rejected_entry_shows_as_nan_until_the_host_has_heard(gpu, monkeypatch):
    """Never as the old content of the buffer."""
    table = tracked()
    monkeypatch.setattr(Event, "reached", False)
    store(gpu, table, key(0.0), math.inf)
    store(gpu, table, key(90.0), 1.0)
    hits, found = ask(gpu, table, torch.cat([key(0.0), key(90.0)]))
    assert hits == [True, True]
    assert found[0].isnan().all() and (found[1] == 1).all()
    monkeypatch.setattr(Event, "reached", True)
    hits, found = ask(gpu, table, torch.cat([key(0.0), key(90.0)]))
    assert hits == [False, True] and (found[1] == 1).all()


@pytest.mark.parametrize("reached", [False, True])
def test_a_rejected_entry_does_not_hide_an_accepted_one(gpu, monkeypatch, reached):
    table = tracked()
    monkeypatch.setattr(Event, "reached", reached)
    store(gpu, table, key(0.0), 2.0)
    store(gpu, table, key(0.0), math.nan)
    hits, found = ask(gpu, table, key(0.0))
    assert hits == [True] and (found == 2).all()


def test_the_host_may_miss_what_the_table_has_but_never_the_reverse(gpu):
    """A rejected entry takes a place in the host's chain and none in the table's."""
    table = tracked()
    store(gpu, table, key(0.0), 2.0)
    for _ in range(arguments()["queue_length"]):
        store(gpu, table, key(0.0), math.nan)
    assert ask(gpu, table, key(0.0))[0] == [False]


def test_the_host_forgets_rejections_of_long_ago(gpu):
    table = tracked()
    for _ in range(40):
        store(gpu, table, key(0.0), math.nan)
        ask(gpu, table, key(0.0))
    assert len(table._index._rejected) <= table.table.capacity and len(table._index._coming) == 0


def test_another_condition_takes_the_place_without_waiting(gpu):
    """A table is emptied in the loop; what it had rejected is added up on the GPU, and read when asked for."""
    config = h3d.Hash3DConfig(grids=WIDE, capacity=8, memory_budget=None, num_buckets=101)
    store = TableStore(config, (4,), (3,), torch.float32, CUDA, HostCopies(strict=True))
    with gpu.watch():
        tables = [store.get(condition) for condition in ("a cat", "a dog", "a cat")]
        assert tables[0] is tables[1] is tables[2]
        with pytest.raises(HostWaits):
            store.rejected  # noqa: B018
