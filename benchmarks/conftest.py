"""The summary: the machine, and for each benchmark its median, GB/s and ratio to what it is held against."""

from __future__ import annotations

from typing import Any

import axes
import pytest
import report


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """pytest-benchmark's own tables compare unlike things; the summary below takes their place."""
    if hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Into the JSON too."""
    machine_info["hash3d"] = axes.machine()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the table."""
    session = getattr(config, "_benchmarksession", None)
    found = [bench for bench in getattr(session, "benchmarks", []) if bench and not bench.has_error]
    if not found:
        return
    terminalreporter.section("benchmarks")
    terminalreporter.line(report.machine_line(axes.machine()))
    terminalreporter.line("Ratio: median over rounds of time / time of what it is held against, measured in turn.")
    terminalreporter.line("")
    for line in report.plain([report.row(bench.name, bench.stats.median, bench.extra_info) for bench in found]):
        terminalreporter.line(line)
