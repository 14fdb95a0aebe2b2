"""What a setting loses: by a score against the truth, or, where there is none, by the distance to the run without a
cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hash3d_cuda.checks import check_real

AGREEMENT = "agreement"
BOUNDS = {"psnr": 0.2, "ssim": 0.01, AGREEMENT: 25.0}
"""Defaults: dB that may be lost, SSIM that may be lost, and dB of agreement that must be kept."""
OTHER_BOUND = 0.01
UNITS = {"psnr": "dB of PSNR", "ssim": "SSIM", AGREEMENT: "dB of agreement"}


@dataclass(frozen=True)
class Measure:
    """A score and the most that may be lost of it.

    Attributes:
        name: ``"psnr"`` and ``"ssim"`` are against the true object's views; ``"agreement"`` is the PSNR against the
            views of the run without a cache, no quality but a distance, of which ``bound`` must be kept; other names
            are scores of :mod:`hash3d_cuda.perceptual`.
        bound: the most that may be lost, or the agreement that must be kept.
    """

    name: str
    bound: float

    def __post_init__(self) -> None:
        check_real("max_loss" if self.name != AGREEMENT else "min_agreement", self.bound)

    @property
    def limit(self) -> float:
        """The most that :meth:`loss` may be."""
        return 0.0 if self.name == AGREEMENT else self.bound

    @property
    def text(self) -> str:
        """The bound in words."""
        if self.name == AGREEMENT:
            return f"PSNR against the views of the run without the cache at least {self.bound:g} dB"
        return f"at most {self.bound:g} {UNITS.get(self.name, self.name)} lost against the run without the cache"

    def loss(self, run: Mapping[str, Any], baseline: Mapping[str, Any]) -> float:
        """What a run lost; both are figures of :func:`hash3d_cuda.tune.race.figures`.

        Raises:
            ValueError: the score was not to be had.
        """
        if self.name not in run["quality"]:
            known = ", ".join(run["quality"])
            raise ValueError(f"measure: expected one that these runs have ({known}), got {self.name!r}")
        value = float(run["quality"][self.name])
        if self.name == AGREEMENT:
            return self.bound - value
        change = float(baseline["quality"][self.name]) - value
        from hash3d_cuda.perceptual import DISTANCES

        return -change if self.name in DISTANCES else change


def make_measure(name: str | None, bound: float | None, truth: bool) -> Measure:
    """The measure by its name, or PSNR where the truth is known and agreement where it is not."""
    name = name or ("psnr" if truth else AGREEMENT)
    return Measure(name, BOUNDS.get(name, OTHER_BOUND) if bound is None else bound)
