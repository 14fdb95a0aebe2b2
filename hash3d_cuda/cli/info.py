"""``hash3d info``."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "diffusers",
    "transformers",
    "trimesh",
    "imageio-ffmpeg",
    "gsplat",
    "DeepCache",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fills the subcommand's parser."""
    parser.add_argument(
        "--objects", action="store_true", help="only the names that the shipped prior knows, one a line"
    )
    parser.add_argument("--examples", action="store_true", help="only the bundled example pictures: name, tab, path")


def run(options: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    if options.objects or options.examples:
        lines = [*(objects() if options.objects else []), *(examples() if options.examples else [])]
    else:
        lines = [f"{name:<20} {value}" for name, value in facts().items()]
    print("\n".join(lines))
    return 0


def objects() -> list[str]:
    """Names of the shipped prior's vocabulary."""
    from hash3d_cuda.prior.vocabulary import OBJECTS

    return sorted(item.name for item in OBJECTS)


def examples() -> list[str]:
    """Bundled pictures as ``name<TAB>path``."""
    from hash3d_cuda.prior.ground_truth import example_inputs

    return [f"{name}\t{path}" for name, path in example_inputs().items()]


def facts() -> dict[str, Any]:
    """Version, build, devices, packages."""
    import torch

    from hash3d_cuda.cli.main import version

    found: dict[str, Any] = {"hash3d-cuda": version()}
    found |= build_facts()
    found["devices"] = "; ".join(["cpu", *devices()])
    found["python"] = f"{platform.python_version()} on {platform.platform()}"
    found["torch threads"] = torch.get_num_threads()
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def build_facts() -> dict[str, Any]:
    """What the native module says about its own build; an engine that cannot be loaded is said so, not
    hidden."""
    try:
        from hash3d_cuda import _C
    except ImportError as error:
        return {"engine": f"cannot be loaded ({error}); build it with: pip install ."}
    build = _C.build_info()
    if not build["cuda"]:
        build["cuda"] = "not in this build: nvcc was not found, or HASH3D_CUDA=0 was set"
        build["cuda_architectures"] = "none"
    return {name.replace("_", " "): value for name, value in build.items()}


def devices() -> list[str]:
    """CUDA devices that torch sees."""
    import torch

    names = []
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        names.append(f"cuda:{index} {seen.name}, sm_{seen.major}{seen.minor}, {seen.total_memory / 2**30:.0f} GiB")
    return names
