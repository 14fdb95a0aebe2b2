"""What gpu_check.sh says about its stages: test files that ran apart, and the result in one place.

python benchmarks/gpu_check_report.py tests FOLDER FILE...      the JUnit XML and exit codes in FOLDER of test FILEs
python benchmarks/gpu_check_report.py result OUT NAME LOGS      writes OUT/NAME.json, OUT/NAME.md, OUT/logs.tar.gz

A test that fails because a package is not installed is no failure: such tests are listed as LEFT OUT, by package, and
so are files of which every test is skipped, by reason.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
SAID_MISSING = re.compile(r"the package '([\w.]+)' is missing; install it with")  # as the hash3d command puts it
SKIPPED = re.compile(r"Skipped: ([^\n]*?)[\"']?\)?$")
OURS = ("hash3d_cuda", "torch")  # what has to be there


def judge(folder: Path, files: list[str]) -> tuple[list[str], bool]:
    """Lines that say what became of the test files, the last one in sum, and whether all is well.

    Args:
        folder: for a file ``test_x.py`` it holds ``test_x.status``, pytest's exit code, and ``test_x.xml``; neither
            where the file did not end in time.
        files: paths of the test files.
    """
    counts: Counter[str] = Counter()
    lines, absent = [], {}
    for name in (Path(file).stem for file in files):
        status, report = folder / f"{name}.status", folder / f"{name}.xml"
        if not status.exists() or not report.exists():
            counts["not finished"] += 1
            ending = f"exit code {status.read_text().strip()}" if status.exists() else "out of time"
            lines.append(f"not finished: {name}.py ({ending}){_last_line(folder / f'{name}.log')}")
            continue
        cases = [(case.get("name"), *_outcome(case)) for case in ElementTree.parse(report).iter("testcase")]
        none_ran = all(kind == "skipped" for _, kind, _ in cases)
        for test, kind, why in cases:
            kind = "left out" if none_ran else kind
            counts[kind] += 1
            if kind == "failed":
                lines.append(f"FAILED {name}.py::{test}: {why[:200]}")
            elif kind == "left out":
                absent.setdefault(why, Counter())[name] += 1
    for why, where in sorted(absent.items()):
        several = ", ".join(f"{name}.py" for name in sorted(where))
        lines.append(f"LEFT OUT   {where.total()} tests or files of tests ({why}): {several}")
    total = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return [*lines, f"{len(files)} files: {total or 'no tests'}"], not counts["failed"] + counts["not finished"]


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    """passed, skipped, failed or left out, and why."""
    wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
    if wrong is not None:
        message, text = wrong.get("message") or "", wrong.text or ""
        said = "\n".join([message, text, *(part.text or "" for part in case.iter() if part.tag.startswith("system"))])
        found = MISSING.search(text if message == "collection failure" else message) or SAID_MISSING.search(said)
        if found and found[1].split(".")[0] not in OURS:
            return "left out", f"no {found[1].split('.')[0]}"
        return "failed", " ".join(message.split())
    skipped = case.find("skipped")
    if skipped is None:
        return "passed", ""
    if skipped.get("message") == "collection skipped":  # a whole file
        reason = SKIPPED.search((skipped.text or "").strip())
        return "left out", reason[1] if reason else "skipped"
    return "skipped", " ".join((skipped.get("message") or "").split())


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    return f": {said[-1][:100]}" if said else ""


def write_result(out: Path, name: str, logs: Path) -> None:
    """What ran, and the figures so far."""
    summary = (out / "summary.txt").read_text()
    found = {"summary": summary.splitlines()}
    found |= {part: _read_json(logs / f"{part}.json") for part in ("gpu", "benchmarks")}
    pages = [(logs / page).read_text() for page in ("gpu.md", "benchmarks.md") if (logs / page).exists()]
    (out / f"{name}.json").write_text(json.dumps(found, indent=1))
    (out / f"{name}.md").write_text("\n\n".join(["```text\n" + summary + "```", *pages]) + "\n")
    with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
        archive.add(logs, "logs")


def _read_json(path: Path) -> Any:
    """None for a file that is not there, or that a stage out of time left unfinished."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def main(arguments: list[str]) -> int:
    """Command-line entry."""
    if len(arguments) >= 2 and arguments[0] == "tests":
        lines, well = judge(Path(arguments[1]), arguments[2:])
        print("\n".join(lines))
        return 0 if well else 1
    if len(arguments) == 4 and arguments[0] == "result":
        write_result(Path(arguments[1]), arguments[2], Path(arguments[3]))
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
