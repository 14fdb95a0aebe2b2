"""What ``import hash3d_cuda`` offers, and what it leaves unimported."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import hash3d_cuda

NAMES = {
    "Grid",
    "PAPER_GRIDS",
    "make_keys",
    "HashTable",
    "QueryResult",
    "TableStats",
    "reference",
    "Hash3DConfig",
    "apply_hash3d",
    "__version__",
}


def test_the_names_are_there():
    assert set(hash3d_cuda.__all__) >= NAMES
    assert set(dir(hash3d_cuda)) >= NAMES
    for name in NAMES:
        assert getattr(hash3d_cuda, name) is not None
    assert hash3d_cuda.HashTable.__module__.startswith("hash3d_cuda")
    assert hash3d_cuda.reference.HashTable is not hash3d_cuda.HashTable


def test_the_version_is_the_installed_ones():
    assert hash3d_cuda.__version__ == importlib.metadata.version("hash3d-cuda")


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no_such_name"):
        hash3d_cuda.no_such_name  # noqa: B018


HEAVY = {
    "diffusers",
    "transformers",
    "trimesh",
    "matplotlib",
    "skimage",
    "PIL",
    "torchmetrics",
    "torchvision",
}


def modules_after(code: str) -> set[str]:
    start = "import sys\nsys.path.remove('')  # the checkout, whose package may not be built\n"
    script = f"{start}{code}\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_the_table_needs_neither_diffusers_nor_pictures():
    code = "import hash3d_cuda as h; h.reference; h.make_keys(1, 2, 3, 4)"
    code += "; h.HashTable((2,), (1,), capacity=1, num_buckets=7)"
    loaded = modules_after(code)
    assert "torch" in loaded and not loaded & HEAVY


def test_the_version_alone_is_quick():
    assert not modules_after("import hash3d_cuda; hash3d_cuda.__version__") & HEAVY
