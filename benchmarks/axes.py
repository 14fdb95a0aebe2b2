"""What the benchmarks share: sizes, dtypes, devices, and one way of timing.

Times are paired: the rival runs right before and right after each round of the subject, and the ratio is the median of
the rounds' ratios to the mean of the two. What slows the machine for a while slows both.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import hash3d_cuda as h3d
from hash3d_cuda import _C

Function = Callable[[], Any]


@dataclass(frozen=True)
class Size:
    """Shapes of one entry: two rows of guidance at position 2, and the noisy latent."""

    name: str
    feature: tuple[int, ...]
    latent: tuple[int, ...]

    def feature_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one feature, F."""
        return torch.Size(self.feature).numel() * dtype.itemsize

    @property
    def latent_bytes(self) -> int:
        """Bytes of one latent, L; the table keeps it in float32."""
        return torch.Size(self.latent).numel() * 4


SD = Size("SD", (2, 320, 64, 64), (4, 64, 64))
ZERO123 = Size("Zero123", (2, 320, 32, 32), (4, 32, 32))
TINY = Size("tiny", (2, 4, 5, 3), (4, 5, 3))  # for the tests
# SD in every dtype, Zero123 in the table's default.
SIZES = [(SD, torch.float16), (SD, torch.float32), (SD, torch.bfloat16), (ZERO123, torch.float16)]
SIZE_IDS = [f"{size.name}-{str(dtype).removeprefix('torch.')}" for size, dtype in SIZES]


def devices() -> list[str]:
    """The CPU always; CUDA where there is a GPU and the table has kernels for it."""
    return ["cpu", "cuda"] if torch.cuda.is_available() and h3d.HashTable.supports("cuda") else ["cpu"]


def finished(function: Function, device: str) -> Function:
    """``function``, followed by waiting for the GPU when it runs on one."""
    if device == "cpu":
        return function

    def waiting() -> None:
        function()
        torch.cuda.synchronize()

    return waiting


def compare(
    benchmark: Any,
    subject: Function,
    rival: Function,
    *,
    against: str,
    rounds: int,
    device: str = "cpu",
    moved: int | None = None,
    items: int | None = None,
    limit: str = "",
    warmup: int = 3,
    warm: int = 0,
    note: str = "",
) -> None:
    """Times ``subject`` under pytest-benchmark, and ``rival`` before and after each of its rounds.

    Args:
        against: what the rival is, for the reader.
        moved: bytes the subject must move, for GB/s.
        items: look-ups in one call, for a rate.
        warm: how often either runs untimed right before its turn, so that it does not pay for what the other left in
            the caches: once after one of like size, some times after one that fills them with something else.
        limit: the bound to hold, such as ``"<= 1.25"``; printed, not enforced: a busy machine is no bug.
    """
    subject, rival = finished(subject, device), finished(rival, device)
    rivals: list[float] = []

    def before() -> None:
        for _ in range(warm):
            rival()
        start = time.perf_counter()
        rival()
        rivals.append(time.perf_counter() - start)
        for _ in range(warm):
            subject()

    benchmark.group = benchmark.fullname.split("/")[-1].split("::")[0].removesuffix(".py")
    benchmark.pedantic(subject, setup=before, rounds=rounds, iterations=1, warmup_rounds=warmup)
    if benchmark.disabled:
        return
    before()
    times = list(benchmark.stats.stats.data)
    around = [(first + second) / 2 for first, second in itertools.pairwise(rivals[-len(times) - 1 :])]
    median = statistics.median(times)
    benchmark.extra_info.update(
        device=device,
        against=against,
        rival_median=statistics.median(rivals),
        ratio=statistics.median(mine / theirs for mine, theirs in zip(times, around, strict=True)),
        limit=limit,
        note=note,
    )
    if moved is not None:
        benchmark.extra_info.update(moved_bytes=moved, gb_per_s=moved / median / 1e9)
    if items is not None:
        benchmark.extra_info.update(items=items, items_per_s=items / median)


def rate(
    benchmark: Any, subject: Function, *, rounds: int, items: int, moved: int, limit: str = "", note: str = ""
) -> None:
    """Times ``subject`` alone, for what has no rival."""
    benchmark.group = benchmark.fullname.split("/")[-1].split("::")[0].removesuffix(".py")
    benchmark.pedantic(subject, rounds=rounds, iterations=1, warmup_rounds=2)
    if benchmark.disabled:
        return
    median = statistics.median(benchmark.stats.stats.data)
    benchmark.extra_info.update(
        device="cpu", items=items, items_per_s=items / median, moved_bytes=moved, gb_per_s=moved / median / 1e9,
        limit=limit, note=note,
    )  # fmt: skip


def machine() -> dict[str, Any]:
    """The machine and the build that gave the figures."""
    info = _C.build_info()
    found = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": info["simd"],
        "compiler": info["compiler"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
