"""The cache on several ranks: the decisions of one rank with all the views, and what happens when ranks differ."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
import torch.distributed as dist
from rank_processes import run_ranks
from sds_stand_ins import SIZE, TOKEN, tiny_unet

import hash3d_cuda as h3d
from hash3d_cuda.distributed.ranks import split

VIEWS, FORWARDS = 5, 14
OPTIONS = dict(
    eta=0.6, groups=2, capacity=31, num_buckets=97, grids=(h3d.Grid(40, 60, 1, 400),), feature_dtype=torch.float16,
    seed=3,
)  # fmt: skip


def attach(group=None, **options):
    unet = tiny_unet()
    return unet, h3d.apply_hash3d(unet, h3d.Hash3DConfig(**{**OPTIONS, **options}, process_group=group))


def forward(unet, cache, number, part=slice(None), condition="cube", **options):
    """One step's views, or a part of them; returns the outputs of the part, item by item."""
    generator = torch.Generator().manual_seed(number)
    poses = [torch.rand(VIEWS, generator=generator) * size for size in (60.0, 360.0, 1.0)]
    latents = torch.randn(VIEWS, unet.config.in_channels, SIZE // 4, SIZE // 4, generator=generator)
    if number == 9:
        latents[VIEWS - 1, 0, 0, 0] = float("nan")  # the last view's, which is the last rank's
    mine = latents[part]
    context = torch.ones(2 * len(mine), 1, TOKEN)
    elevation, azimuth, radius = (pose[part] for pose in poses)
    with cache.views(elevation, azimuth, radius, timestep=500, condition=condition):
        output = unet(torch.cat([mine, mine]), 500, encoder_hidden_states=context, **options).sample
    return output.detach().unflatten(0, (2, len(mine))).transpose(0, 1)


def look(cache):
    keys = h3d.make_keys(torch.linspace(0, 60, 40), torch.linspace(0, 360, 40), 0.5, 500)
    return cache.table.lookup(keys), cache.table.stats().appended, cache.table.stats().rejected


@torch.no_grad()
def run_views(stored, size=1, rank=0, group=None):
    """Kinds and outputs of all forwards, and the table; half-way through, the cache is saved and loaded."""
    unet, cache = attach(group, feature_dtype=stored)
    part = split(VIEWS, size)[rank]
    kinds, outputs = [], []
    for number in range(FORWARDS):
        if number == FORWARDS // 2:
            state = cache.state_dict()
            cache.remove()
            unet, cache = attach(group, feature_dtype=stored)
            cache.load_state_dict(state)
        outputs.append(forward(unet, cache, number, part))
        kinds.append(cache.last.kinds)
    return kinds, torch.cat(outputs, 1), look(cache)


def run_rank(stored):
    return run_views(stored, dist.get_world_size(), dist.get_rank(), dist.group.WORLD)


@pytest.mark.parametrize("size, stored", [(3, torch.float16), (2, torch.int8)])
def test_ranks_together_decide_as_one(size, stored):
    kinds, outputs, table = run_views(stored)
    assert {kind for line in kinds for kind in line} == {"hit", "miss", "bypass"}
    assert any(len(set(line)) > 1 for line in kinds) and table[2] == 1
    told = run_ranks(size, run_rank, stored)
    assert [sum((rank[0][number] for rank in told), ()) for number in range(FORWARDS)] == kinds
    assert any(set(rank[0][number]) == {"hit"} for rank in told for number in range(FORWARDS)), "none to append on one"
    torch.testing.assert_close(torch.cat([rank[1] for rank in told]), outputs, equal_nan=True, atol=1e-3, rtol=1e-3)
    for rank in told:
        assert torch.equal(rank[2][0], table[0]) and rank[2][1:] == table[1:], "same serials everywhere"


def run_with_differences():
    """What becomes of the table when ranks do not call alike, one thing after the other."""
    rank, told = dist.get_rank(), []
    unet, cache = attach(dist.group.WORLD, eta=0.0)
    with torch.no_grad():
        forward(unet, cache, 0)
    told.append(look(cache)[1])
    if rank == 1:
        unet.requires_grad_(True)
    with (
        torch.set_grad_enabled(rank == 1),
        pytest.warns(RuntimeWarning, match="gradients") if rank else torch.no_grad(),
    ):
        forward(unet, cache, 1)
    unet.requires_grad_(False)
    told.append(look(cache)[1])
    with torch.no_grad():
        forward(unet, cache, 2, slice(0, rank + 1))  # one view on rank 0, two on rank 1
        told.append(look(cache)[1])
        cache.clear()
        forward(unet, cache, 3)
    told.append(look(cache)[1])
    try:
        h3d.Hash3DConfig(process_group=dist.group.WORLD, decide="device")
    except ValueError as error:
        told.append(str(error))
    return told


def test_a_rank_that_cannot_store_keeps_the_others_from_storing():
    for told in run_ranks(2, run_with_differences):
        assert told[:4] == [2 * VIEWS, 2 * VIEWS, 2 * VIEWS + 3, 2 * VIEWS]
        assert 'decide: expected "host" with a process_group' in told[4]


def run_with_a_plain_forward():
    """Rank 1 goes to the plain U-Net once; what is said of the forwards that follow, and what was sent."""
    unet, cache = attach(dist.group.WORLD, eta=0.5, feature_dtype=torch.int8, max_age=20)
    sent, gather = [], cache._hooked.exchange.gather
    cache._hooked.exchange.gather = lambda *told: sent.append(told[2].dtype) or gather(*told)
    unet.requires_grad_(dist.get_rank() == 1)
    with torch.set_grad_enabled(dist.get_rank() == 1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward(unet, cache, 0)
    kinds = []
    with torch.no_grad():
        for _ in range(12):
            forward(unet, cache, 1)
            kinds.append(cache.last.kinds)
    return kinds, cache._hooked.cached.forward, set(sent)


def test_ranks_stay_in_step_after_a_plain_forward_of_one():
    first, second = run_ranks(2, run_with_a_plain_forward)
    assert first[:2] == second[:2] and first[1] == 13
    assert {kind for line in first[0] for kind in line} >= {"hit", "bypass"}
    assert first[2] == second[2] == {torch.float16}, "as much as 8 bits hold of them"


@torch.no_grad()
def run_around_a_plain_forward(size=1, rank=0, group=None):
    """What becomes of forwards around one, number 3, that every rank takes to the plain U-Net."""
    unet, cache = attach(group, max_age=20)
    part, kinds = split(VIEWS, size)[rank], []
    for number in range(FORWARDS):
        context = warnings.catch_warnings() if number == 3 else contextlib.nullcontext()
        with context, torch.autocast("cpu", torch.bfloat16, enabled=number == 3):
            warnings.simplefilter("ignore") if number == 3 else None
            forward(unet, cache, number % 3, part)
        kinds.append(cache.last.kinds or (cache.last.plain,) * len(range(VIEWS)[part]))
    return kinds, cache._hooked.cached.forward, look(cache)


def run_rank_around_a_plain_forward():
    return run_around_a_plain_forward(dist.get_world_size(), dist.get_rank(), dist.group.WORLD)


def test_a_plain_forward_of_all_ranks_is_one_process_plain_forward():
    kinds, forwards, table = run_around_a_plain_forward()
    assert kinds[3] == ("shape",) * VIEWS and forwards == FORWARDS - 1
    assert {kind for line in kinds[4:] for kind in line} >= {"hit", "bypass"}
    told = run_ranks(2, run_rank_around_a_plain_forward)
    assert [sum((rank[0][number] for rank in told), ()) for number in range(FORWARDS)] == kinds
    for rank in told:
        assert rank[1] == forwards and torch.equal(rank[2][0], table[0]) and rank[2][1:] == table[1:]


@torch.no_grad()
def run_wrongly(how):
    rank = dist.get_rank()
    unet, cache = attach(dist.group.WORLD, seed=rank if how == "coin" else 0, max_conditions=2)
    forward(unet, cache, 0)
    if how == "crash" and rank == 1:
        unet.mid_block.forward = None
    condition = {"condition": f"cube {rank}", "several": ["a", "b", "a", "b", "a"]}.get(how, "cube")
    for number in range(1, 9):
        forward(unet, cache, number, condition=condition if rank or how != "several" else "a")


@pytest.mark.parametrize(
    "how, expected",
    [
        ("condition", [("ValueError", "name different conditions")] * 2),
        ("coin", [("ValueError", "give all ranks the same seed")] * 2),
        ("several", [("RankLost", "rank 1 failed"), ("ValueError", "one condition per forward")]),
        ("crash", [("RankLost", "rank 1 failed in this forward"), ("TypeError", "")]),
    ],
)
def test_contradictions_and_failures_are_errors_on_all_ranks(how, expected):
    for (kind, message), (name, words) in zip(run_ranks(2, run_wrongly, how), expected, strict=True):
        assert kind == name and words in message, message
