"""The benchmarks' correctness parts at tiny sizes, the baselines, and the report. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
DTYPES = [torch.float16, torch.float32, torch.bfloat16]
SMALL = dict(
    block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=16, attention_head_dim=4, norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip


@pytest.fixture
def load(monkeypatch):
    """Imports a module of the benchmarks' folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("weighing", ["one", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_query_engine_and_baselines_agree(load, dtype, weighing):
    stored, axes = load("stored"), load("axes")
    stored.check_query(stored.fill(axes.TINY, dtype, "cpu", weighing), weighing)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_append_engine_and_baselines_agree(load, dtype):
    stored, axes = load("stored"), load("axes")
    stored.check_append(stored.fill(axes.TINY, dtype, "cpu", "all"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_features_in_8_bits_are_nearly_those_of_float16(load, dtype):
    stored, axes = load("stored"), load("axes")
    half = stored.fill(axes.TINY, torch.float16, "cpu", "one")
    load("test_quantised").check_quantised(stored.fill(axes.TINY, dtype, "cpu", "one"), half)


def test_check_query_can_fail(load):
    stored, axes = load("stored"), load("axes")
    case = stored.fill(axes.TINY, torch.float32, "cpu", "one")
    case.features = case.features + 1
    with pytest.raises(AssertionError):
        stored.check_query(case, "one")


def test_lookup_equals_the_oracle(load):
    load("test_lookup").check_lookup(entries=200, keys=200)


def test_the_steps_parts_add_up(load):
    from hash3d_cuda.sds.settings import GenerateSettings

    split, unet = load("step_split"), load("sd_unet").make_unet("cpu", **SMALL)
    base = GenerateSettings(steps=5, views_per_step=1, scene_size=8, schedule="uniform", **split.ALWAYS)
    runs, pairs = split.with_and_without({"tiny": (split.Encoded(unet, 4, "TAESD"), base)})
    plain, cached = split.split_rows(runs, pairs)
    for row in (plain, cached):
        assert sum(row[part] for part in split.PARTS) == pytest.approx(row["ms a step"])
        assert row["encode"] > 0 and row["U-Net's share without cache"] == plain["U-Net's share without cache"]
    assert plain["unet_hit"] == 0 < cached["unet_hit"] and "x" not in plain and 0 < cached["x"] <= 1
    assert 1 < cached["bound"] <= cached["bound at x = 1"]


def test_bytes_of_a_query(load):
    """SD, float16: a feature of 5 MiB in and out, the query's latent and three others of 64 KiB."""
    axes = load("axes")
    moved = load("test_query").moved
    assert moved(axes.SD, torch.float16, "one") == 2 * 5 * 2**20 + 4 * 2**16
    assert moved(axes.SD, torch.float32, "all") == 4 * 10 * 2**20 + 4 * 2**16


def test_hook_and_bare_parts_agree(load):
    sd_unet = load("sd_unet")
    unet = sd_unet.make_unet("cpu", **SMALL)
    load("test_hook").check_hook(unet, sd_unet.make_call(unet, side=8, tokens=3))


def test_hit_equals_deepcache(load):
    pytest.importorskip("DeepCache", reason="the package DeepCache is missing")
    sd_unet = load("sd_unet")
    unet = sd_unet.make_unet("cpu", **SMALL)
    load("test_deepcache").check_deepcache(unet, sd_unet.make_call(unet, side=8, tokens=3))


def test_samplers_equal_deepcaches(load):
    pytest.importorskip("DeepCache", reason="the package DeepCache is missing")
    pipelines = load("pipelines")
    samplers = [
        pipelines.shipped_prior(steps=3, views=1),
        pipelines.stable_diffusion(steps=3, side=8, **SMALL),
    ]
    for sampler in samplers:
        line = dict(zip(pipelines.COLUMNS, pipelines.row(sampler, interval=2, branch=1, rounds=1), strict=True))
        assert line["Equal"] == "bit for bit" and line["PSNR ours, dB"] == line["PSNR DeepCache, dB"]
        assert 5 < float(line["PSNR ours, dB"]) < 150


def test_samplers_run_in_turn(load):
    pytest.importorskip("DeepCache", reason="the package DeepCache is missing")
    in_turn, seen = load("pipelines").in_turn, []

    def drawing(name, steps=2):
        def draw(on_step):
            for step in range(steps):
                seen.append(f"{name}{step}")
                on_step()
            return name if steps else 1 / 0

        return draw

    found = in_turn([drawing("a"), drawing("b"), drawing("c")], torch.device("cpu"), first=1)
    assert seen == ["b0", "c0", "a0", "b1", "c1", "a1"]
    assert [name for _, name in found] == ["a", "b", "c"] and all(seconds >= 0 for seconds, _ in found)
    with pytest.raises(ZeroDivisionError):  # and the others come to their end
        in_turn([drawing("a"), drawing("b", steps=0), drawing("c", steps=3)], torch.device("cpu"))
    assert seen[6:] == ["a0", "c0", "a1", "c1", "c2"]


def test_the_twin_shares_the_weights_but_not_the_modules(load):
    sd_unet = load("sd_unet")
    unet = sd_unet.make_unet("cpu", **SMALL)
    other = sd_unet.twin(unet)
    assert other.conv_in is not unet.conv_in
    assert all(mine is theirs for mine, theirs in zip(unet.parameters(), other.parameters(), strict=True))


def test_deques_forget_the_oldest_and_miss_an_empty_bucket(load):
    table = load("baselines.deque_table").DequeTable()
    key, latent = torch.tensor([[15.0, 10.0, 2.0, 500.0]]), torch.zeros(1, 4)
    assert table.query(key, latent) == [None]
    for value in (1000.0, 1.0, 1.0, 1.0):
        table.append(key, latent, torch.full((1, 2), value))
    torch.testing.assert_close(table.query(key, latent)[0], torch.ones(2))


def test_bench_command_times_and_reports(load, tmp_path):
    """The command end to end, on the quickest benchmark, and the page made of its JSON."""
    results = tmp_path / "results.json"
    program = "import sys; from hash3d_cuda.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["bench", "--folder", str(ROOT / "benchmarks"), "-k", "test_lookup[100]", "--json", str(results)]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # of no worker
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lookup[100]" in done.stdout and "simd" in done.stdout
    page = load("report").document(json.loads(results.read_text()))
    assert "| lookup[100] |" in page and "## lookup" in page and "Machine: cpu" in page


def test_the_page_on_quality_shows_what_reuse_costs(load):
    page = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    assert "\n".join(load("reuse_cost").table()) in page


def test_the_gpus_benchmarks_work_on_what_they_say(load):
    gpu, axes = load("gpu"), load("axes")
    case = gpu.Case(axes.TINY, torch.float16, 2, "cpu", 1 << 10)
    rows = gpu.table_rows(case, gpu.Clock("cpu", 2))
    assert len(rows) == 4 and all(row["seconds"] > 0 for row in rows)
    assert "query, tiny float16 B=2" in gpu.document({"machine": {}, "rows": rows})
    case.features[-1] += 1
    with pytest.raises(AssertionError, match="did not give back"):
        case.table.append = lambda *items: None
        case.check()


def test_a_part_of_the_gpus_benchmarks_that_fails_stops_no_other(load, monkeypatch):
    gpu, row = load("gpu"), load("gpu_rows").row
    parts = [("one", lambda: [row("a", 1.0)]), ("two", lambda: 1 / 0), ("three", lambda: [row("b", 2.0)])]
    monkeypatch.setattr(gpu, "parts", lambda device: parts)
    saved = []
    result = gpu.measure("cpu", lambda so_far: saved.append(len(so_far["rows"])))
    assert saved == [1, 1, 2] and result["failed"] == ["two: ZeroDivisionError: division by zero"]
    page = gpu.document(result)
    assert "| b |" in page and "FAILED two: ZeroDivisionError" in page
