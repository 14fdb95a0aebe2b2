"""MVDream and ImageDream from start to end, as :mod:`test_whole_runs`, which says what is needed: under DreamGaussian,
and MVDream's own script with the lines of docs/adapters.md. Their checkouts are ``HASH3D_MVDREAM`` and
``HASH3D_IMAGEDREAM``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from foreign_code import ROOT, checkout
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


def test_mvdreams_own_script(tmp_path):
    """``scripts/t2i.py`` with the lines of docs/adapters.md: two sets of views instead of three, in 20 steps instead of
    50, of which two lie in a cell."""
    copy = package("mvdream", tmp_path)
    prepare(copy, "small_ldm.write_multi_view('mvdream')")
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    (block,) = re.findall(r'^```text\n(after " *model\.eval.*?)^```', page, flags=re.MULTILINE | re.DOTALL)
    script = copy / "scripts" / "t2i.py"
    for part in block.split("\n\n"):
        anchor, lines = re.fullmatch(r'[a-z ]+"(.*)":\n(.*?)\n*', part, flags=re.DOTALL).groups()
        kept = f"{anchor}\n" if part.startswith("after") else ""
        change(script, (f"{anchor}\n", f"{kept}{lines}\n"))
    change(
        script,
        ("range(3)", "range(2)"),
        ("step=50", "step=20"),
        ('save(f"sample.png")', 'save("it.png")\n    print(cache.stats())'),
    )
    said = run(copy, 'python scripts/t2i.py --text "an astronaut riding a horse" --device cpu', beside=(copy,))
    assert (copy / "it.png").is_file() and "40 forwards: 20 hits, 20 misses" in said
