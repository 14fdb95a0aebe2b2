"""Seconds of calls on a device, per call: what :mod:`gpu` measures with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


class Clock:
    """Times functions on one device, per call."""

    def __init__(self, device: str, rounds: int):
        self.cuda, self.rounds = device == "cuda", rounds

    def calls(self, functions: list[Callable[[], Any]]) -> float:
        """Median seconds of one of the functions when all run in turn, in a graph on a GPU."""
        for function in functions:
            function()
        if not self.cuda:
            return statistics.median(self._seconds(functions) for _ in range(self.rounds)) / len(functions)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for function in functions:
                function()
        return self.events(graph.replay) / len(functions)

    def events(self, function: Callable[[], Any]) -> float:
        """Median seconds on the device of one call."""
        if not self.cuda:
            return statistics.median(self._seconds([function]) for _ in range(self.rounds))
        times = []
        for _ in range(self.rounds + 2):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times[2:])

    def host(self, function: Callable[[], Any]) -> float:
        """Median seconds until one call returns, whatever the device still has to do."""
        times = []
        for _ in range(self.rounds):
            if self.cuda:
                torch.cuda.synchronize()
            times.append(self._seconds([function]))
        return statistics.median(times)

    @staticmethod
    def _seconds(functions: list[Callable[[], Any]]) -> float:
        start = time.perf_counter()
        for function in functions:
            function()
        return time.perf_counter() - start
