"""The ``hash3d`` command. Nothing heavy is imported before a subcommand runs."""

from __future__ import annotations

from hash3d_cuda.cli.main import main

__all__ = ["main"]
