"""``python -m docs.figures``, in the checkout's folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from docs.figures import ROOT, FigureError, Passage, update


def passages() -> list[Passage]:
    """All that are known. Some are made of what results have, so these are read here."""
    from docs.figures import plans, quality, reuse, speed

    return [*reuse.PASSAGES, *quality.PASSAGES, *speed.PASSAGES, *plans.PASSAGES]


def main(argv: Sequence[str] | None = None) -> int:
    """0: all is well, or was mended; 1: a figure is stale and stays so with --check, or a page has no such passage."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.figures", description="Sets the pages' figures from benchmarks/results."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a figure is stale")
    options = parser.parse_args(argv)
    try:
        known = passages()
        stale = update(known, ROOT, options.check)
    except FigureError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 1
    print("\n".join(stale) if stale else f"{len(known)} passages have the figures of their results")
    return int(bool(stale) and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
