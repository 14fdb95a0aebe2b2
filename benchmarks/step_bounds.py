"""How much can the cache speed up a step of score distillation at most? Counted, not timed.

Multiply-accumulates of the public U-Nets and VAEs, attention included, on the meta device: no weights, no GPU, half a
minute. A step is one item: the U-Net's two rows of classifier-free guidance, and the VAE's encoder forward and
backward. Rendering and the table itself are left out, every retrieval is a hit, so real speed-ups lie below.

    python benchmarks/step_bounds.py            the table of docs/limits.md
"""

from __future__ import annotations

from hash3d_cuda.bounds import step_bound
from hash3d_cuda.unet.configs import UNETS
from hash3d_cuda.unet.cost import CFG_ROWS, encoder_cost
from hash3d_cuda.unet.cost import unet_cost as count_unet

POSITION = 2  # the paper's: the input of the last up-sampling layer
SERVED = (0.1, 0.5, 0.9, 1.0)  # x, the share of items served from the cache
NAMES = {UNETS[name].label: name for name in ("sd21", "zero123", "sdxl")}


def unet_cost(label: str) -> tuple[float, float]:
    """Of one row: the full pass in GMAC, and r, what a hit costs of it."""
    cost = count_unet(NAMES[label], positions=(POSITION,))
    return cost.full_gmacs, cost.r[POSITION]


def bound(full: float, r: float, encoder: float, x: float) -> float:
    """Largest speed-up of a step: ``1 / (1 - u x (1 - r))``, u being the U-Net's share of it."""
    share = CFG_ROWS * full / (CFG_ROWS * full + encoder)
    return step_bound(x, r, share)


def columns() -> dict[str, tuple[float, float, float]]:
    """Heading to (GMAC of a row, r, GMAC of the encoder)."""
    costs = {name: unet_cost(name) for name in NAMES}
    found = {f"U-Net {name}": (*cost, 0.0) for name, cost in costs.items()}
    for step, name, side in (("SD step", "SD 2.1", 512), ("Zero123 step", "Zero123", 256)):
        for kind in ("KL-VAE", "TAESD"):
            found[f"{step}, {kind} {side}"] = (*costs[name], encoder_cost(kind, side))
    return found


def table() -> str:
    """The bounds as a Markdown table."""
    costs = columns()
    lines = ["| x | " + " | ".join(costs) + " |", "|---" * (1 + len(costs)) + "|"]
    for x in SERVED:
        lines.append(f"| {x} | " + " | ".join(figure(bound(*cost, x)) for cost in costs.values()) + " |")
    return "\n".join(lines)


def figure(speed_up: float) -> str:
    """Small gains need the third decimal."""
    return f"{speed_up:.3f}" if speed_up < 1.2 else f"{speed_up:.2f}" if speed_up < 10 else f"{speed_up:.1f}"


if __name__ == "__main__":
    print(table())
