"""The figures on the pages are those of the committed results, and there are no others."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # behind an installed hash3d_cuda: the checkout's may have no engine
figures, command = (importlib.import_module(f"docs.figures{part}") for part in ("", ".__main__"))
FigureError, Passage, load, update = figures.FigureError, figures.Passage, figures.load, figures.update
main, passages = command.main, command.passages

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
MEASURED = re.compile(r"[-+−]?\d(?:[\d.,]*\d)?(?:%|x\b|\s?(?:dB|times|ms|us|GB/s)\b)")
WRITTEN = {"docs/claims.md"}  # by a command of its own, tested with it
TESTED = {  # tables that a test of their own compares with the command
    "docs/quality.md": r"^\| `\w+` \| (\d|all) \| \d+ \|.*$",
}
ASKED_FOR = {  # chosen, assumed or counted in the sentence itself, not measured
    "docs/benchmarks.md": ("2 billion look-ups a second, 50 us",),
    "docs/decide.md": ("at most 1.2 times at x = 0.5",),
    "docs/reuse.md": ("at most 9%", "by 0.05 times what was missing", "default 5%"),
    "docs/scaling.md": ("carries 12.5 GB/s",),
    "docs/systems/stable-dreamfusion.md": ("after 40% of the",),
    "docs/tune.md": ("less than 2% is", "40% of the runs", "80% by default"),
}
PASSAGES = passages()


def test_pages_have_the_figures_of_their_results(capsys):
    """After new results: ``python -m docs.figures``."""
    assert update(PASSAGES, ROOT, check=True) == []
    assert main(["--check"]) == 0 and "passages have the figures" in capsys.readouterr().out


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]
)
def test_no_figure_stands_on_its_own(page):
    """Outside of blocks of code, a number with a unit of measurement is in a passage, or in a table with a test."""
    text = (ROOT / page).read_text(encoding="utf-8")
    known = [passage.find(text).span() for passage in PASSAGES if passage.page == page]
    known += [match.span() for match in FENCE.finditer(text)]
    known += [match.span() for match in re.finditer(TESTED.get(page, r"(?!)"), text, re.MULTILINE)]
    for words in ASKED_FOR.get(page, ()):
        assert text.count(words) == 1, "gone, or no longer alone"
        known.append((text.index(words), text.index(words) + len(words)))
    alone = [m for m in MEASURED.finditer(text) if not any(start <= m.start() < end for start, end in known)]
    assert page in WRITTEN or [text[max(0, m.start() - 40) : m.end() + 20] for m in alone] == []


def test_a_stale_figure_is_told_and_set(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Cached it took\n  1.5 ms (-2%), 7 rows, 1,204.5x.\nOther: 1.5 ms.\n", encoding="utf-8")
    passage = Passage("page.md", "Cached it took {:.2f} ms ({:+.0%}), {} rows, {}x", lambda: [2.345, 0.1, 8, "1,300"])
    told = update([passage], tmp_path, check=True)
    assert len(told) == 1 and "has 1.5, -2%, 7, 1,204.5; the results give 2.35, +10%, 8, 1,300" in told[0]
    assert "1.5 ms (-2%)" in page.read_text(encoding="utf-8")
    assert update([passage], tmp_path) == told and update([passage], tmp_path) == []
    assert page.read_text(encoding="utf-8") == "Cached it took\n  2.35 ms (+10%), 8 rows, 1,300x.\nOther: 1.5 ms.\n"


def test_a_passage_that_is_not_there_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("1 of 2, 1 of 2", encoding="utf-8")
    for text, number in (("{} of 3", 0), ("{} of 2", 2)):
        with pytest.raises(FigureError, match=f"page.md has {number} passages"):
            update([Passage("page.md", text, lambda: [1])], tmp_path)
    with pytest.raises(FigureError, match="2 values for 1 figures"):
        Passage("page.md", "{} of 2", lambda: [1, 2]).written()
    with pytest.raises(FigureError, match=r"missing\.json cannot be read"):
        load("missing.json")
    with pytest.raises(FigureError, match=r"no figures for '\{\} of 2' in the results .KeyError: 'bound'"):
        Passage("page.md", "{} of 2", lambda: [{}["bound"]]).written()


def test_plans_are_what_the_command_prints():
    """One of them; the others take minutes: ``python benchmarks/plans.py``."""
    import sys

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import plans
    finally:
        sys.path.pop(0)
    command = "dreamgaussian --eta 0.5 --vae KL-VAE --grids pose"
    assert plans.printed(command) == load("plans.json")[command]
    assert set(load("plans.json")) == set(plans.COMMANDS)
