"""``hash3d compare``."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import Any

from hash3d_cuda.cli.options import (
    add_run_options,
    check_subject,
    default_folder,
    given_settings,
    load_subject,
    run_into,
    run_settings,
    to_folder,
)
from hash3d_cuda.cli.progress import Bar

ETA = 0.5  # at the paper's 0.1 the cache can change a run by a few per cent at most: too little to see

EPILOG = """Runs twice from one seed, without and with the cache (default eta 0.5), the two taking turns
step by step, and prints seconds, speed-up, hit rate, PSNR and SSIM of both, how far the two agree, and
the speed-up that this hit rate allows at most.

DIR gets compare.json, compare.webp (both turntables side by side), report.html, and both runs in
without-cache/ and with-cache/.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fills the subcommand's parser."""
    parser.epilog = EPILOG
    parser.add_argument("subject", metavar="IMAGE|NAME", help="a picture file, or a name or prompt")
    parser.add_argument(
        "--out", type=to_folder, metavar="DIR", help="folder for what is written (default hash3d-SUBJECT-compare)"
    )
    add_run_options(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    check_subject(options.subject)
    from hash3d_cuda.sds.compare import RUNS, bound_sentence, compare, table_rows
    from hash3d_cuda.sds.settings import GenerateSettings

    settings = run_settings(GenerateSettings, **given_settings(options, eta=ETA))
    options.out = options.out or default_folder(options.subject, "-compare")
    prior, subject = load_subject(options, settings.device)
    with run_into(options.out, *RUNS.values()), ExitStack() as bars:

        def bar(label: str) -> Any:
            return bars.enter_context(Bar(label, options.quiet, cache=label == "with-cache"))

        figures = compare(prior, subject, settings, options.out, bar)
    if figures is None:
        print("hash3d: interrupted; what there is of the two runs is saved in their folders", file=sys.stderr)
        return 1
    if not options.quiet:
        print(text_table([("", "without", "with cache", ""), *table_rows(figures)]))
        print(bound_sentence(figures))
        print(f"wrote {options.out / 'report.html'}")
    return 0


def text_table(rows: list[tuple[str, ...]]) -> str:
    """Rows in columns, the first to the left, figures to the right, the last to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i in (0, last) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
