"""The three parts under torch.compile: no graph break, the eager answer, and hits, misses, partial batches as ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from unet_shapes import SHORT, build_inputs, build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import apply_hash3d

# Traced as for any backend (a graph break is an error), then run by eager kernels: quick, and without a C++ compiler.
TRACED = {"backend": "eager"}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    """Nothing compiled by one test is found by another."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "position"), [("sd15", 1)])
def test_whole_graphs(name: str, position: int) -> None:
    """Cut within a block, after its first attention."""
    unet = build_unet(name, **SHORT)
    inputs = build_inputs(unet, rows=4)
    full = unet(**inputs).sample
    cache = apply_hash3d(unet, Hash3DConfig(eta=1.0, position=position, capacity=8, compile=TRACED))
    kinds, outputs = [], []
    for azimuths in ([0.0, 120.0], [0.0, 120.0], [240.0, 120.0]):
        with torch.no_grad(), cache.views(10.0, azimuths, 2.0):
            outputs.append(unet(**inputs).sample)
        kinds.append(cache.last.kinds)
    assert kinds == [("miss", "miss"), ("hit", "hit"), ("miss", "hit")]
    for output in outputs:
        torch.testing.assert_close(output, full, rtol=0, atol=2e-6)
