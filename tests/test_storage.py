"""Saving and loading tables: exact, atomic, and suspicious of what it reads."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from table_cases import UNIT, append, found, keys, query, small

import hash3d_cuda as h3d
from hash3d_cuda import storage
from hash3d_cuda.checks import QUANTISED_DTYPES, STORED_DTYPES

A, B = (0.5, 0.5, 0.5, 0.5), (1.5, 0.5, 0.5, 0.5)


def filled(make_table, **options):
    """A table with full chains, an evicted and a rejected entry, and unequal similarities."""
    table = small(make_table, grids=[UNIT, (9.0, 9.0, 9.0, 9.0)], num_buckets=11, capacity=6, **options)
    nan = float("nan")
    features = [(1, 0), (0, 1), (1, 1), (nan, 0), (2, -1), (0.5, 3), (-1, 0), (7, 7)]
    append(table, A, A, B, A, A, B, A, A, features=features, latents=[float(i) for i in range(8)])
    query(table, A, (5.0, 5.0, 5.0, 50.0))
    return table


def load_like(table, path):
    return type(table).load(path, device=table.device)


@pytest.mark.parametrize("dtype", STORED_DTYPES, ids=str)
def test_a_table_continues_exactly(make_table, tmp_path, dtype):
    table = filled(make_table, feature_dtype=dtype)
    path = tmp_path / "table.safetensors"
    table.save(path)
    loaded = load_like(table, path)
    assert loaded.stats() == table.stats() and loaded.options == table.options
    for _ in range(8):
        assert found(loaded, A, B) == found(table, A, B)
        for row in (A, B):
            one, two = query(loaded, row, latents=[0.3]), query(table, row, latents=[0.3])
            assert torch.equal(one.features, two.features) and torch.equal(one.weights, two.weights)
            assert torch.equal(one.grid, two.grid) and torch.equal(one.serials, two.serials)
        assert torch.equal(loaded.similarity(keys(table, A, B)), table.similarity(keys(table, A, B)))
        assert append(loaded, A, features=[(0.25, 1)]) == append(table, A, features=[(0.25, 1)])
        assert loaded.stats() == table.stats()


def test_an_empty_table(make_table, tmp_path):
    table = small(make_table)
    table.save(tmp_path / "empty")
    loaded = load_like(table, tmp_path / "empty")
    assert len(loaded) == 0 and append(loaded, A) == [0]


def test_options_come_back(make_table, tmp_path):
    options = {
        "grids": [h3d.Grid(1.5, 2.5, 0.3, 7.0), h3d.Grid(30.0, 30.0, 0.7, 1e-3)],
        "num_buckets": 17,
        "queue_length": 5,
        "capacity": 9,
        "match": "bucket",
        "weighting": "nearest_key",
        "similarity_decay": 0.123456789,
        "initial_similarity": -0.1,
        "min_similarity": 0.3,
        "azimuth_period": None,
        "feature_dtype": torch.bfloat16,
    }
    table = make_table((2, 3), (), **options)
    table.save(tmp_path / "table")
    assert load_like(table, tmp_path / "table").options == table.options


def test_a_budget_comes_back_as_the_capacity_it_bought(make_table, tmp_path):
    table = small(make_table, capacity=None, memory_budget="1MiB")
    table.save(str(tmp_path / "table"))
    loaded = load_like(table, str(tmp_path / "table"))
    assert loaded.capacity == table.capacity and loaded.nbytes == table.nbytes


def test_engine_and_oracle_read_each_others_files(device, tmp_path):
    for writer, reader in (
        (h3d.HashTable, h3d.reference.HashTable),
        (h3d.reference.HashTable, h3d.HashTable),
    ):
        table = filled(writer)
        table.save(tmp_path / "table")
        loaded = reader.load(tmp_path / "table", device=device if reader is h3d.HashTable else "cpu")
        assert found(loaded, A, B) == found(table, A, B)
        assert query(loaded, A).features.tolist() == query(table, A).features.tolist()


def test_the_file_is_plain_safetensors(make_table, tmp_path):
    table = filled(make_table)
    table.save(tmp_path / "table")
    state = load_file(tmp_path / "table")
    assert state["serials"].tolist() == [2, 4, 5, 6, 7]  # 0 and 1 evicted, 3 rejected
    assert state["member"].tolist() == [[True, False], [True, False], [True, True], [True, True], [True, True]]
    assert state["counters"].tolist() == [8, 1, 2, 1]
    with safe_open(tmp_path / "table", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "hash3d_cuda.table" and json.loads(metadata["options"])["num_buckets"] == 11


def test_saving_replaces_and_leaves_nothing_else(make_table, tmp_path):
    path = tmp_path / "table"
    path.write_text("old")
    small(make_table).save(path)
    assert os.listdir(tmp_path) == ["table"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_link_is_written_through(make_table, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "table")
    small(make_table).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "table").is_file()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def assert_cannot_save(table, path, reason):
    with pytest.raises(OSError, match=f"cannot write the table to {path}: {reason}") as error:
        table.save(path)
    assert "\n" not in str(error.value)


def test_a_missing_folder(make_table, tmp_path):
    assert_cannot_save(small(make_table), tmp_path / "no" / "table", ".*No such file or directory")


def test_a_folder_in_the_way(make_table, tmp_path):
    (tmp_path / "table").mkdir()
    assert_cannot_save(small(make_table), tmp_path / "table", ".*[Dd]irectory")
    assert os.listdir(tmp_path) == ["table"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(make_table, tmp_path):
    small(make_table).save(tmp_path / "table")
    before = (tmp_path / "table").read_bytes()
    tmp_path.chmod(0o555)
    try:
        assert_cannot_save(filled(make_table), tmp_path / "table", ".*[Pp]ermission")
        assert (tmp_path / "table").read_bytes() == before
    finally:
        tmp_path.chmod(0o755)


def test_a_file_that_does_not_fit(make_table, tmp_path):
    """A limit on file sizes stands in for a full disk: the write fails half-way just the same."""
    path = tmp_path / "table"
    table = filled(make_table)
    table.save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        assert_cannot_save(table, path, ".*(too large|No space)")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["table"]


def test_a_full_disk_when_syncing(make_table, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "table"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    assert_cannot_save(small(make_table), path, "No space left on device")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table"]


def assert_refuses(make_table, path, why):
    with pytest.raises(ValueError, match=f"cannot load a table from {path}: .*{why}") as error:
        make_table.func.load(path, device=make_table.keywords["device"])
    assert "\n" not in str(error.value)


def test_a_missing_file(make_table, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        make_table.func.load(tmp_path / "nothing")


def test_truncated_anywhere(make_table, tmp_path):
    table, path = filled(make_table), tmp_path / "table"
    table.save(path)
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert_refuses(make_table, path, "truncated")


def test_any_bit_flipped_is_noticed(make_table, tmp_path):
    """Every 5th byte of the file, header included, with one bit turned over. A flip in the device's name or in the
    spelling of a header may load, but then it is the same table."""
    table, path = filled(make_table), tmp_path / "table"
    table.save(path)
    content = path.read_bytes()
    for place in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot load a table from"):
            make_table.func.load(path, device="cpu")


def test_foreign_files(make_table, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps({"a": 1}))
    assert_refuses(make_table, path, "truncated or not a safetensors file")
    path.write_bytes(os.urandom(4096))
    assert_refuses(make_table, path, "truncated or not a safetensors file")
    save_file({"a": torch.zeros(3)}, path)
    assert_refuses(make_table, path, "its format is None, not 'hash3d_cuda.table'")


def test_another_version(make_table, tmp_path):
    rewrite(make_table, tmp_path / "table", metadata={"version": "2"})
    assert_refuses(make_table, tmp_path / "table", "its version is '2', this release reads '1'")


def rewrite(make_table, path, *, dtype=torch.float32, metadata=None, options=None, **tensors):
    """Writes a filled table's file with some of its content replaced and the checksums made to match."""
    table = filled(make_table, feature_dtype=dtype)
    table.save(path)
    with safe_open(path, "pt") as file:
        everything = file.metadata()
    state = {**load_file(path), **tensors}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    if options is not None:
        everything["options"] = json.dumps({**json.loads(everything["options"]), **options})
    everything["checksums"] = json.dumps(storage._sums(everything["options"], state))
    save_file(state, path, metadata={**everything, **(metadata or {})})


NAN = float("nan")
LAST = torch.tensor([2**63 - 1, 1, 2, 1])  # the next append but one would have a negative serial


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("it holds", {"similarity": None}),
        ("it holds", {"extra": torch.zeros(1)}),
        ("it has scales, for features of torch.float32", {"scales": torch.ones(5, 1)}),
        ("it has no scales, for features of torch.int8", {"options": {"feature_dtype": "int8"}}),
        ("checksums are not JSON", {"metadata": {"checksums": "{"}}),
        ("checksum of", {"metadata": {"checksums": "[]"}}),
        ("checksum of options", {"metadata": {"options": "{}"}}),
        ("options are not a table's", {"options": {"queue_length": -1}}),
        ("options are not a table's", {"options": {"feature_dtype": "float64"}}),
        ("options are not a table's", {"options": {"feature_dtype": "nn"}}),
        ("options are not a table's", {"options": {"grids": [[1, 2, 3]]}}),
        ("options are not a table's", {"options": {"surprise": 1}}),
        ("options lack the capacity", {"options": {"capacity": None, "memory_budget": 10**9}}),
        ("serials is", {"serials": torch.zeros(2, 2, dtype=torch.int64)}),
        ("keys is", {"keys": torch.zeros(5, 3)}),
        ("latents is", {"latents": torch.zeros(4, 1)}),
        ("features is", {"features": torch.zeros(5, 2, dtype=torch.float16)}),
        ("member is", {"member": torch.ones(5, 3, dtype=torch.bool)}),
        ("member is", {"member": torch.ones(5, 2, dtype=torch.uint8)}),
        ("similarity is", {"similarity": torch.zeros(2, 12)}),
        ("similarity is", {"options": {"num_buckets": 12}}),
        ("counters is", {"counters": torch.zeros(3, dtype=torch.int64)}),
        ("keys holds numbers that are not finite", {"keys": torch.full((5, 4), NAN)}),
        ("latents holds numbers that are not finite", {"latents": torch.full((5, 1), float("inf"))}),
        ("features holds numbers that are not finite", {"features": torch.full((5, 2), NAN)}),
        ("similarity holds infinite numbers", {"similarity": torch.full((2, 11), -float("inf"))}),
        ("counters contradict", {"counters": torch.tensor([8, 9, 0, 0])}),
        ("counters contradict", {"counters": torch.tensor([8, 1, 1, 2])}),
        ("counters contradict", {"counters": torch.tensor([-8, -9, 0, 0])}),
        ("counters contradict", {"counters": LAST, "serials": torch.arange(2**63 - 6, 2**63 - 1)}),
        ("counters contradict", {"counters": torch.tensor([8, 1, 2**63 - 1, 1])}),
        ("serials are not ascending numbers from 2 to 7", {"serials": torch.tensor([1, 4, 5, 6, 7])}),
        ("serials are not ascending numbers", {"serials": torch.tensor([2, 4, 5, 6, 8])}),
        ("serials are not ascending numbers", {"serials": torch.tensor([2, 4, 6, 5, 7])}),
        ("serials are not ascending numbers", {"serials": torch.tensor([2, 4, 5, 5, 7])}),
        ("serials are not ascending numbers", {"serials": torch.tensor([-9, 4, 5, 6, 7])}),
        ("entries that are in no chain", {"member": torch.zeros(5, 2, dtype=torch.bool)}),
        ("more than were appended", {"counters": torch.tensor([8, 4, 0, 0])}),
        ("a chain holds more than 1 entries", {"options": {"queue_length": 1}}),
        (
            "a chain holds more than 3 entries",
            {"keys": torch.zeros(5, 4), "member": torch.ones(5, 2, dtype=torch.bool)},
        ),
    ],
)
def test_inconsistent_files(make_table, tmp_path, why, changes):
    rewrite(make_table, tmp_path / "table", **changes)
    assert_refuses(make_table, tmp_path / "table", why)


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("scales is", {"scales": torch.ones(5, 2)}),
        ("scales holds numbers", {"scales": torch.full((5, 1), NAN)}),
        ("scales holds numbers", {"scales": torch.full((5, 1), -1.0)}),
        ("scales holds numbers", {"scales": torch.full((5, 1), 1e30)}),
        ("scales holds numbers", {"scales": torch.full((5, 1), 147.0)}),  # 448 times that is no float16
        ("features holds numbers", {"features": torch.full((5, 2), NAN).to(torch.float8_e4m3fn)}),
    ],
)
def test_inconsistent_features_in_8_bits(make_table, tmp_path, why, changes):
    rewrite(make_table, tmp_path / "table", dtype=torch.float8_e4m3fn, **changes)
    assert_refuses(make_table, tmp_path / "table", why)


@pytest.mark.parametrize("dtype", QUANTISED_DTYPES, ids=str)
def test_the_largest_numbers_come_back_in_8_bits(make_table, tmp_path, dtype):
    table = small(make_table, feature_dtype=dtype)
    append(table, A, features=[(65504.0, -65504.0)])
    table.save(tmp_path / "table")
    assert query(load_like(table, tmp_path / "table"), A).features.tolist() == [[65504.0, -65504.0]]


def test_rewriting_alone_does_no_harm(make_table, tmp_path):
    """So that the refusals above are due to what was changed."""
    rewrite(make_table, tmp_path / "table")
    assert len(make_table.func.load(tmp_path / "table", device=make_table.keywords["device"])) == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without the saved device")
def test_a_device_that_is_not_here(make_table, tmp_path):
    rewrite(make_table, tmp_path / "table", options={"device": "cuda:0"})
    with pytest.raises(ValueError, match=r"device: expected .*, got 'cuda:0'"):
        make_table.func.load(tmp_path / "table")
    assert make_table.func.load(tmp_path / "table", device="cpu").device == torch.device("cpu")


def test_a_device_is_not_replaced(make_table, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert_cannot_save(small(make_table), tmp_path / "pipe", "there is something that is not a regular file")
    assert (tmp_path / "pipe").is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_long_and_foreign_names(make_table, tmp_path):
    """Up to what the file system takes, 255 bytes; with spaces and beyond ASCII; as bytes."""
    table = filled(make_table)
    for name in ("a" * 255, "ein Würfel 表.safetensors"):
        table.save(tmp_path / name)
        assert len(load_like(table, tmp_path / name)) == len(table)
        table.save(os.fsencode(tmp_path / name))
        assert len(load_like(table, os.fsencode(tmp_path / name))) == len(table)


def test_many_threads_save_to_one_path(make_table, tmp_path):
    table, path = filled(make_table), tmp_path / "table"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: table.save(path), range(20)))
    assert len(load_like(table, path)) == len(table) and os.listdir(tmp_path) == ["table"]


@pytest.mark.parametrize("wrong", [None, 5, True, 1.5, ["table"], torch.zeros(1)], ids=str)
def test_what_is_no_path_is_refused(make_table, wrong):
    for call in (lambda: make_table.func.load(wrong), lambda: small(make_table).save(wrong)):
        with pytest.raises(TypeError, match=r"path: expected .+, got .+; .+"):
            call()


def test_a_descriptor_is_neither_read_nor_closed(make_table, tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(TypeError, match=f"path: expected .*, got {descriptor} "):
            make_table.func.load(descriptor)
        os.fstat(descriptor)
    finally:
        os.close(descriptor)
