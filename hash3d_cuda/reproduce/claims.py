"""The paper's claims beside what was measured: ``python -m hash3d_cuda.reproduce.claims RESULTS_DIR --out FILE``.

Every figure in the page comes from the experiments' JSON or is computed from the paper's own numbers, so that the page
cannot drift from either; ``--check`` fails when it has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hash3d_cuda.reproduce import paper_numbers as paper
from hash3d_cuda.reproduce.claim_data import FAILS, HOLDS, NOT_JUDGED, NOT_RUN, Judgement, Missing, Results, number
from hash3d_cuda.reproduce.claim_list import CLAIMS, Claim
from hash3d_cuda.reproduce.claim_rules import CHANGE, CLOSE, TOLERANCE, kind_of

PURPOSE = "The paper's claims beside what was measured, as a page."
PAGE = Path("docs/claims.md")
NEAR = 0.9
"""A measured speed-up of at least this share of the claimed one confirms it."""
HEAD = """# The paper's claims

For each claim of the paper: what it says, what follows from its own numbers, what was measured here, and a verdict.
This page is written by `python -m hash3d_cuda.reproduce.claims` from the experiments' JSON files, and a test holds
it to them. Measured is what `hash3d reproduce` runs: the shipped prior at small size on a CPU, not the paper's models
on its card, so a verdict is about the method as far as that prior shows it. Scores count as equal within {tolerance}
dB, pictures as closely matching from {close} dB on, a speed-up as confirmed from {near:.0%} of the claimed one on.
"""


def page(results: Results) -> str:
    """The whole page as Markdown."""
    judged = [(claim, *judged_claim(claim, results)) for claim in CLAIMS]
    systems = [(system, judged_system(system, results)) for system in paper.SYSTEMS]
    lines = [HEAD.format(tolerance=TOLERANCE, close=f"{CLOSE:.0f}", near=NEAR), "## At a glance", ""]
    lines += ["| claim | verdict |", "|---|---|"]
    lines += [f"| {claim.title} | {short(judgement)} |" for claim, judgement, _ in judged]
    lines += [f"| {system.claimed:g}x on {system.title} | {short(judgement)} |" for system, judgement in systems]
    for claim, judgement, sources in judged:
        lines += ["", f"## {claim.title}", "", f"- **The paper**: {claim.says}."]
        lines += [f"- **From its own numbers**: {claim.follows}", f"- **Measured**: {judgement.measured}"]
        lines += [f"- **Where**: {source}" for source in sources]
        lines += [f"- **Verdict**: {short(judgement)}."]
    return "\n".join([*lines, "", *speed_section(systems, results)])


def short(judgement: Judgement) -> str:
    """The verdict with its remark."""
    return judgement.verdict + (f" ({judgement.remark})" if judgement.remark else "")


def judged_claim(claim: Claim, results: Results) -> tuple[Judgement, list[str]]:
    """A claim's verdict, and the sources of what it was judged by."""
    results.used.clear()
    try:
        judgement = claim.judge(results)
    except Missing as missing:
        # Run, and without what the claim is about, such as PSNR where no true views are bundled at the prior's size.
        sources = [results.source(name) for name in results.used]
        return Judgement(f"{missing}.", NOT_JUDGED if sources else NOT_RUN), sources
    return judgement, [results.source(name) for name in results.used]


def judged_system(system: paper.System, results: Results) -> Judgement:
    """Measured at the recipe's own settings, which are the paper's; the machine's drift is divided out."""
    try:
        rows = [row for row in results.rows("tables-1-2", system=system.title) if kind_of(row) == "own settings"]
        if not rows:
            raise Missing(f"tables-1-2 has no cached run of {system.title}")
        measured, drift, served = (number(rows[0], name) for name in ("speed-up", "drift", "x"))
    except Missing as missing:
        return Judgement(str(missing), NOT_RUN)
    bound, change = rows[0].get("bound"), rows[0].get(CHANGE)
    most, quality = ("unknown" if v is None else format(v, form) for v, form in ((bound, ".3f"), (change, "+.2f")))
    text = f"{measured:.2f} (drift {drift:.2f}) | {most} at x {served:.3f} | {quality}"
    return Judgement(text, HOLDS if measured / drift >= NEAR * system.claimed else FAILS)


def speed_section(systems: Sequence[tuple[paper.System, Judgement]], results: Results) -> list[str]:
    """One table for tables 1 and 2."""
    lines = [
        "## Speed-ups of the systems", "",
        '- **The paper**: "enhancing efficiency by 1.5 ~ 4x" (abstract; tables 1 and 2: claimed, and minutes without '
        'and with).',
        "- **From its own numbers**: the ratio of its MACs is the most that the U-Net can gain, and the whole step "
        f"gains less. {sum(s.claimed > s.bound for s, _ in systems)} of {len(systems)} claims are above it, so the "
        "rest of the time saved comes from elsewhere: the released code also leaves out the baseline's VAE decoding "
        "and has other batch sizes and resolutions ([limits](limits.md)).",
        "- **Measured**: speed-up at the recipe's own settings, the bound for the share x that was served, and the "
        "change of PSNR in dB. Drift is how much faster the second run's equal work went, which is the machine's "
        "doing: "
        "the verdict is on the speed-up over the drift.", "",
        "| system | claimed | minutes | MACs allow | measured | bound | PSNR | verdict |", "|---" * 8 + "|",
    ]  # fmt: skip
    for system, judgement in systems:
        before, after = system.minutes
        minutes = f"{before:g} to {'?' if after is None else f'{after:g}'}"
        cells = judgement.measured if judgement.verdict != NOT_RUN else "- | - | -"
        lines.append(
            f"| {system.title} | {system.claimed:g}x | {minutes} | {system.bound:.3f}x | {cells} | "
            f"{judgement.verdict} |"
        )
    where = results.source("tables-1-2") if "tables-1-2" in results.found else "tables-1-2 was not run."
    return [*lines, "", f"- **Where**: {where}", ""]


def check(text: str, path: Path) -> str | None:
    """What differs between the page and the file, or None."""
    try:
        kept = path.read_text("utf-8")
    except OSError as error:
        return f"claims: {str(path)!r} cannot be read ({error.strerror})"
    if kept == text:
        return None
    pairs = zip([*kept.splitlines(), ""], [*text.splitlines(), ""], strict=False)
    line = next((index for index, (one, two) in enumerate(pairs, 1) if one != two), 0)
    return f"claims: {str(path)!r} differs from its results from line {line} on; write it again without --check"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 1 where ``--check`` finds a difference or a file is damaged."""
    parser = argparse.ArgumentParser(prog="python -m hash3d_cuda.reproduce.claims", description=PURPOSE)
    parser.add_argument("results", type=Path, metavar="RESULTS_DIR", help="folder that hash3d reproduce wrote")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help=f"the page (default {PAGE})")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when FILE is out of date")
    options = parser.parse_args(arguments)
    try:
        text = page(Results.load(options.results))
        if options.check:
            problem = check(text, options.out)
            if problem:
                print(problem, file=sys.stderr)
            return 1 if problem else 0
        options.out.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
