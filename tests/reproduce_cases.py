"""A small prior, a context and an experiment of three numbers, for tests of hash3d reproduce."""

from __future__ import annotations

import types

from reproduce_units import OBJECTS, context, double, tiny_prior

from hash3d_cuda.reproduce import runner
from hash3d_cuda.reproduce.base import Unit

__all__ = ["OBJECTS", "collect", "context", "double", "experiment", "tiny_prior"]


def experiment(numbers=(1, 2, 3), function=double, name="doubles"):
    def plot(summary, path):
        path.write_bytes(b"picture")

    def summarise(context, results):
        rows = [{"number": int(key), "double": float(one["double"])} for key, one in results.items()]
        return {"rows": rows, "findings": [f"{len(results)} numbers."]}

    module = types.ModuleType(name)
    module.ID, module.TITLE, module.PAPER, module.plot = name, "Doubles", {"claim": "twice as much"}, plot
    module.units = lambda context: [Unit(str(n), function, {"number": n}, float(n)) for n in numbers]
    module.summarise = summarise
    return module


def collect(module, where, jobs=1):
    found = {}
    failures = runner.reproduce([module], where, jobs, lambda module, results: found.update(results), quiet=True)
    return found, failures
