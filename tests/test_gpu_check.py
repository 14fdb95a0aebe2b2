"""What gpu_check.sh makes of test files that ran apart, and the result that it writes."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from gpu_check_report import judge, main, write_result

PASSED = '<testcase name="test_a"/>'
SKIPPED = '<testcase name="test_b"><skipped type="pytest.skip" message="no CUDA device">text</skipped></testcase>'
FAILED = '<testcase name="test_c"><failure message="assert 1 == 2">E  assert 1 == 2</failure></testcase>'
ABSENT = """<testcase name="test_d"><error message="failed on setup with &quot;ModuleNotFoundError: No module named
'diffusers.models'&quot;">E</error></testcase>""".replace("\n", " ")
NOT_COLLECTED = """<testcase name="tests.test_x"><error message="collection failure">ImportError while importing
E   ModuleNotFoundError: No module named 'trimesh'</error></testcase>"""
OURS_ABSENT = """<testcase name="test_e"><error message="ModuleNotFoundError: No module named 'hash3d_cuda.table'"/>
</testcase>"""
COMMAND = """<testcase name="test_f"><failure message="assert 1 == 0">E</failure><system-err>hash3d: error: the package
'diffusers' is missing; install it with: pip install</system-err></testcase>""".replace("\n", " ")
WHOLE_FILE = """<testcase name="tests.test_x"><skipped type="pytest.skip" message="collection skipped">
('tests/test_x.py', 8, "Skipped: could not import 'diffusers': No module named 'diffusers'")</skipped></testcase>"""


def said(folder: Path, *cases: str, status: str = "1") -> tuple[list[str], bool]:
    (folder / "test_x.status").write_text(status)
    (folder / "test_x.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return judge(folder, ["tree/tests/test_x.py"])


def test_tests_that_pass_or_are_skipped_are_counted(tmp_path):
    assert said(tmp_path, PASSED, PASSED, SKIPPED, status="0") == (["1 files: 2 passed, 1 skipped"], True)


def test_a_failure_is_named(tmp_path):
    lines, well = said(tmp_path, PASSED, FAILED)
    assert lines == ["FAILED test_x.py::test_c: assert 1 == 2", "1 files: 1 failed, 1 passed"] and not well


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (ABSENT, "no diffusers"),
        (COMMAND, "no diffusers"),
        (NOT_COLLECTED, "no trimesh"),
        (WHOLE_FILE, "could not import 'diffusers': No module named 'diffusers'"),
    ],
)
def test_what_needs_a_package_that_is_absent_is_left_out(tmp_path, case, why):
    lines, well = said(tmp_path, case)
    assert lines[0] == f"LEFT OUT   1 tests or files of tests ({why}): test_x.py" and well


def test_a_file_that_is_skipped_as_a_whole_is_left_out(tmp_path):
    lines, well = said(tmp_path, SKIPPED, SKIPPED)
    assert lines[0] == "LEFT OUT   2 tests or files of tests (no CUDA device): test_x.py" and well


def test_a_part_of_the_package_that_is_absent_is_a_failure(tmp_path):
    assert not said(tmp_path, OURS_ABSENT)[1]


def test_a_file_that_did_not_end_is_named_with_the_last_it_said(tmp_path):
    (tmp_path / "test_y.log").write_text("first\nlast\n\n")
    assert judge(tmp_path, ["test_y.py"])[0][0] == "not finished: test_y.py (out of time): last"
    (tmp_path / "test_y.status").write_text("139\n")
    lines, well = judge(tmp_path, ["test_y.py"])
    assert lines[0] == "not finished: test_y.py (exit code 139): last" and not well


def test_the_result_is_written_with_what_is_there(tmp_path):
    out, logs = tmp_path / "out", tmp_path / "logs"
    out.mkdir(), logs.mkdir()
    (out / "summary.txt").write_text("ok build\n")
    (logs / "build.log").write_text("built")
    (logs / "gpu.json").write_text('{"rows": []}')
    (logs / "gpu.md").write_text("| figures |")
    (logs / "benchmarks.json").write_text('{"cut off')
    write_result(out, "GPU", logs)
    found = json.loads((out / "GPU.json").read_text())
    assert found == {"summary": ["ok build"], "gpu": {"rows": []}, "benchmarks": None}
    assert "ok build" in (out / "GPU.md").read_text() and "| figures |" in (out / "GPU.md").read_text()
    with tarfile.open(out / "logs.tar.gz") as archive:
        assert "logs/build.log" in archive.getnames()


def test_wrong_words_are_a_usage_error(capsys):
    assert main(["result"]) == 2 and "gpu_check" in capsys.readouterr().err
