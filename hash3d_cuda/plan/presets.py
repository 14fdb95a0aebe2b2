"""The views of the systems that the paper accelerates, and ways to index them.

Camera and timestep ranges are those of the configuration files named: of the paper's released code where it has one.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from hash3d_cuda.keys import Grid
from hash3d_cuda.plan.ranges import ViewRanges

PRESETS = MappingProxyType(
    {
        # dreamfusion-sd_hash3d.yaml
        "dreamfusion": ViewRanges((-10, 45), (-180, 180), (1.5, 2.0), 20, 980, steps=10_000, views_per_step=1),
        # stable-zero123_hash3d.yaml: min_step_percent [50, .7, .3, 200], max_step_percent [50, .98, .8, 200]
        "zero123": ViewRanges(
            (-10, 80), (-180, 180), (3.8, 3.8), (50, 700, 300, 200), (50, 980, 800, 200), steps=1000, views_per_step=1
        ),
        # image_sai_hash3d.yaml: anneal_timestep
        "dreamgaussian": ViewRanges(
            (-30, 30), (-180, 180), (2.0, 2.0), 20, 980, schedule="annealed", steps=500, views_per_step=1
        ),
        # gaussiandreamer-sd-hash3d.yaml; the elevations are the default of GaussianDreamer's cameras
        "gaussian-dreamer": ViewRanges(
            (-10, 60), (-180, 180), (1.5, 4.0), 20, 980, steps=1200, views_per_step=4, stratified=True
        ),
    }
)
PRESET_UNETS = MappingProxyType(
    {"dreamfusion": "sd21", "zero123": "zero123", "dreamgaussian": "zero123", "gaussian-dreamer": "sd21"}
)

# What the released code does: its cells are 20 timesteps, 20 degrees of elevation, 0.1 degrees of azimuth and 10 units
# of distance, the cell of what it finds is not compared, and azimuths are not brought into one period.
RELEASED_INDEXING: MappingProxyType[str, Any] = MappingProxyType(
    {
        "grids": (Grid(elevation=20.0, azimuth=0.1, radius=10.0, timestep=20.0),),
        "num_buckets": 200,
        "queue_length": 3,
        "match": "bucket",
        "azimuth_period": None,
        "timestep_first": True,
    }
)
# Cells, their check and the period as the paper has them, but the key hashed in the released code's order: which cells
# share one of few buckets depends on it. It is what the hit rates that are known from elsewhere come from.
RELEASED_ORDER: MappingProxyType[str, Any] = MappingProxyType({"timestep_first": True})
