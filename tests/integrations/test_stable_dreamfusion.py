"""examples/stable_dreamfusion under its trainer and guidance: always under stand-ins with their call signatures, and
under upstream's own source with ``HASH3D_STABLE_DREAMFUSION=CHECKOUT``, on narrow random-weight models either way.

Of upstream, the trainer's own ``train_step`` runs with a scene that returns given pictures. Renderers, loggers and
image libraries are replaced where they are not installed; the models are the stand-ins' in both cases.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import guidance_stand_ins as stand_ins
import pytest
import torch
from foreign_code import ROOT, SOURCES, checkout, importing
from torch import Tensor

WITHOUT = (
    "torchvision", "cv2", "tensorboardX", "torch_ema", "imageio", "psutil", "tqdm", "trimesh", "rich", "omegaconf",
    "torchmetrics", "matplotlib", "ldm",
)  # fmt: skip
OPTIONS = {
    "text": "a cup", "negative": "", "images": None, "default_polar": 90, "default_azimuth": 0, "default_radius": 3.2,
    "batch_size": 4, "known_view_interval": 4, "exp_start_iter": 0, "exp_end_iter": 100, "progressive_view": False,
    "progressive_level": False, "latent_iter_ratio": 1.0, "albedo_iter_ratio": 0.0, "min_ambient_ratio": 0.1,
    "textureless_ratio": 0.2, "bg_radius": 0.0, "guidance_scale": 100, "lambda_guidance": 1, "dmtet": True,
    "lambda_mesh_normal": 0, "lambda_mesh_laplacian": 0, "negative_w": -2, "front_decay_factor": 2,
    "side_decay_factor": 10, "zero123_grad_scale": "None",
}  # fmt: skip
KINDS = ("sd", "perpneg", "zero123", "zero123-two")


@pytest.fixture
def add_on(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "stable_dreamfusion"))
    yield __import__("hash3d_stable_dreamfusion")
    sys.modules.pop("hash3d_stable_dreamfusion", None)


@pytest.fixture(params=SOURCES)
def source(request) -> Iterator[Any]:
    """Makes a trainer of one kind, with its guidance."""
    if request.param == "stand-in":
        yield lambda kind: stand_ins.Trainer(*parts(kind))
        return
    with importing(checkout("HASH3D_STABLE_DREAMFUSION"), without=WITHOUT):
        yield upstream


def parts(kind: str) -> tuple[SimpleNamespace, dict[str, Any], dict[str, Any]]:
    """Options, stand-in guidance and embeddings."""
    opt = SimpleNamespace(**OPTIONS, perpneg=kind == "perpneg")
    words = {
        name: stand_ins.tokens(number) for number, name in enumerate(("default", "uncond", "front", "side", "back"))
    }
    if not kind.startswith("zero123"):
        return opt, {"SD": stand_ins.FusionSD()}, {"SD": words}
    opt.images = ["cup.png", "other.png"][: 2 if kind == "zero123-two" else 1]
    known = {
        "zero123_ws": [1.0, 1.0],
        "ref_polars": [90.0, 90.0],
        "ref_azimuths": [0.0, 180.0],
        "ref_radii": [3.2, 3.2],
    }
    known = {name: values[: len(opt.images)] for name, values in known.items()}
    known["c_crossattn"] = [stand_ins.tokens(10 + place)[:, :1] for place in range(len(opt.images))]
    known["c_concat"] = [torch.full((1, 4, 8, 8), place + 1.0) for place in range(len(opt.images))]
    return opt, {"zero123": stand_ins.FusionZero123()}, {"zero123": {"default": known}}


def upstream(kind: str) -> Any:
    """The original trainer and guidance around the stand-ins' models, without loading, scene and optimiser."""
    opt, guidance, embeddings = parts(kind)
    utils = importlib.import_module("nerf.utils")
    trainer = object.__new__(utils.Trainer)
    trainer.opt, trainer.embeddings, trainer.global_step, trainer.device = opt, embeddings, 1, torch.device("cpu")
    trainer.log_ptr, trainer.guidance = None, {name: original(name, like) for name, like in guidance.items()}
    trainer.model = SimpleNamespace(render=lambda *args, **kwargs: trainer.rendered)
    for known in embeddings.get("zero123", {}).values():
        known["c_concat"] = [image[..., :1, :1].expand(-1, -1, 32, 32) for image in known["c_concat"]]
    step = trainer.train_step

    def train_step(data: dict[str, Any], save_guidance_path: Any = None) -> Any:
        batch, _, size, _ = data["images"].shape
        rows = data["images"].permute(0, 2, 3, 1)
        trainer.rendered = {"image": rows[..., :3], "weights_sum": rows[..., 3], "depth": rows[..., 0]}
        rays = torch.zeros(batch, size * size, 3)
        return step({**data, "rays_o": rays, "rays_d": rays, "mvp": torch.eye(4), "H": size, "W": size})

    trainer.train_step = train_step
    return trainer


def original(name: str, like: Any) -> Any:
    module, kind = {"SD": ("sd_utils", "StableDiffusion"), "zero123": ("zero123_utils", "Zero123")}[name]
    made = object.__new__(getattr(importlib.import_module(f"guidance.{module}"), kind))
    torch.nn.Module.__init__(made)
    vars(made).update({key: value for key, value in vars(like).items() if not key.startswith("_")})
    made.alphas, made.opt = made.scheduler.alphas_cumprod, SimpleNamespace(**OPTIONS)
    if name == "SD":
        made.unet = like.unet
    else:
        made.model = like.model
        made.model.cc_projection = lambda rows: rows[..., :6] + rows[..., 6:].mean(-1, True)
    return made


def start(add_on: Any, trainer: Any, **options: Any) -> Any:
    add_on.attach(trainer, **{"eta": 1.0, "capacity": 32, **options})
    (guided,) = trainer.hash3d.caches.values()
    return guided.cache


def step(trainer: Any, azimuths: list[float], t: int | None = 500, seed: int = 0) -> Tensor:
    (guidance,) = trainer.guidance.values()
    if t is not None:
        guidance.min_step = guidance.max_step = t
    batch = len(azimuths)
    data = {"images": stand_ins.pictures(batch, seed=seed), "azimuth": torch.tensor(azimuths, dtype=torch.float32)}
    data |= {"polar": torch.full((batch,), -20.0), "radius": torch.full((batch,), 0.1)}
    torch.manual_seed(1)
    return trainer.train_step(data)[2].detach()


def plain(trainer: Any, cache: Any, *args: Any) -> Tensor:
    with cache.bypass():
        return step(trainer, *args)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch(add_on, source, kind):
    """Of 1 to 4 views the last stays and the others move; two reference pictures are two forwards."""
    trainer = source(kind)
    cache = start(add_on, trainer)
    forwards = 2 if kind == "zero123-two" else 1
    for items in (1, 2, 3, 4):
        cache.clear()
        for turn, hits in ((0, 0), (80, 1)):
            azimuths, before = [*(item * 10.0 + turn for item in range(1, items)), 0.0], cache.served()["hits"]
            found = step(trainer, azimuths)
            assert cache.served()["hits"] - before == hits * forwards and len(cache.last.kinds) == items
            torch.testing.assert_close(found, plain(trainer, cache, azimuths), rtol=1e-5, atol=1e-4)
    assert cache.stats().host_syncs == 0


def test_another_prompt_never_mixes(add_on, source):
    trainer = source("sd")
    cache = start(add_on, trainer)
    first = step(trainer, [30.0])
    trainer.opt.text = "a car"
    trainer.embeddings["SD"]["front"] = stand_ins.tokens(77)
    trainer.embeddings["SD"]["side"] = stand_ins.tokens(78)
    expected = plain(trainer, cache, [30.0])
    assert not torch.allclose(first, expected, rtol=1e-4)
    torch.testing.assert_close(step(trainer, [30.0]), expected)
    assert cache.last.kinds == ("miss",)


def test_reference_pictures_never_mix(add_on, source):
    """Two of them lie side by side; a new one in the place of the second is seen, and the first one's entry stays."""
    trainer = source("zero123-two")
    cache = start(add_on, trainer)
    step(trainer, [30.0])
    assert len(cache.tables) == 2 and len({id(table) for table in cache.tables}) == 2
    known = trainer.embeddings["zero123"]["default"]
    known["c_concat"][1] = known["c_concat"][1] + 3
    expected, before = plain(trainer, cache, [30.0]), cache.served()
    torch.testing.assert_close(step(trainer, [30.0]), expected, rtol=1e-5, atol=1e-4)
    assert cache.served()["hits"] - before["hits"] == 1 and cache.served()["misses"] - before["misses"] == 1


def test_negatives_of_front_and_back_never_mix(add_on, source):
    """At 90 degrees the two negatives of perp-neg change places, in the middle of a cell of 20 degrees."""
    trainer = source("perpneg")
    cache = start(add_on, trainer, grids=[[20, 20, 1, 100]])
    for azimuth, kinds in ((88.0, ("miss",)), (89.0, ("hit",)), (91.0, ("miss",)), (92.0, ("hit",))):
        step(trainer, [azimuth])
        assert cache.last.kinds == kinds
    with pytest.raises(ValueError, match=r"decide: expected .*perp-neg"):
        add_on.attach(source("perpneg"), decide="device")


def test_latent_warm_up_has_entries_of_its_own(add_on):
    """At first upstream takes normals for latents; later pictures must not meet those entries. (Stand-in only.)"""
    trainer = stand_ins.Trainer(*parts("sd"))
    cache, guidance, opt = start(add_on, trainer), trainer.guidance["SD"], trainer.opt
    data = {
        "polar": torch.zeros(1),
        "azimuth": torch.zeros(1),
        "radius": torch.zeros(1),
        "images": stand_ins.pictures(1),
    }
    text = torch.cat([stand_ins.tokens(1), stand_ins.tokens(2)])
    guidance.min_step = guidance.max_step = 500
    kinds = []
    for as_latent in (True, True, False, False):
        trainer.hash3d._data = data
        guidance.train_step(text, data["images"], as_latent=as_latent)
        kinds += cache.last.kinds
    assert kinds == ["miss", "hit"] * 2 and opt.perpneg is False


@pytest.mark.parametrize("kind", KINDS)
def test_removal_restores(add_on, source, kind):
    trainer = source(kind)
    (guidance,) = trainer.guidance.values()
    before, own = dict(vars(guidance)), dict(vars(trainer))
    first = step(trainer, [30.0])
    start(add_on, trainer)
    step(trainer, [30.0])
    trainer.hash3d.remove()
    assert vars(guidance).keys() == before.keys() and vars(trainer)["train_step" if "train_step" in own else "opt"]
    assert ("train_step" in vars(trainer)) == ("train_step" in own)
    assert torch.equal(step(trainer, [30.0]), first)
    assert torch.equal(step(trainer, [30.0]), first) and start(add_on, trainer).last.plain == "no forward yet"


def test_timesteps(add_on, source, monkeypatch):
    """Of one view drawn on the host over upstream's range; of several copied, each its own."""
    trainer = source("sd")
    cache, told = start(add_on, trainer), []
    views = cache.views
    monkeypatch.setattr(cache, "views", lambda **given: [told.append(given.get("timestep")), views(**given)][1])
    guidance = trainer.guidance["SD"]
    guidance.min_step, guidance.max_step = 200, 600
    for _ in range(5):
        step(trainer, [0.0], t=None)
    assert len(set(told)) > 2 and all(200 <= t <= 600 for t in told)
    step(trainer, [0.0, 90.0], t=None)
    assert told[-1] is None and cache.last.kinds == ("miss", "miss")


def test_poses_are_those_of_the_cameras(add_on):
    opt = SimpleNamespace(**OPTIONS)
    told = add_on.pose_of(opt, torch.tensor([-20.0, 30.0]), torch.tensor([10.0, -170.0]), torch.tensor([0.0, 0.5]))
    assert told["elevation"].tolist() == [20.0, -30.0] and told["azimuth"].tolist() == [10.0, -170.0]
    torch.testing.assert_close(told["radius"], torch.tensor([3.2, 3.7]))


def test_guidance_without_a_unet_is_refused(add_on):
    trainer = SimpleNamespace(opt=SimpleNamespace(**OPTIONS, perpneg=False), guidance={"clip": None})
    with pytest.raises(ValueError, match="expected guidance SD or zero123"):
        add_on.attach(trainer)
