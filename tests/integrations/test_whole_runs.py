"""Upstream's own scripts from start to end, by the commands of the examples' pages: what a user does, on a CPU, with
small random weights, few steps and small pictures. Those of threestudio are in :mod:`test_whole_runs_threestudio`.

Each needs its system's checkout (``HASH3D_THREESTUDIO`` and so on), and of what the systems ask for

    pip install omegaconf pytorch-lightning jaxtyping typeguard einops opencv-python-headless imageio imageio-ffmpeg \\
        tensorboard tensorboardX torch-ema psutil rich pandas plyfile accelerate trimesh torchmetrics matplotlib

What stands for CUDA packages is in ``no_gpu``. A run takes 5 to 30 seconds of one core, and imports.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from added_lines import insert
from small_weights import STABLE_DIFFUSION
from test_whole_runs_threestudio import STUDIO
from whole_runs import change, forwards, fresh_copy, page_commands, prepare, run

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nvn 0 0 1\nf 1/1/1 2/2/1 3/3/1\n"
DREAM = ("rembg", "dearpygui", "torchvision", "mvdream", "imagedream", "kiui", "pymeshlab", "mcubes", "xatlas")


def test_dreamgaussian_both_stages(tmp_path):
    """``main.py`` and ``main2.py`` by the page's commands, in float16, with ``print(gui.hash3d)`` at the end.

    No mesh is made from the Gaussians: the second stage begins with a triangle."""
    copy = fresh_copy("dreamgaussian", tmp_path)
    prepare(copy, "small_weights.write_dreamgaussian_zero123()", without=DREAM)
    shutil.copy(copy / "data" / "anya_rgba.png", copy / "data" / "name_rgba.png")
    for name in ("main.py", "main2.py"):
        with (copy / name).open("a", encoding="utf-8") as file:
            file.write("\n    print(gui.hash3d)\n")
    change(copy / "main.py", ("self.save_model(mode='geo+tex')", "pass"))
    (copy / "logs").mkdir(exist_ok=True)
    (copy / "logs" / "name_mesh.obj").write_text(TRIANGLE, encoding="utf-8")
    first, second = page_commands("dreamgaussian", "python main")
    few = ("iters=5", "iters_refine=2", "num_pts=300", "H=64", "W=64")
    assert forwards(run(copy, first, *few, without=DREAM, HASH3D_RASTER="4")) == [5]
    said = run(copy, second, *few, without=DREAM, HASH3D_RASTER="4")
    # Of 50 denoising steps the first picture takes the last 7, the second the last 3.
    assert "10 forwards: 7 hits, 3 misses, 0 bypasses" in said and "0 host syncs" in said


def test_gaussiandreamer(tmp_path):
    """By the page's command, with the evaluation of its first step, and ``print`` after the training.

    Shap-E is a stand-in, and fewer points are tried around its own."""
    copy = fresh_copy("gaussiandreamer", tmp_path)
    prepare(copy, f"small_weights.write_stable_diffusion({STABLE_DIFFUSION!r})")
    torch.save({"model_state_dict": {}}, copy / "load" / "shapE_finetuned_with_330kdata.pth")
    change(copy / "threestudio" / "systems" / "GaussianDreamer.py", ("num_points = 1000000", "num_points = 1000"))
    fit = "        trainer.fit(system, datamodule=dm, ckpt_path=cfg.resume)"
    change(copy / "launch.py", (fit, f"{fit}\n        print(system.guidance.hash3d)"))
    (launch,) = page_commands("gaussiandreamer", "python launch.py")
    few = ("trainer.max_steps=3", "trainer.precision=32", "use_timestamp=false", "data.n_test_views=2")
    few = (*few, "system.guidance.half_precision_weights=false")  # a CPU's float16 takes minutes for the evaluation
    few = (*few, *(f"data.{name}=32" for name in ("height", "width", "eval_height", "eval_width")))
    few = (*few, "system.prompt_processor.negative_prompt=ugly")  # the small tokenizer has a word for each letter
    said = run(copy, launch, *few, without=(*STUDIO, "shap_e"))
    assert forwards(said) == [3] and "0 host syncs" in said


FUSION = ("torchvision", "nvdiffrast", "mcubes", "pymeshlab", "taming", "kornia", "dearpygui")
# -O renders on CUDA; the network of -O2 is plain torch
PURE = (
    "--backbone vanilla --progressive_level --w 16 --h 16 --W 16 --H 16 --num_steps 8 --upsample_steps 4 --iters 6",
    "--dataset_size_train 3 --dataset_size_valid 1 --dataset_size_test 2 --latent_iter_ratio 0.5",
)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_stable_dreamfusion(tmp_path, number):
    """By the page's three commands: a prompt, with perp-neg, a picture. With a prompt, half of the steps take normals
    for latents."""
    copy = fresh_copy("stable_dreamfusion", tmp_path)
    trains = "            trainer.train(train_loader, valid_loader, test_loader, max_epoch)"
    text = (copy / "main.py").read_text(encoding="utf-8")
    text = insert(text, {trains: ["            print(trainer.hash3d)"]}, "main.py")
    (copy / "main.py").write_text(text, encoding="utf-8")
    command = page_commands("stable_dreamfusion", "python main.py")[number].replace(" -O", "")
    if "--image" in command:
        prepare(copy, "small_ldm.write_fusion_zero123()", without=FUSION)
    else:
        prepare(copy, f"small_weights.write_stable_diffusion({STABLE_DIFFUSION!r})")
    said = run(copy, " ".join((command, *PURE)), without=FUSION)
    assert forwards(said) == [5 if "--image" in command else 6]  # every fourth step sees the picture itself
