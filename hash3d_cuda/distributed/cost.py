"""What several ranks send each other: bytes per step, the links that takes, and where sharding would send less.

    python -m hash3d_cuda.distributed.cost      the tables of docs/scaling.md

Sizes come from the public U-Nets, counted on the meta device; nothing is timed. Where seconds are needed, they are the
U-Net's operations at an assumed rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from hash3d_cuda.unet.configs import UNETS
from hash3d_cuda.unet.cost import CFG_ROWS, unet_cost

KEY_BYTES, LATENT_CHANNELS = 16, 4
POSITION = 2  # the paper's
FP16 = 2  # bytes
RATE = 200e12  # operations per second of the U-Net on one GPU: assumed, about a fifth of a large GPU's peak in fp16
SHARE = 0.1  # of a step that the exchange may take
SERVED = (0.1, 0.5, 0.9)  # x, the share of views served from the cache
RANKS = (2, 4, 8, 16, 64)
GPUS, TOGETHER = (8, 64, 1024, 4096), 8  # ranks that share an object


@dataclass(frozen=True)
class Entry:
    """What is sent of one view.

    Attributes:
        unet: one of ``UNETS``.
        shape: ``(C, H, W)`` of one row's feature.
        feature, latent: bytes.
        full, hit: operations (two per multiply-accumulate) of a view in full and served from the cache.
    """

    unet: str
    shape: tuple[int, int, int]
    feature: int
    latent: int
    full: float
    hit: float

    @property
    def total(self) -> int:
        """Bytes of key, latent and feature."""
        return KEY_BYTES + self.latent + self.feature

    def step_seconds(self, views: int, x: float, rate: float = RATE) -> float:
        """The U-Net's time in a step of so many views per rank."""
        return views * (x * self.hit + (1 - x) * self.full) / rate


def entry(unet: str, position: int = POSITION, rows: int = CFG_ROWS, width: int = FP16) -> Entry:
    """An entry of a public U-Net at its usual latents; ``width``: bytes per number of a feature, latents are fp16."""
    cost, size = unet_cost(unet, positions=(position,)), UNETS[unet].latent_size
    shape = cost.feature_shape[position]
    numbers = rows * shape[0] * shape[1] * shape[2]
    operations = 2e9 * rows * cost.full_gmacs
    latent = LATENT_CHANNELS * size * size * FP16
    return Entry(unet, shape, numbers * width, latent, operations, operations * cost.r[position])


def replicated(one: Entry, views: int, ranks: int, x: float) -> float:
    """Bytes that each rank receives per step where every rank stores everything: the others' entries.

    Args:
        one: an entry.
        views: per rank and step.
        ranks: how many.
        x: share of the views that hit, and so are not stored.
    """
    return (1 - x) * views * (ranks - 1) * one.total


def sharded(one: Entry, views: int, ranks: int) -> float:
    """The same where each rank stores its part of the cells: key and latent of a view go to the owner of its cell, and
    one feature comes back on a hit or goes there on a miss, whatever x is. Cells of one's own send nothing."""
    return views * (ranks - 1) / ranks * one.total


def break_even(x: float) -> float:
    """Ranks from which sharding sends less: (1 - x) (n - 1) entries against (n - 1) / n, so n = 1 / (1 - x)."""
    return 1 / (1 - x)


def link(one: Entry, ranks: int, x: float, share: float = SHARE, rate: float = RATE) -> float:
    """Bytes per second that each rank must receive, so that the exchange takes ``share`` of the U-Net's time."""
    return replicated(one, 1, ranks, x) / (share * one.step_seconds(1, x, rate))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def entries_table(names: tuple[str, ...] = ("sd21", "zero123", "sdxl")) -> str:
    """What is sent of one view."""
    rows = []
    for one in map(entry, names):
        shape = ", ".join(map(str, one.shape))
        rows.append([UNETS[one.unet].label, shape, f"{one.feature / 2**20:.2f}", f"{one.latent / 2**10:.0f}"])
    return table(["U-Net", "C, H, W", "feature, MiB", "latent, KiB"], rows)


def bytes_table(name: str = "sd21") -> str:
    """MiB that a rank receives per step, one view per rank."""
    one = entry(name)
    rows = [[f"replicated, x = {x}", *(f"{replicated(one, 1, n, x) / 2**20:.1f}" for n in RANKS)] for x in SERVED]
    rows.append(["sharded, any x", *(f"{sharded(one, 1, n) / 2**20:.1f}" for n in RANKS)])
    return table(["MiB per step", *(f"{n} ranks" for n in RANKS)], rows)


def break_even_table() -> str:
    """From how many ranks on sharding sends less."""
    values = (0.1, 0.5, 0.75, 0.9, 0.95, 0.99)
    return table(["x", *map(str, values)], [["ranks", *(f"{break_even(x):.3g}" for x in values)]])


def links_table(name: str = "sd21") -> str:
    """GB/s into each rank."""
    one = entry(name)
    rows = [[str(x), *(f"{link(one, n, x) / 1e9:.1f}" for n in RANKS)] for x in SERVED]
    return table(["x", *(f"{n} ranks" for n in RANKS)], rows)


def cluster_table(name: str = "sd21", x: float = 0.9) -> str:
    """Many GPUs, ``TOGETHER`` to an object: what crosses links inside a group, and what between groups."""
    one = entry(name)
    inside = link(one, TOGETHER, x) / 1e9
    rows = [
        [f"{gpus:,}", str(gpus // TOGETHER), f"{inside:.1f}", "0", f"{link(one, gpus, x) / 1e9:,.1f}"] for gpus in GPUS
    ]
    head = ["GPUs", "objects at once", "GB/s into a rank", "between groups", "GB/s into a rank, all on one object"]
    return table(head, rows)


if __name__ == "__main__":
    for text in (entries_table(), bytes_table(), break_even_table(), links_table(), cluster_table()):
        print(text, end="\n\n")
