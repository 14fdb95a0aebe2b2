"""What the tests of ``hash3d tune`` share: a tiny prior whose truth is bundled, and made-up costs."""

from __future__ import annotations

from pathlib import Path

from sds_stand_ins import TinyPrior

from hash3d_cuda.sds.settings import GenerateSettings
from hash3d_cuda.tune.race import TuneContext

OBJECTS = ("chicken", "cactus")
BASE = GenerateSettings(steps=12, scene_size=8, num_buckets=1009, memory_budget=2**22)
WIDE = "90,360,1,1000"
COSTS = {
    "share": 0.8, "r": {"1": 0.1, "2": 0.2, "3": 0.4},
    "table": {k: {"feature": [2, 16, 4, 4], "latent": [3, 4, 4], "dtype": "float32"} for k in "123"},
}  # fmt: skip


def tiny_prior():
    return TinyPrior(size=64, vocabulary=OBJECTS)


def context(out: Path, **changes) -> TuneContext:
    return TuneContext(**{"out": out, "quick": True, "objects": OBJECTS, "source": tiny_prior, **changes})
