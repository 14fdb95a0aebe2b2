"""MVDream and ImageDream from start to end, as :mod:`test_whole_runs`, which says what is needed: under DreamGaussian,
and the models' own scripts with the lines of docs/adapters.md. Their checkouts are ``HASH3D_MVDREAM`` and
``HASH3D_IMAGEDREAM``, and ``HASH3D_MVDREAM_DIFFUSERS``, which needs ``pip install kiui==0.2.0`` (0.3.5 fails at
``import kiui.cam``)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from added_lines import adapters_lines
from foreign_code import checkout
from small_weights import STABLE_DIFFUSION
from test_whole_runs import DREAM
from whole_runs import change, copy_checkout, forwards, fresh_copy, prepare, run

PACKAGES = {"mvdream": ".", "imagedream": "extern/ImageDream"}  # and where it lies in its checkout
WITHOUT = tuple(name for name in DREAM if name not in PACKAGES)
COMMANDS = {
    "mvdream": "python main.py --config configs/text_mv.yaml prompt=hamburger save_path=it",
    "imagedream": "python main.py --config configs/imagedream.yaml input=data/anya_rgba.png prompt=girl save_path=it",
}


def package(name: str, folder: Path) -> Path:
    """The folder of a copy that ``import name`` needs on its path."""
    return copy_checkout(checkout(f"HASH3D_{name.upper()}") / PACKAGES[name], folder / name)


@pytest.mark.parametrize("name", PACKAGES)
def test_dreamgaussian(tmp_path, name):
    """Its first stage by its own commands, with the example's lines and ``print(gui.hash3d)``."""
    beside = (package(name, tmp_path),)
    copy = fresh_copy("dreamgaussian", tmp_path)
    prepare(copy, f"small_weights.write_stable_diffusion({STABLE_DIFFUSION!r})")  # its scheduler is taken from there
    prepare(copy, f"small_ldm.write_multi_view({name!r})", without=WITHOUT, beside=beside)
    change(copy / "main.py", ("self.save_model(mode='geo+tex')", "print(self.hash3d)"))
    few = ("iters=4", "num_pts=300", "H=64", "W=64")
    said = run(copy, COMMANDS[name], *few, without=WITHOUT, beside=beside, HASH3D_RASTER="4")
    assert forwards(said) == [4] and "0 host syncs" in said


def put_lines(script: Path, lines: dict[str, str]) -> None:
    """Puts the page's lines in, and :func:`compared.compare` behind them."""
    change(script, *lines.items())
    text = script.read_text(encoding="utf-8")
    line = re.compile(r"cache = h3d\.apply_hash3d\((.*), config\)")
    assert len(line.findall(text)) == 1
    script.write_text(line.sub(r"\g<0>; __import__('compared').compare(\1, cache)", text), encoding="utf-8")


# Two sets of views in 20 steps each, of which two lie in a cell. Were the second served with entries of the first, it
# would miss nothing.
EXPECTED = re.compile(r"(\d+) of 20 hit equal, 20 of 20 miss equal")


def check(said: str) -> None:
    assert EXPECTED.search(said), said[-2000:]
    assert int(EXPECTED.search(said)[1]) < 20  # a hit's feature is that of another step


def test_mvdreams_own_script(tmp_path):
    copy = package("mvdream", tmp_path)
    prepare(copy, "small_ldm.write_multi_view('mvdream')")
    script = copy / "scripts" / "t2i.py"
    put_lines(script, adapters_lines("scripts/t2i.py"))
    change(script, ("range(3)", "range(2)"), ("step=50", "step=20"), ('save(f"sample.png")', 'save("it.png")'))
    command = 'python scripts/t2i.py --text "an astronaut riding a horse"'
    check(run(copy, f"{command} --size 64 --device cpu", beside=(copy,)))
    assert (copy / "it.png").is_file()


def test_imagedreams_own_script(tmp_path):
    copy = package("imagedream", tmp_path)
    shutil.copytree(checkout("HASH3D_IMAGEDREAM") / PACKAGES["imagedream"] / "assets", copy / "assets")
    prepare(copy, "small_ldm.write_multi_view('imagedream')")
    script = copy / "scripts" / "demo.py"
    put_lines(script, adapters_lines("extern/ImageDream/scripts/demo.py"))
    change(script, ("range(3)", "range(2)"), ("step=50", "step=20"))
    command = 'python scripts/demo.py --image assets/astronaut.png --text "an astronaut riding a horse"'
    check(run(copy, f"{command} --size 64 --device cpu", without=("torchvision",), beside=(copy,)))
    assert (copy / "astronaut_pixel_dream.png").is_file()


@pytest.mark.parametrize("name", ["mvdream", "imagedream"])
def test_mvdream_diffusers(tmp_path, name):
    """Its scripts; a float16 of a CPU, and pictures of 256 pixels, take minutes."""
    root = checkout("HASH3D_MVDREAM_DIFFUSERS")
    pytest.importorskip("kiui", reason="its scripts need it")
    copy = copy_checkout(root, tmp_path / "mvdream_diffusers")
    prepare(copy, "small_weights.write_multi_view_pipelines()", without=("torchvision",))
    lines = adapters_lines("run_imagedream.py")
    if name == "mvdream":  # as the page says
        for old, new in (("frames=5", "frames=4"), ("input_image, ", ""), ("args.image, ", "")):
            lines = {key.replace(old, new): value.replace(old, new) for key, value in lines.items()}
    script = copy / f"run_{name}.py"
    put_lines(script, lines)
    steps = ("num_inference_steps=30", "num_inference_steps=20, height=64, width=64")
    change(script, ("range(5)", "range(2)"), ("float16", "float32"), steps)
    change(copy / "pipeline_mvdream.py", ("F.interpolate(image, (256, 256)", "F.interpolate(image, (64, 64)"))
    words = "'an owl'" if name == "mvdream" else "data/anya_rgba.png --prompt girl"
    check(run(copy, f"python run_{name}.py {words}", without=("torchvision",)))
    assert (copy / f"test_{name}_1.jpg").is_file()
