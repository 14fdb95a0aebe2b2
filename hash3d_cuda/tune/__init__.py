"""``hash3d tune``: the fastest settings of the cache that keep a quality bound, found in a bounded number of runs."""

from hash3d_cuda.tune.search import Request, tune
from hash3d_cuda.tune.space import SPACE, candidates, make_space

__all__ = ["SPACE", "Request", "candidates", "make_space", "tune"]
