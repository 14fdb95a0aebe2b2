"""threestudio's ``launch.py`` from start to end with the add-on; :mod:`test_whole_runs` says what is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from foreign_code import ROOT
from small_weights import STABLE_DIFFUSION
from whole_runs import change, fresh_copy, page_commands, prepare, run

STUDIO = (
    "nerfacc", "igl", "xatlas", "envlight", "controlnet_aux", "torchvision", "taming", "mcubes", "pysdf", "wandb",
    "lpips", "IPython", "ipywidgets", "nvdiffrast", "bitsandbytes", "gradio", "kornia",
)  # fmt: skip
SMALL = ("height=16", "width=16", "eval_height=16", "eval_width=16", "n_val_views=1", "n_test_views=2")
SMALL_VIEWS = ("trainer.precision=32", *(f"data.{option}" for option in SMALL))
SMALL_PICTURES = (
    "trainer.precision=32", "data.height=16", "data.width=16", "data.resolution_milestones=[]",
    "data.random_camera.resolution_milestones=[]", "data.random_camera.batch_size=2",
    *(f"data.random_camera.{option}" for option in SMALL),
)  # fmt: skip
LITTLE = ("system.guidance.hash3d.log_every=2", "system.guidance.hash3d.memory_budget=64MiB", "use_timestamp=false")
PROMPT = "system.prompt_processor.prompt=a horse"
FLOAT32 = "system.guidance.half_precision_weights=false"
UNIFIED = "configs/experimental/unified-guidance"
# configuration -> guidance, and what else it is run with
CONFIGURATIONS = {
    "configs/sjc.yaml": ("stable-diffusion-guidance", *SMALL_VIEWS, PROMPT, FLOAT32),
    f"{UNIFIED}/dreamfusion-sd.yaml": ("stable-diffusion-unified-guidance", *SMALL_VIEWS, PROMPT, FLOAT32),
    "configs/zero123.yaml": ("zero123-guidance", *SMALL_PICTURES, "system.freq.guidance_eval=2"),
    "configs/stable-zero123.yaml": ("stable-zero123-guidance", *SMALL_PICTURES),
    f"{UNIFIED}/zero123-simple.yaml": (
        "zero123-unified-guidance", *SMALL_PICTURES, FLOAT32,
        "data.image_path=load/images/hamburger_rgba.png",
    ),
}  # fmt: skip


@pytest.fixture
def copy(tmp_path) -> Path:
    """With the add-on, and Stable Diffusion where ``from_pretrained`` looks for it."""
    folder = fresh_copy("threestudio", tmp_path)
    (place,) = page_commands("threestudio", "cp -r")
    subprocess.run(place.replace("PATH/TO/threestudio", str(folder)).split(), cwd=ROOT, check=True)
    prepare(folder, f"small_weights.write_stable_diffusion({STABLE_DIFFUSION!r})")
    return folder


def test_training_saves_and_resumes(copy):
    """``cp`` and ``launch.py`` as on the page, in float16; then some steps more from the checkpoint."""
    (launch,) = page_commands("threestudio", "python launch.py")
    short = (*SMALL_VIEWS, *LITTLE, "trainer.max_steps=6", "checkpoint.every_n_train_steps=6")
    said = run(copy, launch, *short, without=STUDIO)
    assert "IMPORT FAILED" not in said
    assert len(re.findall(r"hash3d after \d steps: served", said)) == 3
    saved = copy / "outputs" / "dreamfusion-sd" / "a_teddy_bear" / "ckpts" / "last.ckpt"
    metrics = next(saved.parents[1].rglob("metrics.csv")).read_text(encoding="utf-8")
    assert "train/hash3d_served" in metrics and "train/hash3d_host_syncs" in metrics
    said = run(copy, launch, *short, "trainer.max_steps=8", f"resume={saved}", without=STUDIO)
    assert "hash3d after 2 steps" in said and "starts with an empty table" not in said


def test_the_configuration_of_the_example(copy):
    """By the command in its first lines, with perp-neg."""
    path = ROOT / "examples" / "threestudio" / "configs" / "dreamfusion-hash3d.yaml"
    shutil.copy(path, copy)
    (launch,) = (line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if "launch.py" in line)
    more = ("system.prompt_processor.use_perp_neg=true", "trainer.max_steps=4")
    assert "hash3d after 4 steps" in run(copy, launch, *SMALL_VIEWS, *LITTLE, *more, without=STUDIO)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_other_configurations(copy, configuration):
    """``:hash3d`` behind the guidance of threestudio's own configurations, its models loaded as always."""
    guidance, *more = CONFIGURATIONS[configuration]
    if "zero123" in guidance:
        prepare(copy, "small_ldm.write_threestudio_zero123()", without=STUDIO)
    if guidance == "zero123-unified-guidance":  # has no such option, and refuses it with or without the add-on
        change(copy / configuration, ("    use_img_loss: false\n", ""))
    launch = f"python launch.py --train --config {configuration} system.guidance_type={guidance}:hash3d"
    said = run(copy, launch, *more, *LITTLE, "trainer.max_steps=4", without=STUDIO)
    assert "hash3d after 4 steps" in said and "the cache stays off" not in said
