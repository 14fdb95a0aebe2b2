"""The cache under multi-view U-Nets: 4 or 5 frames are one item, and must stay together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ldm_shapes import build, build_call
from torch import nn

from hash3d_cuda.cameras import camera_to_world
from hash3d_cuda.config import Hash3DConfig
from hash3d_cuda.hook import Hash3DCache, apply_hash3d
from hash3d_cuda.unet import find_adapter, multi_view, pose_from_camera

KINDS = {"mvdream": 4, "imagedream": 5}


def apply(model: nn.Module, **options: Any) -> Hash3DCache:
    return apply_hash3d(model, Hash3DConfig(**{"eta": 1.0, "position": 2, "capacity": 16, **options}))


def poses(*azimuths: float) -> dict[str, Any]:
    return {"elevation": 15.0, "azimuth": list(azimuths), "radius": 2.0, "timestep": 500}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", range(1, 10))
def test_parity_at_every_position(kind: str, position: int) -> None:
    model, call = build(kind), build_call(kind, rows=KINDS[kind] * 2, frames=KINDS[kind])
    adapter = find_adapter(model)
    split = adapter.split(position)
    hidden, skips, conditioning = split.head(adapter.bind((), call))
    assert torch.equal(split.tail(split.deep(hidden, conditioning), skips, conditioning), model(**call))


@pytest.mark.parametrize("items", [1, 2, 3, 4])
@pytest.mark.parametrize(("kind", "position"), [("mvdream", 2), ("imagedream", 2), ("mvdream", 7), ("imagedream", 9)])
def test_items_of_frames(kind: str, position: int, items: int) -> None:
    """[negative, positive] x items x frames: item 0 stays, the others move, then all come again."""
    frames = KINDS[kind]
    model, call = build(kind), build_call(kind, rows=2 * items * frames, frames=frames)
    full = model(**call)
    cache = apply(model, position=position, **multi_view(frames))
    for kinds, step in (("miss", 0), ("some", 90), ("hit", 90)):
        with cache.views(**poses(*(item and item * 20 + step for item in range(items)))):
            found = model(**call)
        if kinds == "some":
            assert cache.last.kinds == ("hit",) + ("miss",) * (items - 1)
            torch.testing.assert_close(found, full, rtol=0, atol=2e-6)
        else:
            assert cache.last.kinds == (kinds,) * items
            assert torch.equal(found, full) if kinds == "miss" else torch.allclose(found, full, rtol=0, atol=2e-6)
    assert cache.table.options.feature_shape[0] == 2 * frames
    cache.remove()


def test_rows_of_an_item() -> None:
    assert multi_view(4)["groups"] == 8
    assert multi_view(2)["rows"](2, 4) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    with pytest.raises(ValueError, match="frames"):
        multi_view(0)


@pytest.mark.parametrize("options", [{"groups": 2}, {"groups": 8}])
def test_frames_that_would_be_parted_run_plain(options: dict[str, Any]) -> None:
    """Each frame taken for an item; or the default row order, which mixes two items' frames."""
    model, call = build("mvdream"), build_call("mvdream", rows=16)
    full = model(**call)
    cache = apply(model, **options)
    with cache.views(elevation=0, azimuth=0, radius=2), pytest.warns(RuntimeWarning, match="num_frames"):
        assert torch.equal(model(**call), full) and cache.last.plain == "frames"
    cache.remove()


def test_weight_of_the_picture_is_watched() -> None:
    """ImageDream's ip_weight is a number on the attention, no weight."""
    model, call = build("imagedream"), build_call("imagedream", rows=10, frames=5)
    cache = apply(model, **multi_view(5))
    with cache.views(**poses(0)):
        model(**call)
        model.middle_block[1].ip_weight = 0.5
        with cache.bypass():
            expected = model(**call)
        assert torch.equal(model(**call), expected) and cache.last.kind == "miss"
    cache.remove()


def test_noise_mode_with_tensors_per_item() -> None:
    """ip_img has a row per item and group: rows cannot be taken, so the model runs for all."""
    model, call = build("imagedream"), build_call("imagedream", rows=20, frames=5)
    full = model(**call)
    cache = apply(model, mode="noise", **multi_view(5))
    for azimuths, kinds in (((0, 90), ("miss", "miss")), ((0, 180), ("hit", "miss"))):
        with cache.views(**poses(*azimuths)):
            assert torch.equal(model(**call), full) and cache.last.kinds == kinds
    cache.remove()


def test_pose_of_a_camera() -> None:
    elevation = torch.tensor([0.0, 15.0, -30.0, 89.0, 45.0])
    azimuth = torch.tensor([0.0, 90.0, 200.0, 359.0, 123.4])
    radius = torch.tensor([1.0, 2.0, 1.5, 3.0, 0.5])
    matrices = camera_to_world(elevation, azimuth, radius)
    square = torch.cat([matrices, torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(5, 1, 4)], dim=1)
    for given in (matrices, square, square.flatten(1), square.tolist(), square.numpy()):
        for found, expected in zip(pose_from_camera(given), (elevation, azimuth, radius), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_pose_with_y_up() -> None:
    """OpenGL's world: azimuth 0 looks from +z, 90 from +x; elevation is towards +y."""
    matrix = torch.eye(4).repeat(3, 1, 1)
    matrix[:, :3, 3] = torch.tensor([[0.0, 0.0, 2.0], [2.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    elevation, azimuth, radius = pose_from_camera(matrix, up="y")
    torch.testing.assert_close(elevation, torch.tensor([0.0, 0.0, 45.0]))
    torch.testing.assert_close(azimuth, torch.tensor([0.0, 90.0, 0.0]))
    torch.testing.assert_close(radius, torch.tensor([2.0, 2.0, 2.0**0.5]))
    with pytest.raises(ValueError, match="matrix"):
        pose_from_camera(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="up"):
        pose_from_camera(matrix, up="x")
    for wrong in ("a camera", None, [[1.0, 2.0], [3.0]]):
        with pytest.raises(TypeError, match=r"matrix: expected .*camera-to-world"):
            pose_from_camera(wrong)
