"""Settings in a file: what is written is read back, what is wrong is named, and the command line goes first."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hash3d_cuda.cli.main import UsageError, main
from hash3d_cuda.cli.options import given_settings
from hash3d_cuda.sds.recipes.files import tomllib
from hash3d_cuda.sds.settings import POSE_GRIDS, GenerateSettings
from hash3d_cuda.sds.settings_file import read_settings, settings_text

VALUES = st.one_of(
    st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.text(),
    st.lists(st.lists(st.floats(1e-30, 1e30), min_size=1), min_size=1),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), VALUES), st.text("ab\n#"))
def test_what_is_written_is_read_back(values, comment):
    assert tomllib.loads(settings_text(values, [comment])) == values


def test_settings_are_read_back(tmp_path):
    told = dict(eta=0.7, grids=POSE_GRIDS, min_similarity=None, compile=("unet",), t_move=(0.8, 0.3, 0.1, 0.2))
    (tmp_path / "a.toml").write_text(settings_text(told, ["found"]))
    read = read_settings(tmp_path / "a.toml")
    assert "min_similarity" not in read
    assert GenerateSettings.from_dict(read) == GenerateSettings(**told)
    (tmp_path / "b.toml").write_text('grids = "pose"\n')
    assert GenerateSettings(**read_settings(tmp_path / "b.toml")).grids == POSE_GRIDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eta = 2", "eta: expected a finite number from 0"),
        ("colour = 1", "unknown field colour"),
        ("eta = ", "cannot be read"),
        ('grids = "fine"', "grids: expected"),
        ("[[stages]]", "is a recipe; give it with --recipe"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    assert main(["generate", "teddy bear", "--settings", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hash3d: error: settings: {str(path)!r}") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^settings: .*nowhere\.toml"):
        read_settings(tmp_path / "nowhere.toml")


def test_the_command_line_goes_first(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text("eta = 0.7\nposition = 3\ncapacity = 5\n")
    nothing = dict(settings=str(path), preset=None, eta=None, position=None, memory_budget=None, grids=None)
    assert given_settings(argparse.Namespace(**nothing)) == {"eta": 0.7, "position": 3, "capacity": 5}
    options = argparse.Namespace(**{**nothing, "eta": 0.9, "memory_budget": "1GiB"})
    assert given_settings(options, eta=0.5) == {"eta": 0.9, "position": 3, "memory_budget": "1GiB"}
    path.write_text("eta = 3")
    with pytest.raises(UsageError, match=r"^settings: "):
        given_settings(options)
