"""examples/gaussiandreamer in GaussianDreamer's threestudio: always in a stand-in with its registry and call
signatures, and in upstream's own source with ``HASH3D_GAUSSIANDREAMER=CHECKOUT``, on a narrow random-weight U-Net.

Of upstream, everything that is not installed is replaced: renderers, shap-e, Lightning, loggers, and OmegaConf, for
which options are then plain dataclasses. Its package as a whole is imported, as by launch.py.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import guidance_stand_ins as stand_ins
import pytest
import torch
from foreign_code import ROOT, SOURCES, checkout, importing, is_replaced
from gaussiandreamer_stand_in import stand_in_modules
from torch import Tensor

NAME = "stable-diffusion-guidance:hash3d"
WITHOUT = (
    "bitsandbytes", "clip", "controlnet_aux", "cubvh", "cv2", "diff_gaussian_rasterization", "einops", "envlight",
    "gaussiansplatting", "igl", "imageio", "jaxtyping", "kornia", "lightning", "lpips", "matplotlib", "mcubes",
    "nerfacc", "networkx", "nvdiffrast", "omegaconf", "open3d", "plyfile", "pysdf", "pytorch_lightning", "scipy",
    "shap_e", "simple_knn", "skimage", "taming", "tinycudann", "torch_cluster", "torch_scatter", "torchmetrics",
    "torchvision", "tqdm", "trimesh", "typeguard", "wandb", "xatlas",
)  # fmt: skip


@pytest.fixture(params=SOURCES)
def world(request, monkeypatch) -> Iterator[Any]:
    """GaussianDreamer's ``threestudio`` with the add-on imported."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "gaussiandreamer"))
    if request.param == "stand-in":
        for name, module in stand_in_modules().items():
            monkeypatch.setitem(sys.modules, name, module)
        yield imported()
        sys.modules.pop("hash3d_gaussiandreamer", None)
        return
    folder = checkout("HASH3D_GAUSSIANDREAMER")
    with importing(folder, without=WITHOUT):
        found = imported()
        base = sys.modules["threestudio.utils.base"]
        monkeypatch.setattr(base, "get_device", lambda: torch.device("cpu"))
        if is_replaced("omegaconf"):
            monkeypatch.setattr(base, "parse_structured", lambda fields, cfg: fields(**cfg))
        yield found
        sys.modules.pop("hash3d_gaussiandreamer", None)


def imported() -> SimpleNamespace:
    threestudio = importlib.import_module("threestudio")
    names = {"add_on": "hash3d_gaussiandreamer", "data": "threestudio.data.uncond"}
    names["guidance"] = "threestudio.models.guidance.stable_diffusion_guidance"
    names["prompts"] = "threestudio.models.prompt_processors.base"
    return SimpleNamespace(
        threestudio=threestudio, **{key: importlib.import_module(name) for key, name in names.items()}
    )


def make(world: Any, monkeypatch: Any, **hash3d: Any) -> Any:
    """The registered guidance; of upstream with narrow models in the place of those that it loads."""
    kind = world.guidance
    if hasattr(kind, "StableDiffusionPipeline"):
        pipe = SimpleNamespace(unet=stand_ins.tiny_unet(), vae=torch.nn.Identity(), text_encoder=None)
        pipe.to = lambda device: pipe
        loaded = SimpleNamespace(from_pretrained=lambda *args, **kwargs: pipe)
        monkeypatch.setattr(kind, "StableDiffusionPipeline", loaded)
        monkeypatch.setattr(
            kind, "DDIMScheduler", SimpleNamespace(from_pretrained=lambda *args, **kwargs: stand_ins.scheduler())
        )
        monkeypatch.setattr(kind, "DDPMScheduler", kind.DDIMScheduler)
    more = hash3d.pop("cfg", {})
    options = {"eta": 1.0, "capacity": 60, **hash3d}
    return world.threestudio.find(NAME)({"half_precision_weights": False, "hash3d": options, **more})


def prompts(world: Any, number: int = 0, perp_neg: bool = False) -> Any:
    """What the prompt processor hands out: side, front, back, overhead."""
    directions = {
        "side": lambda ele, azi, dis: torch.ones_like(ele, dtype=torch.bool),
        "front": lambda ele, azi, dis: ((azi + 180) % 360 - 180).abs() < 45,
        "back": lambda ele, azi, dis: ((azi + 180) % 360 - 180).abs() > 135,
        "overhead": lambda ele, azi, dis: ele > 60,
    }
    wordings = torch.cat([stand_ins.tokens(100 * number + place) for place in range(4)])
    return world.prompts.PromptProcessorOutput(
        text_embeddings=wordings[:1], uncond_text_embeddings=stand_ins.tokens(-1), text_embeddings_vd=wordings,
        uncond_text_embeddings_vd=stand_ins.tokens(-1, 4),
        directions=[SimpleNamespace(name=name, condition=condition) for name, condition in directions.items()],
        direction2idx={name: place for place, name in enumerate(directions)}, use_perp_neg=perp_neg,
        perp_neg_f_sb=(1, 0.5, -0.606), perp_neg_f_fsb=(1, 0.5, 0.967), perp_neg_f_fs=(4, 0.5, -2.426),
        perp_neg_f_sf=(4, 0.5, -2.426),
    )  # fmt: skip


def step(guidance: Any, words: Any, azimuths: list[float], noted: bool = True, **more: Any) -> Tensor:
    """What ``training_step`` does with a batch of the data module; timesteps are pinned."""
    guidance.min_step = guidance.max_step = 500
    batch = {"elevation": [20.0] * len(azimuths), "azimuth": azimuths, "camera_distances": [2.0] * len(azimuths)}
    given: dict[str, Any] = {name: torch.tensor(values) for name, values in batch.items()}
    if noted:
        given["hash3d_poses"] = {name.replace("camera_distances", "radius"): values for name, values in batch.items()}
    images = stand_ins.pictures(len(azimuths), size=64).permute(0, 2, 3, 1)
    torch.manual_seed(1)
    return guidance(images, words, **given, rgb_as_latents=True, **more)["loss_sds"].detach()


def plain(guidance: Any, *args: Any, **kwargs: Any) -> Tensor:
    with guidance.hash3d.cache.bypass():
        return step(guidance, *args, **kwargs)


@pytest.mark.parametrize("kind", ["sds", "sjc", "perp-neg"])
def test_rows_of_a_batch(world, monkeypatch, kind):
    """Of 1 to 4 views the last stays and the others move. Perp-neg with its rows set right."""
    guidance = make(world, monkeypatch, repair_perp_neg=True, cfg={"use_sjc": kind == "sjc"})
    words = prompts(world, perp_neg=kind == "perp-neg")
    for items in (1, 2, 3, 4):
        for turn, last in ((0, "miss"), (50, "hit")):
            azimuths = [*(item * 10.0 + turn for item in range(1, items)), 0.0]
            found = step(guidance, words, azimuths)
            assert guidance.hash3d.cache.last.kinds == ("miss",) * (items - 1) + (last,)
            torch.testing.assert_close(found, plain(guidance, words, azimuths), rtol=1e-5, atol=1e-5)
        guidance.hash3d.cache.clear()
    assert guidance.hash3d.stats().host_syncs == 0


def test_perp_neg_of_several_views_runs_as_upstream(world, monkeypatch):
    """Unless its rows are to be set right: then every negative prompt meets its own view."""
    guidance, words = make(world, monkeypatch), prompts(world, perp_neg=True)
    with pytest.warns(UserWarning, match="repair_perp_neg"):
        as_upstream = step(guidance, words, [0.0, 120.0])
    assert guidance.hash3d.stats().forwards == 0
    step(guidance, words, [0.0])
    assert guidance.hash3d.cache.last.kinds == ("miss",)
    repaired = make(world, monkeypatch, repair_perp_neg=True)
    assert not torch.allclose(step(repaired, words, [0.0, 120.0]), as_upstream)
    rows = torch.arange(3.0).repeat(4)
    assert world.add_on.interleave_negatives(rows).tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 2, 2]


def test_prompts_and_directions_never_mix(world, monkeypatch):
    """A new prompt, and the other side of 45 degrees, in the middle of a cell of 30."""
    guidance, words = make(world, monkeypatch, grids=[[30, 30, 1, 100]]), prompts(world)
    for azimuth, kinds in ((44.0, ("miss",)), (44.5, ("hit",)), (46.0, ("miss",)), (47.0, ("hit",))):
        step(guidance, words, [azimuth])
        assert guidance.hash3d.cache.last.kinds == kinds
    other = prompts(world, number=1)
    found = step(guidance, other, [44.0])
    assert guidance.hash3d.cache.last.kinds == ("miss",) and torch.equal(found, plain(guidance, other, [44.0]))


def test_evaluation_runs_without_the_cache(world, monkeypatch):
    guidance, words = make(world, monkeypatch), prompts(world)
    evaluated: list[int] = []
    if not hasattr(guidance, "guidance_eval"):
        step(guidance, words, [0.0, 90.0], guidance_eval=True)
    else:  # upstream's evaluation decodes and denoises; its part with the U-Net is this

        def evaluate(t_orig, text_embeddings, latents_noisy, **rest):
            rows = text_embeddings[[0, len(t_orig)]]
            evaluated.append(len(guidance.get_noise_pred(latents_noisy[:1], t_orig[:1], rows)))
            return {"noise_levels": []}

        guidance.guidance_eval = evaluate
        step(guidance, words, [0.0, 90.0], guidance_eval=True)
        assert evaluated == [1]
    assert guidance.hash3d.stats().forwards == 1


def test_timesteps_are_drawn_on_the_host(world, monkeypatch):
    """Those that the U-Net gets are those of the keys, over the whole range; other random numbers stay as they were."""
    guidance, words = make(world, monkeypatch), prompts(world)
    step(guidance, words, [0.0])
    taken, told, views = [], [], guidance.hash3d.cache.views
    monkeypatch.setattr(
        guidance.hash3d.cache, "views", lambda **given: [told.extend(given["timestep"]), views(**given)][1]
    )
    guidance.unet.register_forward_pre_hook(lambda module, args: taken.extend(args[1][: len(args[1]) // 2].tolist()))
    pose = {name: torch.full((2,), 10.0) for name in ("elevation", "azimuth", "camera_distances")}
    for _ in range(4):
        guidance.min_step, guidance.max_step = 100, 800
        guidance(torch.rand(2, 8, 8, 4), words, **pose, rgb_as_latents=True)
    assert taken == told and len(set(taken)) > 5 and all(100 <= t <= 800 for t in taken)


def test_the_data_module_notes_the_poses(world):
    """On the host, as they were drawn, next to the tensors that are then moved."""
    cameras = object.__new__(world.data.RandomCameraIterableDataset)
    vars(cameras).update(
        batch_size=3, elevation_range=(-10, 80), azimuth_range=(-180, 180), camera_distance_range=(1.5, 4.0)
    )
    vars(cameras).update(fovy_range=(40, 70), height=8, width=8, load_type=0)
    vars(cameras)["cfg"] = SimpleNamespace(
        batch_uniform_azimuth=True, camera_perturb=0.0, center_perturb=0.0, up_perturb=0.0, light_position_perturb=1.0,
        light_distance_range=(0.8, 1.5), light_sample_strategy="dreamfusion3dgs",
    )  # fmt: skip
    cameras.directions_unit_focal = torch.zeros(8, 8, 3)
    random.seed(0)
    made = cameras.collate(None)
    noted = made["hash3d_poses"]
    assert set(noted) == {"elevation", "azimuth", "radius"} and all(type(value) is float for value in noted["azimuth"])
    for ours, theirs in (("elevation", "elevation"), ("azimuth", "azimuth"), ("radius", "camera_distances")):
        assert noted[ours] == made[theirs].tolist() and len(noted[ours]) == 3


def test_without_noted_poses_the_tensors_count(world, monkeypatch):
    guidance, words = make(world, monkeypatch), prompts(world)
    step(guidance, words, [0.0, 90.0])
    step(guidance, words, [0.0, 90.0], noted=False)
    assert guidance.hash3d.cache.last.kinds == ("hit", "hit")


def test_options_and_removal(world, monkeypatch):
    with pytest.raises(TypeError, match="no_such: expected an option"):
        make(world, monkeypatch, no_such=1)
    with pytest.raises(ValueError, match="decide"):
        make(world, monkeypatch, decide="device")
    guidance, words = make(world, monkeypatch), prompts(world)
    before, first = dict(vars(guidance.unet)), step(guidance, words, [0.0])
    assert guidance.hash3d.cache.config.max_conditions == 4
    guidance.hash3d.remove()
    assert vars(guidance.unet).keys() == before.keys() and torch.equal(step(guidance, words, [0.0]), first)
    guidance.update_step(0, 100)
