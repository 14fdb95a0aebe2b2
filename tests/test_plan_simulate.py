"""What a simulated run is told, and what several say together."""

from __future__ import annotations

import pytest
import torch

from hash3d_cuda.plan import CacheSetting, ViewRanges, plan, simulate
from hash3d_cuda.plan.coming_back import ComingBack
from hash3d_cuda.plan.repeats import Repeats
from hash3d_cuda.plan.report import repeat_rows

KEYS = torch.tensor([[[10.0, 20.0, 2.0, 500.0]]]).expand(12, 1, 4).contiguous()
FEW = ViewRanges((0, 40), (-180, 180), (1.9, 2.1), 400, 500, steps=8)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"eta": 1.5}, ValueError), ({"max_age": 0}, ValueError), ({"max_age": 2.5}, TypeError),
        ({"target_x": 1.1}, ValueError), ({"target_x": "half"}, TypeError), ({"audit": -0.1}, ValueError),
        ({"audit": True}, TypeError), ({"front": 0}, ValueError), ({"front": "5"}, TypeError),
        ({"landing": 3}, ValueError), ({"landing": 0, "front": 5}, ValueError), ({"capacity": 0}, ValueError),
        ({"capacity": "all"}, TypeError), ({"seed": -1}, ValueError),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(options, error):
    name = next(iter(options))
    with pytest.raises(error, match=f"^{name}: expected .+, got .+; .+"):
        simulate(KEYS, **{"eta": 0.5, **options})


@pytest.mark.parametrize("options", [{"max_age": 0}, {"target_x": 2}, {"audit": "often"}])
def test_a_setting_is_checked_when_it_is_made(options):
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(options))}: expected .+, got .+; .+"):
        CacheSetting(**options)


def test_runs_that_tried_nothing_have_no_hit_rate():
    """At eta 0.1 and 8 steps the coin leaves out about two runs of five."""
    found = plan(FEW, CacheSetting(eta=0.1, capacity=8), unet="shipped", runs=12)
    singly = [simulate(FEW.keys(seed), 0.1, capacity=8, seed=seed) for seed in range(12)]
    tried = [run for run in singly if run.tried]
    repeats = found.repeats
    assert 0 < repeats.idle == 12 - len(tried) < 12 and repeats.rates == tuple(run.hit_rate for run in tried)
    assert repeats.hit_rate == sum(run.hits for run in tried) / sum(run.tried for run in tried)
    assert repeats.x == sum(run.x for run in singly) / 12, "they serve nothing, and that counts"
    assert (repeats.as_dict()["runs"], repeats.as_dict()["runs_that_tried_none"]) == (12, repeats.idle)
    ((name, told),) = repeat_rows(found)
    assert name == "hit rate over 12 runs, other seeds" and f"{repeats.idle} of the runs tried no retrieval" in told


def test_where_no_run_tried_anything_there_is_no_hit_rate_to_tell():
    found = plan(FEW, CacheSetting(eta=0.0, capacity=8), unet="shipped", runs=2)
    assert found.repeats == Repeats(0, 0, (), 0.0, idle=2)
    assert repeat_rows(found) == [
        ("hit rate over 2 runs, other seeds", "x 0.0%; 2 of the runs tried no retrieval and have no hit rate")
    ]


def test_an_entry_that_came_back_is_not_copied_again_while_it_is_there():
    back, hit = ComingBack(front=2, landing=2), torch.tensor([True]).numpy()

    def ask(*serials, hinted=False):
        return back.serve(torch.tensor([[serials]]).numpy(), hit, stored=9, hinted=hinted)

    assert ask(8, 7) == 0 and back.copied == 0, "on the device"
    assert ask(8, 3) == 1 and ask(3, -1, hinted=True) == 1 and back.copied == 1
    assert ask(4, 5) == 1 and back.copied == 3 and ask(3, -1) == 1 and back.copied == 4, "the room was needed"
    assert ask(1, 2, hinted=True) == 1 and back.copied == 6, "named and then asked for: copied once"
    missed = back.serve(torch.tensor([[[6]]]).numpy(), ~hit, stored=9, hinted=True)
    assert missed == 0 and back.copied == 7, "a hint is heeded, whatever becomes of the item"
