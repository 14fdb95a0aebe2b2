"""Whether an installed wheel works: `python check_wheel.py` beside the torch that it is to work with.

Run it outside the checkout's folder, or the checkout's package is the one that is tried.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys

import torch

import hash3d_cuda as h3d
from hash3d_cuda import _C


def filled(kind: type) -> h3d.HashTable:
    """A table of ``kind`` that has seen three batches."""
    table = kind((3, 5), (4,), capacity=20, num_buckets=101)
    random = torch.Generator().manual_seed(0)
    for step in range(3):
        keys = h3d.make_keys([0, 5, 40], [10, 20, -30], 2.0, 500 + step)
        table.append(keys, torch.randn(3, 4, generator=random), torch.randn(3, 3, 5, generator=random))
    return table


def main() -> None:
    build = _C.build_info()
    print(f"hash3d-cuda {h3d.__version__}, torch {torch.__version__}, python {sys.version.split()[0]}: {build}")
    assert h3d.__version__ == importlib.metadata.version("hash3d-cuda")
    licences = {os.path.basename(path) for path in importlib.metadata.files("hash3d-cuda") or ()}
    assert {"LICENSE", "THIRD-PARTY.md", "CREDITS.md"} <= licences
    assert build["cuda"] or os.environ.get("HASH3D_CUDA") == "0", "there are no CUDA kernels in it"
    keys, latents = h3d.make_keys([0, 5, 40], [12, 22, -28], 2.0, 501), torch.zeros(3, 4)
    one, other = (filled(kind).query(keys, latents) for kind in (h3d.HashTable, h3d.reference.HashTable))
    assert one.hit.all() and torch.equal(one.serials, other.serials) and torch.equal(one.grid, other.grid)
    torch.testing.assert_close(one.features, other.features, rtol=2e-3, atol=2e-3)


if __name__ == "__main__":
    main()
