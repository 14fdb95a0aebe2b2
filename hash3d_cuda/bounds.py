"""How much the cache can speed things up at most, from what it serves and what a hit costs."""

from __future__ import annotations


def unet_bound(x: float, r: float) -> float:
    """Most that the cache can speed up the U-Net: 1 / (1 - x (1 - r)).

    Args:
        x: share of all views served from the cache.
        r: cost of a hit as a share of a full pass.
    """
    return step_bound(x, r, 1.0)


def step_bound(x: float, r: float, share: float) -> float:
    """The same for a whole step of which the U-Net is ``share`` (0 to 1) without the cache."""
    return 1 / (1 - share * x * (1 - r))
