"""The cache's answers against the full forward's: the same input again, and batches of which only some items hit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from unet_shapes import CONFIGS, POSITIONS, build_inputs, build_unet

from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import apply_hash3d

EVERY_POSITION = [(name, k) for name, count in POSITIONS.items() for k in range(1, count + 1)]


@pytest.fixture(scope="module")
def unets() -> dict[str, UNet2DConditionModel]:
    return {name: build_unet(name) for name in CONFIGS}


@pytest.fixture(scope="module")
def batches(unets: dict[str, UNet2DConditionModel]) -> dict[str, tuple[dict[str, Any], torch.Tensor]]:
    """Per topology, inputs for 3 items of 2 rows, group-major, and the plain U-Net's output."""
    found = {}
    for name, unet in unets.items():
        inputs = build_inputs(unet, rows=6)
        found[name] = inputs, unet(**inputs).sample
    return found


def poses(*azimuths: float) -> dict[str, Any]:
    return {"elevation": 15.0, "azimuth": list(azimuths), "radius": 2.0}


@pytest.mark.parametrize(("name", "position"), EVERY_POSITION)
def test_hits_and_partial_batches(unets: Any, batches: Any, name: str, position: int) -> None:
    """First a batch of misses; then one whose middle item has moved away; then the first again, all hits."""
    inputs, full = batches[name]
    cache = apply_hash3d(unets[name], Hash3DConfig(eta=1.0, position=position, capacity=8))
    try:
        with cache.views(**poses(0.0, 100.0, 200.0)):
            first = unets[name](**inputs).sample
        assert cache.last.kinds == ("miss", "miss", "miss")
        assert torch.equal(first, full)
        with cache.views(**poses(0.0, 300.0, 200.0)):
            partial = unets[name](**inputs).sample
        assert cache.last.kinds == ("hit", "miss", "hit") and cache.last.kind == "partial"
        torch.testing.assert_close(partial, full, rtol=0, atol=2e-6)
        hit_rows, miss_rows = [0, 2, 3, 5], [1, 4]
        assert torch.equal(partial[hit_rows], full[hit_rows])
        alone = run_rows(unets[name], cache, inputs, miss_rows)
        torch.testing.assert_close(partial[miss_rows], alone, rtol=0, atol=1e-6)
        with cache.views(**poses(0.0, 100.0, 200.0)):
            again = unets[name](**inputs).sample
        assert cache.last.kind == "hit"
        assert torch.equal(again, full)
        assert cache.stats().rows_saved == 2 * cache.stats().hits == 10
    finally:
        cache.remove()


def run_rows(unet: UNet2DConditionModel, cache: Any, inputs: dict[str, Any], rows: list[int]) -> torch.Tensor:
    """The plain U-Net on some rows of ``inputs`` alone."""
    taken = {
        name: {key: item[rows] for key, item in value.items()} if isinstance(value, dict) else value[rows]
        for name, value in inputs.items()
    }
    with cache.bypass():
        return unet(**taken).sample


@pytest.mark.parametrize("items", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_batches_and_groups(unets: Any, items: int, groups: int) -> None:
    unet = unets["sd15"]
    inputs = build_inputs(unet, rows=items * groups)
    full = unet(**inputs).sample
    cache = apply_hash3d(unet, Hash3DConfig(eta=1.0, groups=groups, capacity=8))
    with cache.views(0.0, [90.0 * item for item in range(items)], 2.0):
        first, again = unet(**inputs).sample, unet(**inputs).sample
    shape = cache.table.options.feature_shape
    cache.remove()
    assert cache.last.kinds == ("hit",) * items
    assert torch.equal(first, full) and torch.equal(again, full)
    assert shape == (groups, 8, 8, 8)


def test_a_feature_blends_neighbours(unets: Any) -> None:
    """A hit from another view of the cell runs the tail on that view's feature, and the head on its own input."""
    unet = unets["sd15"]
    near, here = build_inputs(unet, rows=2, seed=1), build_inputs(unet, rows=2, seed=2)
    cache = apply_hash3d(unet, Hash3DConfig(eta=1.0, position=2, capacity=8))
    with cache.views(12.0, 3.0, 2.0, timestep=500):
        unet(**near)
    with cache.views(14.0, 4.0, 2.0, timestep=501):
        reused = unet(**here).sample
    kind, split = cache.last.kind, cache._hooked.parts
    cache.remove()
    assert kind == "hit"
    feature = split.compute(*prepared(split, near), None)
    _, state = prepared(split, here)
    assert torch.equal(split.finish(state, feature), reused)


def prepared(parts: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    from hash3d_cuda.unet import UNetCall

    call = UNetCall(**inputs)
    return call, parts.prepare(call, None)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_noise_mode(unets: Any, batches: Any, name: str) -> None:
    inputs, full = batches[name]
    unet = unets[name]
    cache = apply_hash3d(unet, Hash3DConfig(eta=1.0, mode="noise", capacity=8))
    ran: list[int] = []
    counter = unet.conv_in.register_forward_hook(lambda _, args, out: ran.append(len(out)))
    with cache.views(**poses(0.0, 100.0, 200.0)):
        first, again = unet(**inputs).sample, unet(**inputs).sample
    with cache.views(**poses(0.0, 300.0, 200.0)):
        partial = unet(**inputs).sample
    counter.remove()
    cache.remove()
    assert ran == [6, 2]  # all rows, none, the two of the item that moved
    assert torch.equal(first, full) and torch.equal(again, full)
    torch.testing.assert_close(partial, full, rtol=0, atol=2e-6)


def test_outputs_are_the_callers(unets: Any, batches: Any) -> None:
    """What a hit returned is not written to by later calls."""
    for mode in ("feature", "noise"):
        unet = unets["sd15"]
        cache = apply_hash3d(unet, Hash3DConfig(eta=1.0, mode=mode, capacity=8))
        one, other = build_inputs(unet, rows=2, seed=1), build_inputs(unet, rows=2, seed=2)
        for inputs, azimuth in ((one, 0.0), (other, 100.0)):
            with cache.views(0.0, azimuth, 2.0):
                unet(**inputs)
        with cache.views(0.0, 0.0, 2.0):
            kept = unet(**one).sample
        copy = kept.clone()
        with cache.views(0.0, 100.0, 2.0):
            unet(**other)
        cache.remove()
        assert torch.equal(kept, copy)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_coin(unets: Any, eta: float) -> None:
    """The share of tried forwards, from the cache's own generator: the same run after run, global states untouched."""
    unet = unets["sd15"]
    inputs = build_inputs(unet, rows=1)
    torch_state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        cache = apply_hash3d(unet, Hash3DConfig(eta=eta, position=1, groups=1, capacity=4, seed=3))
        kinds = []
        with cache.views(0.0, 0.0, 2.0):
            for _ in range(12):
                unet(**inputs)
                kinds += cache.last.kinds
        cache.remove()
        runs.append(kinds)
    assert runs[0] == runs[1]
    assert torch.equal(torch.get_rng_state(), torch_state)
    tried = sum(kind != "bypass" for kind in runs[0])
    assert tried == {0.0: 0, 1.0: 12}.get(eta, tried)
    assert eta != 0.5 or 2 <= tried <= 10
