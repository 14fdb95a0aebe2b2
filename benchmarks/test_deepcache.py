"""Is a hit as cheap as DeepCache's own cached step, at the same cut of the same U-Net?

DeepCache's branch b is position b + 1. Both run the same modules; DeepCache keeps every block's output in Python
dictionaries and finds it by the timestep's place in a schedule, the hook copies one feature out of its table.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from axes import compare, devices
from sd_unet import POSITION, SIDE, TIMESTEP, Call, Hooked, make_call, make_unet, twin

BRANCH = POSITION - 1


class DeepCacheStep:
    """DeepCache's helper on a twin of ``unet``, made to reuse what it stored for this very input."""

    def __init__(self, unet: torch.nn.Module, call: Call) -> None:
        from DeepCache import DeepCacheSDHelper

        self._unet = twin(unet)
        scheduler = SimpleNamespace(timesteps=[TIMESTEP])
        self.helper = DeepCacheSDHelper(SimpleNamespace(unet=self._unet, scheduler=scheduler))
        self.helper.set_params(cache_interval=10**6, cache_branch_id=BRANCH)
        self.helper.enable()
        self.first = self.run(call)  # the schedule's first step is a full one
        scheduler.timesteps = [-1, TIMESTEP]  # from now on the same timestep is its second step, a cached one

    def run(self, call: Call) -> torch.Tensor:
        """One call of the wrapped U-Net; the helper wants the timestep by position."""
        return call.run(self._unet)


def check_deepcache(unet: torch.nn.Module, call: Call) -> tuple[Hooked, DeepCacheStep]:
    """Both give the plain forward's output for the input whose features they hold, and DeepCache did skip."""
    expected = call.run(unet)
    hooked, step = Hooked(unet, eta=1.0), DeepCacheStep(unet, call)
    hooked.run(call)
    assert torch.equal(hooked.run(call), expected)
    hooked.expect("hit")
    assert torch.equal(step.first, expected)
    assert torch.equal(step.run(call), expected)
    assert step.helper.is_skip_step(0, 0, "mid") and step.helper.is_skip_step(0, POSITION, "up")
    assert not step.helper.is_skip_step(0, POSITION - 1, "up")
    return hooked, step


@pytest.mark.parametrize("device", devices())
def test_hit_against_deepcache(benchmark, device):
    unet = make_unet(device)
    call = make_call(unet)
    hooked, step = check_deepcache(unet, call)
    compare(
        benchmark,
        lambda: hooked.run(call),
        lambda: step.run(call),
        against="DeepCache's cached step",
        rounds=9 if device == "cpu" else 51,
        warmup=1,
        device=device,
        note=f"latents {SIDE}x{SIDE}",
    )
    hooked.expect("hit")
