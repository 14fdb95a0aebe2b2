"""What this installation is: version, compiler, CUDA, devices, SIMD path."""

from __future__ import annotations

from typing import Any

from . import _C, __version__


def info() -> dict[str, Any]:
    """Facts about the build and the machine.

    Returns:
        ``version``; ``compiler``; ``simd`` (the path in use) and ``simd_paths`` (those this machine runs); ``cuda``
        (nvcc's version, "" in a build without); ``cuda_architectures``; ``cuda_operations`` (kernels compiled in);
        ``cuda_devices`` (seen by the driver); ``torch``.
    """
    import torch

    build = _C.build_info()
    return {
        "version": __version__,
        **build,
        "cuda_operations": ["lookup"] if build["cuda"] else [],
        "torch": torch.__version__,
    }
