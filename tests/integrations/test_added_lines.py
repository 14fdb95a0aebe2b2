"""The lines that the examples' pages add to other projects: that the pages have them, and, given checkouts, that they
fit upstream's source. DreamGaussian's own steps then run with them, on a CPU and with a scene of one colour."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import dreamgaussian_cases as dreamgaussian
import numpy as np
import pytest
import torch
from added_lines import ADDED, with_lines
from foreign_code import ROOT, checkout, importing

from hash3d_cuda.unet import pose_from_camera

FILES = [(system, name) for system, files in ADDED.items() for name in files]
WITHOUT = (
    *dreamgaussian.WITHOUT, "diff_gaussian_rasterization", "mcubes", "nvdiffrast", "plyfile", "pygltflib", "pymeshlab",
    "scipy", "simple_knn", "sklearn", "tqdm", "trimesh", "xatlas",
)  # fmt: skip


@pytest.mark.parametrize("system", ADDED)
def test_the_page_has_the_lines(system):
    page = (ROOT / "examples" / system / "README.md").read_text(encoding="utf-8").splitlines()
    for anchors in ADDED[system].values():
        for anchor, added in anchors.items():
            assert any(anchor.strip() in line for line in page), anchor
            assert all(line in page for line in added), added


@pytest.mark.parametrize(("system", "name"), FILES)
def test_the_lines_fit(system, name):
    text = with_lines(checkout(f"HASH3D_{system.upper()}"), system, name)
    compile(text, name, "exec")


class Scene(torch.nn.Module):
    """Every picture is one colour, which is learnt. It is renderer and Gaussians in one."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = torch.nn.Parameter(torch.full((3, 1, 1), 0.5))
        self.optimizer = torch.optim.SGD([self.colour], lr=1e-9)
        self.max_sh_degree = self.active_sh_degree = 0

    @property
    def gaussians(self) -> Scene:
        return self

    def get_params(self) -> Any:
        return self.parameters()

    def training_setup(self, opt: Any) -> None:
        pass

    update_learning_rate = training_setup

    def render(self, camera: Any, *rest: Any, bg_color: Any = None, ssaa: float = 1.0) -> dict[str, torch.Tensor]:
        if not rest:  # the first stage: (pose, width, height, ...)
            return {"image": self.colour.expand(3, *camera[1:3]), "alpha": torch.ones(1, *camera[1:3])}
        image = self.colour.permute(1, 2, 0).expand(*rest[1:3], 3)
        return {"image": image, "alpha": torch.ones_like(image), "viewcos": torch.ones_like(image)}


@pytest.fixture
def gui(request, monkeypatch) -> Any:
    """The ``GUI`` of main.py or main2.py with the lines, after ``prepare_train``."""
    folder, name = checkout("HASH3D_DREAMGAUSSIAN"), request.param
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "dreamgaussian"))
    clock = SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 0.0)
    monkeypatch.setattr(torch.cuda, "Event", lambda **kwargs: clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with importing(folder, without=WITHOUT):
        space: dict[str, Any] = {"__name__": "read"}
        text = with_lines(folder, "dreamgaussian", name).replace('"cuda"', '"cpu"')
        exec(compile(text, name, "exec"), space)
        space["MiniCam"] = lambda *values: values
        made = object.__new__(space["GUI"])
        opt = SimpleNamespace(
            mvdream=False, imagedream=False, elevation=-10, radius=2, batch_size=1, ref_size=32, lambda_sd=0, iters=100,
            iters_refine=50, lambda_zero123=1, min_ver=-30, max_ver=30, invert_bg_prob=0.5, anneal_timestep=True,
            warmup_rgb_loss=True, density_start_iter=10**6, density_end_iter=0,
        )  # fmt: skip
        camera = SimpleNamespace(fovy=1.0, fovx=1.0, near=0.1, far=10.0, perspective=None)
        vars(made).update(opt=opt, gui=False, cam=camera, renderer=Scene(), device=torch.device("cpu"), train_steps=1)
        vars(made).update(
            prompt="", negative_prompt="", input_img=np.full((32, 32, 3), 0.5, np.float32), guidance_sd=None
        )
        made.input_mask = np.ones((32, 32, 1), np.float32)
        made.guidance_zero123 = dreamgaussian.upstream("zero123")
        made.guidance_zero123.get_img_embeds = lambda image: None
        made.guidance_zero123.encode_imgs = latents
        made.guidance_zero123.decode_latents = lambda rows: rows[:, :3]
        np.random.seed(0)
        made.prepare_train()
        yield made
        made.hash3d.remove()
    sys.modules.pop("hash3d_dreamgaussian", None)


def latents(images: torch.Tensor) -> torch.Tensor:
    small = torch.nn.functional.interpolate(images, (32, 32))
    return torch.cat([small, small[:, :1]], dim=1)


@pytest.mark.parametrize("gui", ["main.py"], indirect=True)
def test_the_first_stage_of_dreamgaussian(gui):
    """Every step is one forward under the key of the camera that upstream drew, by way of its own ``orbit_camera``."""
    guided, told, drawn = gui.hash3d.caches["zero123"], [], []
    views = guided.cache.views
    guided.cache.views = lambda **given: [told.append(given), views(**given)][1]
    look = gui.hash3d.look
    gui.hash3d.look = lambda *lists: [drawn.append(lists), look(*lists)]
    for _ in range(6):
        gui.train_step()
    orbit = importlib.import_module("cam_utils").orbit_camera
    for given, ((ver,), (hor,), _) in zip(told, drawn, strict=True):
        pose = pose_from_camera(orbit(gui.opt.elevation + ver, hor, gui.opt.radius), up="y")
        expected = [given["elevation"][0], given["azimuth"][0] % 360, given["radius"][0]]
        assert [float(value) for value in pose] == pytest.approx(expected, abs=1e-3)
    assert [given["timestep"] for given in told] == [980, 980, 970, 960, 950, 940]
    stats = guided.stats()
    assert stats.forwards == stats.hits + stats.misses + stats.bypasses == 6 and stats.host_syncs == 0


@pytest.mark.parametrize("gui", ["main2.py"], indirect=True)
def test_the_second_stage_of_dreamgaussian(gui):
    """Ten denoising steps of a picture: two in full."""
    for step in (1, 2):
        gui.train_step()
        stats = gui.hash3d.caches["zero123"].stats()
        assert (stats.misses, stats.hits, stats.bypasses, stats.host_syncs) == (2 * step, 8 * step, 0, 0)
