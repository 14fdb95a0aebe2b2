"""The paper's own figures, and the arithmetic that they allow: tables 1 to 4 and section 4."""

from __future__ import annotations

import math
from dataclasses import dataclass

ETA = 0.1  # section 4.1
OBJECTS, PROMPTS = 30, 50  # section 4.1


@dataclass(frozen=True)
class System:
    """A row pair of table 1 or 2.

    Attributes:
        title: as in the table, and of the recipe.
        table: 1 (image) or 2 (text).
        claimed: speed-up.
        minutes: without the cache, and with it where the table gives that.
        gmacs: without and with.
        quality: (mean, std) without and with: PSNR in table 1, CLIP-G/14 in table 2.
    """

    title: str
    table: int
    claimed: float
    minutes: tuple[float, float | None]
    gmacs: tuple[float, float]
    quality: tuple[tuple[float, float], tuple[float, float]]

    @property
    def bound(self) -> float:
        """Most that fewer MACs alone allow: as if nothing but the U-Net took time."""
        return self.gmacs[0] / self.gmacs[1]


IMAGE, TEXT, BOTH = (168.78, 154.76), (678.60, 622.21), (847.38, 776.97)
SYSTEMS = (
    System("DreamGaussian", 1, 4.0, (2.5, None), IMAGE, ((16.202, 2.501), (16.356, 2.533))),
    System("Zero-123 (NeRF)", 1, 3.3, (20, 7), IMAGE, ((17.773, 3.074), (17.961, 3.034))),
    System("Zero-123 (GS)", 1, 2.0, (6, 3), IMAGE, ((18.409, 2.615), (18.616, 2.898))),
    System("Magic123", 1, 1.6, (120, 74), BOTH, ((18.718, 2.446), (18.631, 2.726))),
    System("DreamFusion", 2, 1.5, (60, 40), TEXT, ((0.407, 0.088), (0.411, 0.070))),
    System("Latent-NeRF", 2, 1.8, (30, 17), TEXT, ((0.406, 0.033), (0.406, 0.038))),
    System("SDS+GS", 2, 1.9, (78, 40), TEXT, ((0.413, 0.048), (0.402, 0.062))),
    System("Magic3D", 2, 1.5, (90, 60), TEXT, ((0.399, 0.012), (0.393, 0.011))),
    System("GaussianDreamer", 2, 1.5, (15, 10), TEXT, ((0.412, 0.049), (0.416, 0.057))),
)
GRID_SCORES = {"fine": (0.408, 0.033), "middle": (0.345, 0.055), "coarse": (0.287, 0.078), "adaptive": (0.411, 0.07)}
"""CLIP-G/14 of table 4."""
STORING_ALL, HASHING = (0.661, 0.096), (0.665, 0.104)
"""CLIP-G/14 of table 3, Zero-123 (NeRF)."""
DREAMFUSION_VIEWS, A5000_GIB = 10_000, 24


def hit_cost(gmacs: tuple[float, float], eta: float = ETA) -> float:
    """r: what a hit costs as a share of a full pass, if ``after = before (1 - eta (1 - r))``, every retrieval a hit."""
    return 1 - (1 - gmacs[1] / gmacs[0]) / eta


def standard_error(one: tuple[float, float], two: tuple[float, float], count: int) -> float:
    """Of the difference of two means of ``count`` values each, (mean, std) given, taken as independent."""
    return math.hypot(one[1], two[1]) / math.sqrt(count)


def compared(one: tuple[float, float], two: tuple[float, float], count: int, digits: int) -> str:
    """A difference of two means and its standard error as text."""
    return f"{two[0] - one[0]:+.{digits}f} ± {standard_error(one, two, count):.{digits}f}"
