"""Drives CMakeLists.txt; everything else about the package is in pyproject.toml.

HASH3D_CUDA=0 leaves the CUDA backend out, CUDAARCHS chooses its architectures, HASH3D_SANITIZE=address,undefined builds
with sanitizers. HASH3D_BUILD names a folder to build in, kept between builds: only what changed is compiled again.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeExtension(Extension):
    """An extension that CMake knows how to build."""

    def __init__(self, name: str):
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Configures afresh, in a temporary folder unless one is named: paths of an earlier isolated build never linger."""

    def build_extension(self, extension: Extension) -> None:
        """Builds one extension and puts it where setuptools expects it."""
        target = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        options = [
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DHASH3D_CUDA={'OFF' if os.environ.get('HASH3D_CUDA') == '0' else 'ON'}",
            f"-DHASH3D_SANITIZE={os.environ.get('HASH3D_SANITIZE', '')}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        kept = os.environ.get("HASH3D_BUILD")
        with contextlib.nullcontext(kept) if kept else tempfile.TemporaryDirectory(prefix="hash3d-build-") as folder:
            # Not --fresh: that would take the compiled objects away as well.
            Path(folder, "CMakeCache.txt").unlink(missing_ok=True)
            options.append(f"-Dpybind11_DIR={pybind11_cmake_dir(kept)}")
            subprocess.run(["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", folder, *options], check=True)
            subprocess.run(["cmake", "--build", folder, "--target", "_C"], check=True)


def pybind11_cmake_dir(kept: str | None) -> Path:
    """Where CMake finds pybind11. In a build folder that is kept: a copy, because pip's isolated builds have it at
    another place each time, and what was compiled from there would be compiled again."""
    import pybind11

    found, package = Path(pybind11.get_cmake_dir()), Path(pybind11.__file__).parent
    if not kept or package not in found.parents:  # a system's own, which stays where it is
        return found
    copy = Path(kept).resolve() / f"pybind11-{pybind11.__version__}"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copy.parent) as part:  # whole or not at all
            shutil.copytree(package, Path(part, "copy"))
            Path(part, "copy").rename(copy)
    return copy / found.relative_to(package)


setup(ext_modules=[CMakeExtension("hash3d_cuda._C")], cmdclass={"build_ext": CMakeBuild})
