"""Upstream's own scripts from start to end, by the commands of the examples' pages: what a user does, on a CPU, with
small random weights, few steps and small pictures.

Each needs its system's checkout (``HASH3D_THREESTUDIO`` and so on), and of what the systems ask for

    pip install omegaconf pytorch-lightning jaxtyping typeguard einops opencv-python-headless imageio imageio-ffmpeg \\
        tensorboard tensorboardX torch-ema psutil rich pandas plyfile accelerate trimesh torchmetrics matplotlib

What stands for CUDA packages is in ``no_gpu``. A run takes 5 to 30 seconds of one core, and imports.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from added_lines import ADDED, insert, with_lines
from foreign_code import ROOT, checkout
from small_weights import STABLE_DIFFUSION
from whole_runs import copy_checkout, page_commands, prepare, run

NEEDED = ("omegaconf", "pytorch_lightning", "jaxtyping", "typeguard", "einops", "cv2", "imageio", "trimesh")
STUDIO = (
    "nerfacc", "igl", "xatlas", "envlight", "controlnet_aux", "torchvision", "taming", "mcubes", "pysdf", "wandb",
    "lpips", "IPython", "ipywidgets", "nvdiffrast", "bitsandbytes", "gradio", "kornia",
)  # fmt: skip
SMALL_VIEWS = (
    "trainer.precision=32", "data.width=16", "data.height=16", "data.eval_width=16", "data.eval_height=16",
    "data.n_val_views=1", "data.n_test_views=2",
)  # fmt: skip


@pytest.fixture
def copy(request, tmp_path) -> Path:
    """A copy of the checkout of a system, with the example's files in it."""
    for name in NEEDED:
        pytest.importorskip(name, reason="these systems need it")
    system = request.param
    folder = copy_checkout(checkout(f"HASH3D_{system.upper()}"), tmp_path / system)
    for path in (ROOT / "examples" / system).glob("*.py"):
        shutil.copy(path, folder)
    for name in ADDED.get(system, ()):
        (folder / name).write_text(with_lines(folder, system, name), encoding="utf-8")
    return folder


def forwards(text: str) -> list[int]:
    """Of the printed counts."""
    return [int(number) for number in re.findall(r"(\d+) forwards: ", text)]


@pytest.fixture
def with_sd(copy) -> Path:
    """The copy with Stable Diffusion where ``from_pretrained`` looks for it."""
    prepare(copy, f"write_stable_diffusion({STABLE_DIFFUSION!r})")
    return copy


def add_to_custom(copy: Path) -> None:
    (place,) = page_commands("threestudio", "cp -r")
    subprocess.run(place.replace("PATH/TO/threestudio", str(copy)).split(), cwd=ROOT, check=True)


@pytest.mark.parametrize("copy", ["threestudio"], indirect=True)
def test_threestudio_trains_saves_and_resumes(with_sd):
    """``cp`` and ``launch.py`` as on the page, in float16; then some steps more from the checkpoint."""
    add_to_custom(with_sd)
    (launch,) = page_commands("threestudio", "python launch.py")
    short = (*SMALL_VIEWS, "use_timestamp=false", "trainer.max_steps=6", "checkpoint.every_n_train_steps=6")
    short = (*short, "system.guidance.hash3d.log_every=2", "system.guidance.hash3d.memory_budget=64MiB")
    said = run(with_sd, launch, *short, without=STUDIO)
    assert "IMPORT FAILED" not in said
    assert len(re.findall(r"hash3d after \d steps: served", said)) == 3
    saved = with_sd / "outputs" / "dreamfusion-sd" / "a_teddy_bear" / "ckpts" / "last.ckpt"
    metrics = next(saved.parents[1].rglob("metrics.csv")).read_text(encoding="utf-8")
    assert "train/hash3d_served" in metrics and "train/hash3d_host_syncs" in metrics
    said = run(with_sd, launch, *short, "trainer.max_steps=8", f"resume={saved}", without=STUDIO)
    assert "hash3d after 2 steps" in said and "starts with an empty table" not in said


TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nvn 0 0 1\nf 1/1/1 2/2/1 3/3/1\n"
DREAM = ("rembg", "dearpygui", "torchvision", "mvdream", "imagedream", "kiui", "pymeshlab", "mcubes", "xatlas")


@pytest.mark.parametrize("copy", ["dreamgaussian"], indirect=True)
def test_dreamgaussian_both_stages(copy):
    """``main.py`` and ``main2.py`` by the page's commands, in float16, with ``print(gui.hash3d)`` at the end.

    No mesh is made from the Gaussians: the second stage begins with a triangle."""
    prepare(copy, "write_dreamgaussian_zero123()", without=DREAM)
    shutil.copy(copy / "data" / "anya_rgba.png", copy / "data" / "name_rgba.png")
    for name in ("main.py", "main2.py"):
        with (copy / name).open("a", encoding="utf-8") as file:
            file.write("\n    print(gui.hash3d)\n")
    text = (copy / "main.py").read_text(encoding="utf-8")
    (copy / "main.py").write_text(text.replace("self.save_model(mode='geo+tex')", "pass"), encoding="utf-8")
    (copy / "logs").mkdir(exist_ok=True)
    (copy / "logs" / "name_mesh.obj").write_text(TRIANGLE, encoding="utf-8")
    first, second = page_commands("dreamgaussian", "python main")
    few = ("iters=5", "iters_refine=2", "num_pts=300", "H=64", "W=64")
    assert forwards(run(copy, first, *few, without=DREAM, HASH3D_RASTER="4")) == [5]
    said = run(copy, second, *few, without=DREAM, HASH3D_RASTER="4")
    # Of 50 denoising steps the first picture takes the last 7, the second the last 3.
    assert "10 forwards: 7 hits, 3 misses, 0 bypasses" in said and "0 host syncs" in said


FUSION = ("torchvision", "nvdiffrast", "mcubes", "pymeshlab", "taming", "dearpygui")
# -O renders on CUDA; the network of -O2 is plain torch
PURE = (
    "--backbone vanilla --progressive_level --w 16 --h 16 --W 16 --H 16 --num_steps 8 --upsample_steps 4 --iters 6",
    "--dataset_size_train 3 --dataset_size_valid 1 --dataset_size_test 2 --latent_iter_ratio 0.5",
)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("copy", ["stable_dreamfusion"], indirect=True)
def test_stable_dreamfusion(with_sd, number):
    """By the page's first two commands: a prompt, and with perp-neg. Half of the steps take normals for latents."""
    trains = "            trainer.train(train_loader, valid_loader, test_loader, max_epoch)"
    text = (with_sd / "main.py").read_text(encoding="utf-8")
    text = insert(text, {trains: ["            print(trainer.hash3d)"]}, "main.py")
    (with_sd / "main.py").write_text(text, encoding="utf-8")
    command = page_commands("stable_dreamfusion", "python main.py")[number].replace(" -O", "")
    said = run(with_sd, " ".join((command, *PURE)), without=FUSION)
    assert forwards(said) == [6]
