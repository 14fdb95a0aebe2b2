"""Validators shared by the package. Each message names the argument, what was expected, what came, and the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NoReturn

import torch
from torch import Tensor

FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What latents and features may come in."""
QUANTISED_DTYPES = (torch.int8, torch.float8_e4m3fn)
STORED_DTYPES = (*FEATURE_DTYPES, *QUANTISED_DTYPES)
"""What a table may keep features in; the engine numbers them in this order."""
DTYPE_NAMES = dict(zip(("float32", "float16", "bfloat16", "int8", "fp8"), STORED_DTYPES, strict=True))
"""The same by the names that settings and command lines have."""
_FLOAT32_MAX = torch.finfo(torch.float32).max
_BYTE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def describe(value: Any) -> str:
    """Returns a short description of ``value`` for an error message."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)} on {value.device}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def fail(error: type[Exception], name: str, expected: str, got: Any, remedy: str) -> NoReturn:
    """Raises ``error`` with a message of the common form."""
    raise error(f"{name}: expected {expected}, got {describe(got)}; {remedy}")


def check_int(name: str, value: Any, minimum: int, maximum: int = 2**63 - 1) -> int:
    """Returns ``value`` as an int in ``[minimum, maximum]``; raises TypeError or ValueError."""
    bounds = f"an integer of at least {minimum}"
    if maximum < 2**63 - 1:
        bounds += f" and at most {maximum}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        fail(TypeError, name, bounds, value, f"pass {name} as an int")
    number = int(value)
    if not minimum <= number <= maximum:
        fail(ValueError, name, bounds, value, "choose a value in that range")
    return number


def check_real(name: str, value: Any, minimum: float | None = None, maximum: float | None = None) -> float:
    """Returns ``value`` as a float that float32 can hold, inside ``[minimum, maximum]`` where given."""
    expected = "a finite number"
    if minimum is not None or maximum is not None:
        expected += f" from {'-inf' if minimum is None else minimum} to {'inf' if maximum is None else maximum}"
    if isinstance(value, bool) or not isinstance(value, Real):
        fail(TypeError, name, expected, value, f"pass {name} as a float")
    number = float(value)
    below = minimum is not None and number < minimum
    above = maximum is not None and number > maximum
    if not math.isfinite(number) or abs(number) > _FLOAT32_MAX or below or above:
        fail(ValueError, name, expected, value, "choose a value in that range")
    return number


def check_positive(name: str, value: Any) -> float:
    """Returns ``value`` as a float that is still positive and finite when rounded to float32."""
    number = check_real(name, value)
    rounded = torch.tensor(number, dtype=torch.float64).to(torch.float32).item()
    if not 0.0 < rounded < math.inf:
        fail(ValueError, name, "a positive number (in float32)", value, "choose a larger value")
    return number


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Returns ``value`` when it is one of ``choices``."""
    expected = "one of " + ", ".join(repr(choice) for choice in choices)
    if not isinstance(value, str):
        fail(TypeError, name, expected, value, f"pass {name} as a string")
    if value not in choices:
        fail(ValueError, name, expected, value, "choose one of these")
    return value


def check_shape(name: str, value: Any) -> tuple[int, ...]:
    """Returns ``value`` (a sequence of positive sizes, or one size) as a tuple of ints."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = (value,)
    if isinstance(value, (str, Tensor)) or not isinstance(value, Sequence):
        fail(
            TypeError,
            name,
            "a sequence of positive sizes",
            value,
            f"pass {name} as a tuple such as (4, 64, 64)",
        )
    return tuple(check_int(f"{name}[{i}]", size, 1) for i, size in enumerate(value))


def check_device(name: str, value: Any) -> torch.device:
    """Returns ``value`` as a torch.device; "cuda" without an index is the current CUDA device."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        fail(ValueError, name, 'a device such as "cpu" or "cuda:0"', value, "pass a torch.device or its name")
    if device.type not in ("cpu", "cuda"):
        fail(ValueError, name, 'a "cpu" or "cuda" device', value, "keep the table on one of these")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            fail(
                ValueError,
                name,
                "a device this torch can use",
                value,
                'use device="cpu" or install torch for CUDA',
            )
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= count:
            fail(ValueError, name, f"a CUDA device below {count}", value, "choose one of the devices present")
        device = torch.device("cuda", index)
    return device


def check_tensor(
    name: str, value: Any, shape: tuple[int | None, ...], dtypes: Sequence[torch.dtype], device: torch.device
) -> Tensor:
    """Returns ``value`` detached; raises TypeError for a non-tensor or a wrong dtype, ValueError for a wrong shape
    (a tuple; ``None`` in its first place stands for any size) or device."""
    alike = isinstance(value, Tensor) and value.dtype in dtypes and value.device == device
    if alike and (value.shape == shape or _fits(value, shape)):
        if value.layout is torch.strided:  # all is well, as at nearly every call: no message is made up
            return value.detach() if value.requires_grad else value
        fail(TypeError, name, "a dense tensor", value.layout, "convert it with .to_dense()")
    want = "[" + ", ".join("N" if size is None else str(size) for size in shape) + "]"
    kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    expected = f"a {kinds} tensor of shape {want} on {device}"
    if not isinstance(value, Tensor):
        fail(TypeError, name, expected, value, "pass a torch.Tensor")
    if value.dtype not in dtypes:
        fail(TypeError, name, expected, value, f"convert it with .to({dtypes[0]})")
    if not _fits(value, shape):
        fail(ValueError, name, expected, value, "reshape it, or build the table with other shapes")
    fail(ValueError, name, expected, value, f'move it with .to("{device}")')


def _fits(value: Tensor, shape: tuple[int | None, ...]) -> bool:
    sizes = value.shape
    return len(sizes) == len(shape) and sizes[1:] == shape[1:] and bool(shape) and shape[0] is None


def dense(value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``value`` with its numbers in memory one after the other, as they are to be read; a copy where it is not so."""
    if dtype is not None and value.dtype is not dtype:  # a call of to() that changes nothing is not free
        value = value.to(dtype)
    if value.is_neg():  # such as x.conj().imag, which shares x's memory; a conjugate bit is on complex numbers alone
        value = value.resolve_neg()
    return value.contiguous()


def parse_bytes(name: str, value: Any) -> int:
    """Returns a number of bytes from an int, or from a string such as ``"2GiB"``, ``"1.5 GB"`` or ``"4096"``."""
    expected = 'bytes as an int, or a string such as "2GiB" or "512MB"'
    if not isinstance(value, str):
        if isinstance(value, bool) or not isinstance(value, Integral):
            fail(TypeError, name, expected, value, "pass an int or such a string")
        return check_int(name, value, 1)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value.lower())
    if match is None or match.group(2) not in _BYTE_UNITS:
        fail(ValueError, name, expected, value, "use a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB")
    return check_int(name, int(float(match.group(1)) * _BYTE_UNITS[match.group(2)]), 1)
