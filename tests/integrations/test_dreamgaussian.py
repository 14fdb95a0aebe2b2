"""examples/dreamgaussian under DreamGaussian's guidance classes: always under stand-ins with their call signatures, and
under upstream's own source with ``HASH3D_DREAMGAUSSIAN=CHECKOUT``, on narrow random-weight models either way.

Of upstream, torchvision, MVDream's and ImageDream's packages and the renderers are replaced where they are not
installed; the models are the stand-ins' in both cases.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import guidance_stand_ins as stand_ins
import pytest
import torch
from dreamgaussian_cases import FRAMES, KINDS, WITHOUT, stand_in, upstream
from foreign_code import ROOT, SOURCES, checkout, importing

from hash3d_cuda.unet import pose_from_camera


@pytest.fixture
def add_on(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "dreamgaussian"))
    yield __import__("hash3d_dreamgaussian")
    sys.modules.pop("hash3d_dreamgaussian", None)


@pytest.fixture(params=SOURCES)
def source(request) -> Iterator[Any]:
    """Makes the guidance of one kind."""
    if request.param == "stand-in":
        yield stand_in
        return
    with importing(checkout("HASH3D_DREAMGAUSSIAN"), without=WITHOUT):
        yield upstream


def start(add_on: Any, guidance: Any, kind: str, stage: str = "attach", **options: Any) -> SimpleNamespace:
    """A ``GUI`` as ``prepare_train`` leaves it, with the cache attached."""
    opt = SimpleNamespace(
        mvdream=kind == "mvdream", imagedream=kind == "imagedream", elevation=-10, radius=2, batch_size=4
    )
    place = "zero123" if kind == "zero123" else "sd"
    gui = SimpleNamespace(opt=opt, guidance_sd=None, guidance_zero123=None, enable_sd=False, enable_zero123=False)
    setattr(gui, f"guidance_{place}", guidance)
    setattr(gui, f"enable_{place}", True)
    options = {"eta": 1.0, "capacity": 16, **options} if stage == "attach" else options
    getattr(add_on, stage)(gui, **options)
    gui.cache = gui.hash3d.caches[place].cache
    return gui


def step(gui: Any, kind: str, hors: list[int], ratio: float | None = 0.5, tell: bool = False) -> torch.Tensor:
    """What main.py does with the guidance in a step; it does not ``tell`` Stable Diffusion the directions."""
    vers, radii, frames = [5] * len(hors), [0] * len(hors), FRAMES.get(kind, 1)
    if gui.hash3d is not None:
        gui.hash3d.look(vers, hors, radii)
    guidance = gui.guidance_zero123 if kind == "zero123" else gui.guidance_sd
    images = stand_ins.pictures(len(hors) * frames)
    torch.manual_seed(1)
    more = {"step_ratio": ratio, "as_latent": True, **({"hors": hors} if tell else {})}
    if kind == "zero123":
        return guidance.train_step(images, vers, hors, radii, **more)
    if frames == 1:
        return guidance.train_step(images, **more)
    turned = [orbit(-5, hor + 90 * frame, 2) for hor in hors for frame in range(frames)]
    return guidance.train_step(images, torch.stack(turned), **more)


def orbit(elevation: float, azimuth: float, radius: float) -> torch.Tensor:
    """A camera of DreamGaussian's world as far as its place goes."""
    e, a = math.radians(elevation), math.radians(azimuth)
    matrix = torch.eye(4)
    place = [math.cos(e) * math.sin(a), -math.sin(e), math.cos(e) * math.cos(a)]
    matrix[:3, 3] = radius * torch.tensor(place)
    return matrix


def plain(gui: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    with gui.cache.bypass():
        return step(gui, *args, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch(add_on, source, kind):
    """Of 1 to 4 items the last stays and the others move: every row goes to its own item, the hit as in a full pass."""
    gui = start(add_on, source(kind), kind)
    for items in (1, 2, 3, 4):
        gui.cache.clear()
        for turn, last in ((0, "miss"), (90, "hit")):
            hors = [*(item * 20 + turn for item in range(1, items)), 0]
            found = step(gui, kind, hors)
            assert gui.cache.last.kinds == ("miss",) * (items - 1) + (last,)
            torch.testing.assert_close(found, plain(gui, kind, hors), rtol=1e-5, atol=1e-4)
    assert gui.cache.stats().host_syncs == 0


@pytest.mark.parametrize("kind", KINDS)
def test_another_prompt_or_picture_never_mixes(add_on, source, kind):
    guidance = source(kind)
    gui = start(add_on, guidance, kind)
    first = step(gui, kind, [30])
    guidance.embed(7)
    expected = plain(gui, kind, [30])
    assert not torch.allclose(expected, first, rtol=1e-4)
    torch.testing.assert_close(step(gui, kind, [30]), expected)
    assert gui.cache.last.kinds == ("miss",)


@pytest.mark.parametrize("kind", KINDS)
def test_removal_restores(add_on, source, kind):
    guidance = source(kind)
    before, unet = dict(vars(guidance)), add_on.unet_of(guidance)
    state = dict(vars(unet))
    gui = start(add_on, guidance, kind)
    step(gui, kind, [30])
    gui.hash3d.remove()
    after = dict(vars(unet))
    assert vars(guidance) == before and after.keys() == state.keys()
    assert not unet._forward_hooks and not unet._forward_pre_hooks
    gui.hash3d = None
    first = step(gui, kind, [30])
    gui = start(add_on, guidance, kind)  # a second run
    assert torch.equal(step(gui, kind, [30]), first)
    add_on.attach(gui)  # a second start of the same GUI
    assert gui.hash3d.caches and gui.cache.table is None


@pytest.mark.parametrize("kind", KINDS)
def test_random_timesteps_are_drawn_on_the_host(add_on, source, kind, monkeypatch):
    """Of one item: those that upstream then takes, over its whole range. The pin does not stay."""
    guidance = source(kind)
    gui = start(add_on, guidance, kind)
    taken, told, views = [], [], gui.cache.views
    monkeypatch.setattr(gui.cache, "views", lambda **given: [told.append(given["timestep"]), views(**given)][1])
    handle = add_on.unet_of(guidance).register_forward_pre_hook(lambda module, args: taken.append(int(args[1].max())))
    guidance.min_step, guidance.max_step = 100, 900
    for _ in range(6):
        step(gui, kind, [0], ratio=None)
    handle.remove()
    assert taken == told and len(set(taken)) > 3 and all(100 <= t <= 900 for t in taken)
    assert (guidance.min_step, guidance.max_step) == (100, 900)


def test_timesteps_of_several_items(add_on, source):
    """Each has its own: taken from the U-Net's argument. Frames of several items get mixed ones upstream: no cache."""
    gui = start(add_on, source("sd"), "sd")
    step(gui, "sd", [0, 90], ratio=None)
    assert gui.cache.last.kinds == ("miss", "miss")
    gui = start(add_on, source("mvdream"), "mvdream")
    step(gui, "mvdream", [0, 90], ratio=None)
    assert gui.cache.stats().forwards == 0


def test_directions_are_conditions(add_on, source):
    """``hors`` chooses prompts by direction, where somebody passes it."""
    guidance = source("sd")
    guidance.embeddings.update(
        {name: stand_ins.tokens(number) for number, name in enumerate(("front", "side", "back"), 20)}
    )
    gui = start(add_on, guidance, "sd", max_conditions=3)
    for hors, kinds in (([59, 61], ("miss", "miss")), ([59, 61], ("hit", "hit")), ([58, 62], ("hit", "hit"))):
        step(gui, "sd", hors, tell=True)
        assert gui.cache.last.kinds == kinds
    assert len(gui.cache.tables) == 2


def test_a_step_without_a_look_runs_plain(add_on, source):
    gui = start(add_on, source("sd"), "sd")
    step(gui, "sd", [0])
    with pytest.warns(UserWarning, match=r"look\(vers, hors, radii\)"):
        gui.guidance_sd.train_step(stand_ins.pictures(1), step_ratio=0.5, as_latent=True)
    assert gui.cache.last.plain == "outside views"


def test_poses_are_those_of_the_cameras(add_on):
    """The elevation's sign, the offsets, and the world's axes, by way of the camera's place."""
    opt = SimpleNamespace(elevation=-10, radius=2)
    told = add_on.pose_of(opt, [5, 25], [-30, 170], [0, 1])
    matrices = torch.stack([orbit(-5, -30, 2), orbit(15, 170, 3)])
    for name, found in zip(("elevation", "azimuth", "radius"), pose_from_camera(matrices, up="y"), strict=True):
        expected = torch.tensor(told[name])
        torch.testing.assert_close(found, expected % 360 if name == "azimuth" else expected, rtol=1e-4, atol=1e-3)
    assert told["elevation"] == [5.0, -15.0]


def test_refinement_reuses_within_a_picture(add_on):
    """Ten denoising steps of two pictures: two in full, never from the picture before. (Stand-in; upstream's own second
    stage runs in test_added_lines.py.)"""
    gui = start(add_on, stand_in("sd"), "sd", "attach_refine")
    for number in (1, 2):
        gui.guidance_sd.refine(stand_ins.pictures(2, seed=number), strength=0.8)
        served = gui.cache.served()
        assert (served["misses"], served["hits"], served["bypasses"]) == (4 * number, 16 * number, 0)


def test_refinement_with_every_step_in_full(add_on):
    """Two pictures of a batch stay apart."""
    gui = start(add_on, stand_in("sd"), "sd", "attach_refine", interval=1)
    found = []
    for inside in (contextlib.nullcontext(), gui.cache.bypass()):
        torch.manual_seed(2)
        with inside:
            found.append(gui.guidance_sd.refine(stand_ins.pictures(2), strength=0.8))
    assert torch.equal(*found) and gui.cache.served() == {"hits": 0, "misses": 20, "bypasses": 0}
