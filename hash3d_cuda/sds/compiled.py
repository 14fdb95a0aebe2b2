"""Parts of a step under ``torch.compile``: the scene's rendering, the encoder, the U-Net."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from hash3d_cuda.checks import check_choice, fail

PARTS = ("scene", "encoder", "unet")
OPTIONS: dict[str, Any] = {}
"""Handed to ``torch.compile``. Graph breaks are allowed, except in the cached U-Net's parts."""
COMPILERS = ("c++", "g++", "clang++")


def as_parts(value: Any) -> tuple[str, ...]:
    """Names of ``PARTS`` from a sequence or a text with commas between, in this order, each once.

    Raises:
        TypeError, ValueError: naming ``compile``.
    """
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, bool) or not isinstance(value, Sequence):
        fail(TypeError, "compile", f"names among {', '.join(PARTS)}", value, 'pass ("unet",), or () for none')
    named = {check_choice("compile", name, PARTS) for name in value}
    return tuple(name for name in PARTS if name in named)


def compiled(part: str, wanted: Sequence[str], call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, compiled when its ``part`` is ``wanted``."""
    import torch

    return torch.compile(call, **OPTIONS) if part in wanted else call


def check_compiler(device: str) -> None:
    """Raises ValueError where torch.compile would fail in the first step for want of a compiler."""
    if OPTIONS.get("backend", "inductor") != "inductor":
        return
    if device == "cpu":
        named = os.environ.get("CXX")
        if not any(map(shutil.which, (named,) if named else COMPILERS)):
            expected = "a C++ compiler for the code that torch.compile writes"
            fail(ValueError, "compile", expected, named or "none on the PATH", "install g++, or leave compile away")
        return
    from importlib.util import find_spec

    if find_spec("triton") is None:
        fail(ValueError, "compile", "the package triton on CUDA", "none", "pip install triton, or leave compile away")
