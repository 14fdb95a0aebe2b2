"""Fixtures that the table's tests share: every backend, and every device that the engine serves."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hash3d_cuda as h3d
from hash3d_cuda import _C

if _C.build_info()["cuda_architectures"] == "emulated":  # tests/emulate.sh: the kernels run on a CPU table's memory
    h3d.HashTable._device_index = lambda self: 0  # type: ignore[method-assign]


def pytest_collection() -> None:
    """Importing torch and diffusers makes half a million objects that stay: no need to look for garbage among them."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Nor in any test that follows."""
    gc.enable()
    gc.collect()
    gc.freeze()


def _devices() -> list[str]:
    """The CPU always; CUDA when there is a GPU and the engine was built with its kernels. ``HASH3D_TEST_DEVICES`` names
    others, such as ``cuda`` alone."""
    if "HASH3D_TEST_DEVICES" in os.environ:
        return os.environ["HASH3D_TEST_DEVICES"].split(",")
    return ["cpu", "cuda"] if torch.cuda.is_available() and h3d.HashTable.supports("cuda") else ["cpu"]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> str:
    """Each device the engine serves here."""
    return request.param


@pytest.fixture(params=[f"engine-{device}" for device in _devices()] + ["oracle-cpu"])
def make_table(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """The constructor of the engine's table on each device, and of the oracle: the rules bind both."""
    kind, device = request.param.split("-")
    return functools.partial(h3d.HashTable if kind == "engine" else h3d.reference.HashTable, device=device)


# The U-Net that most of the hook's tests are about; diffusers is imported only where one asks for it.


@pytest.fixture
def unet() -> Any:
    """A narrow Stable Diffusion 1.5."""
    from unet_shapes import build_unet

    return build_unet("sd15")


@pytest.fixture
def inputs(unet: Any) -> dict[str, Any]:
    """Keyword arguments of ``unet`` for one item of two rows."""
    from unet_shapes import build_inputs

    return build_inputs(unet, rows=2)


@pytest.fixture
def full(unet: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What the bare ``unet`` answers to ``inputs``."""
    return unet(**inputs).sample
