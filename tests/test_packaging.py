"""What is packed and built: metadata, data files, the native module's surface and dependencies, the source archive."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hash3d_cuda
from hash3d_cuda import _C
from hash3d_cuda.cli.info import build_facts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STUB = ast.parse((ROOT / "hash3d_cuda" / "_C.pyi").read_text())


def test_the_version_is_written_once():
    version = PYPROJECT["project"]["version"]
    assert hash3d_cuda.__version__ == importlib.metadata.version("hash3d-cuda") == version
    sources = [*ROOT.glob("hash3d_cuda/**/*.py"), *ROOT.glob("csrc/**/*.*"), ROOT / "setup.py", ROOT / "CMakeLists.txt"]
    assert not [path for path in sources if f'"{version}"' in path.read_text()]


def test_metadata():
    metadata = importlib.metadata.metadata("hash3d-cuda")
    assert metadata["License-Expression"] == PYPROJECT["project"]["license"]
    assert metadata["Requires-Python"] == PYPROJECT["project"]["requires-python"]
    assert set(metadata.get_all("Provides-Extra")) == set(PYPROJECT["project"]["optional-dependencies"])
    assert "# hash3d-cuda" in str(metadata.get_payload())
    scripts = importlib.metadata.entry_points(group="console_scripts", name="hash3d")
    assert {script.value for script in scripts} == {"hash3d_cuda.cli.main:main"}


def test_data_files_are_installed():
    package = importlib.resources.files("hash3d_cuda")
    assets = [path.relative_to(ROOT / "hash3d_cuda") for path in ROOT.glob("hash3d_cuda/assets/**/*") if path.is_file()]
    assert len(assets) > 30
    recipes = [path.relative_to(ROOT / "hash3d_cuda") for path in ROOT.glob("hash3d_cuda/sds/recipes/*.toml")]
    assert len(recipes) == 10
    for name in ("py.typed", "_C.pyi", *map(str, assets + recipes)):
        assert package.joinpath(name).is_file(), f"{name} is not installed"


def names(body: list[ast.stmt]) -> set[str]:
    """What a stub's body declares: functions, classes and annotated values."""
    found = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return found | {node.target.id for node in body if isinstance(node, ast.AnnAssign)}


def public(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_the_stub_names_what_the_module_has():
    assert names(STUB.body) == public(_C)
    for node in STUB.body:
        if isinstance(node, ast.ClassDef):
            assert names(node.body) - {"__init__"} == public(getattr(_C, node.name)), node.name


def stub_functions() -> list[tuple[str, ast.FunctionDef]]:
    found = [(node.name, node) for node in STUB.body if isinstance(node, ast.FunctionDef)]
    for node in STUB.body:
        if isinstance(node, ast.ClassDef):
            found += [(f"{node.name}.{method.name}", method) for method in node.body]
    return found


@pytest.mark.parametrize(("name", "stub"), stub_functions(), ids=[name for name, _ in stub_functions()])
def test_the_stub_has_the_modules_arguments(name, stub):
    """pybind11 writes the signature into the docstring: names where they were given, arg0, arg1... elsewhere."""
    function: object = _C
    for part in name.split("."):
        function = getattr(function, part)
    signature = function.__doc__.splitlines()[0]
    actual = [argument for argument in re.findall(r"[(,] ?(\w+):", signature) if argument != "self"]
    arguments = [*stub.args.posonlyargs, *stub.args.args, *stub.args.kwonlyargs]
    declared = [argument.arg for argument in arguments if argument.arg != "self"]
    assert len(actual) == len(declared), signature
    for one, other in zip(actual, declared):
        assert one == other or re.fullmatch(r"arg\d+", one), signature


def test_the_module_needs_no_torch_and_no_cuda_libraries():
    """Names of needed libraries and of undefined symbols stand in the file; torch's own module shows what is sought."""
    foreign = re.compile(rb"libtorch|libc10|libcudart\.so|_ZN3c10|_ZN2at\d|THPVariable")
    assert foreign.search(Path(torch._C.__file__).read_bytes())
    assert not foreign.search(Path(_C.__file__).read_bytes())


def includes(*folders: str) -> set[str]:
    texts = [path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.*")]
    return {
        name for text in texts for name in re.findall(r"^\s*#\s*include\s*[<\"]([^>\"]+)", text, flags=re.MULTILINE)
    }


def test_the_engine_knows_neither_python_nor_torch():
    found = includes("csrc")
    assert "hash3d/hash3d.h" in found
    assert not [name for name in found if re.match(r"(torch|ATen|c10|pybind11|Python)\b", name)]
    assert any(name.startswith("pybind11/") for name in includes("python"))
    assert not [name for name in includes("python") if re.match(r"(torch|ATen|c10)\b", name)]


def test_the_build_asks_for_no_gpu():
    """Architectures are named before CMake looks for CUDA, which would take those of the GPU at hand."""
    text = (ROOT / "CMakeLists.txt").read_text()
    assert text.index("set(CMAKE_CUDA_ARCHITECTURES") < text.index("project(") < text.index("check_language(CUDA)")
    assert "native" not in text


def test_the_build_says_what_it_is():
    build = _C.build_info()
    assert set(build) == {"compiler", "simd", "simd_paths", "cuda", "cuda_architectures", "cuda_devices"}
    assert build["simd"] in build["simd_paths"] and build["simd_paths"][-1] == "baseline"
    assert bool(build["cuda"]) == bool(build["cuda_architectures"])
    assert all(re.fullmatch(r"\d+", architecture) for architecture in build["cuda_architectures"].split())


def test_info_says_when_there_is_no_cuda_code(monkeypatch):
    without = {**_C.build_info(), "cuda": "", "cuda_architectures": ""}
    monkeypatch.setattr(_C, "build_info", lambda: without.copy())
    assert build_facts()["cuda"].startswith("not in this build: nvcc was not found")
    monkeypatch.setattr(_C, "build_info", lambda: {**without, "cuda": "13.0", "cuda_architectures": "90"})
    assert build_facts()["cuda"] == "13.0" and build_facts()["cuda architectures"] == "90"


def test_the_source_archive_holds_what_a_build_needs(tmp_path):
    pytest.importorskip("setuptools", reason="only builds need it")
    pytest.importorskip("pybind11", reason="only builds need it")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (listing,) = tmp_path.glob("*.egg-info/SOURCES.txt")
    listed = {line for line in listing.read_text().splitlines() if not line.startswith(str(tmp_path))}
    wanted = {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    for folder in ("csrc", "python", "hash3d_cuda", "tests", "docs", "examples", "benchmarks"):
        files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()]
        wanted |= {path.as_posix() for path in files if path.suffix not in (".so", ".pyc")}
    assert wanted <= listed, f"missing: {sorted(wanted - listed)}"
    assert not [name for name in listed if name.endswith((".so", ".pyc")) or "__pycache__" in name]
