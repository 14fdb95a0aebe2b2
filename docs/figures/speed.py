"""Figures of the benchmarks, from the pages that they wrote into benchmarks/results."""

from __future__ import annotations

from docs.figures import Passage, pick, rows

PAGE, PIPELINES = "docs/benchmarks.md", "docs/pipelines.md"
OURS, NULL = "Ours / DeepCache", "DeepCache / DeepCache"


def ratios(name: str, *benchmarks: str) -> list[float]:
    """The column "Ratio" of these benchmarks."""
    return [float(pick(rows(name), Benchmark=one)["Ratio"]) for one in benchmarks]


def of_tables(form: str, rival: str, dtypes: tuple[str, ...] = ("float16", "float32", "bfloat16")) -> list[float]:
    return ratios("cpu.md", *(f"{form.format(dtype)}-{rival}-cpu]" for dtype in dtypes))


def split(step: str, *columns: str) -> list[float]:
    """Cells of a row under "Where a step's time goes"; a share is given as one."""
    cells = pick(rows("step-split.md"), step=step)
    return [float(cells[name].rstrip("%")) / (100 if cells[name].endswith("%") else 1) for name in columns]


PRIOR = ((2, 1), (5, 0), (5, 1))  # intervals and branches of the shipped prior's rows


def samplers(column: str, *cases: tuple[int, int]) -> list[float]:
    """Cells of the shipped prior's rows in the comparison with DeepCache."""
    found = [row for row in rows("pipelines.md") if row["Model"].startswith("shipped prior")]
    return [float(pick(found, Interval=str(interval), Branch=str(branch))[column]) for interval, branch in cases]


def at_sd_width(column: str) -> float:
    return float(next(row for row in rows("pipelines.md") if row["Model"].startswith("SD 1.5"))[column])


SHARE = "U-Net's share without cache"
PASSAGES = (
    Passage(
        PAGE,
        "takes {:.2f} times a copy of its feature in float16, {:.2f} in float32 and {:.2f} in bfloat16. It takes "
        "{:.3f}, {:.3f} and {:.3f} of the deques' time",
        lambda: [*of_tables("query[SD-{}-one", "copy"), *of_tables("query[SD-{}-one", "deques")],
    ),
    Passage(
        PAGE,
        "Where three candidates weigh, a float16 query is {:.1f} copies",
        lambda: ratios("cpu.md", "query[SD-float16-all-copy-cpu]"),
    ),
    Passage(
        PAGE,
        "A million keys are looked up at {:.1f} million a second",
        lambda: [float(pick(rows("cpu.md"), Benchmark="lookup[1000000]")["Per second"].rstrip(" M"))],
    ),
    Passage(
        PAGE,
        "A float16 append to a cell with three entries costs seven copies and {:.1f} times the deques' append",
        lambda: ratios("cpu.md", "append[SD-float16-full-deques-cpu]"),
    ),
    Passage(
        PAGE,
        "a hit takes {:.2f} of the bare head and tail and {:.2f} of DeepCache's cached step, a bypass {:.3f} and "
        "a miss {:.3f} of the plain forward and an append",
        lambda: ratios("cpu-hook.md", "hit[cpu]", "hit_against_deepcache[cpu]", "full[cpu-bypass]", "full[cpu-miss]"),
    ),
    Passage(
        PAGE,
        "a query at SD size takes {:.2f} of float16's in int8 and {:.2f} in e4m3, an append to a cell with three "
        "entries {:.2f} and {:.2f}",
        lambda: ratios(
            "cpu-quantised.md", *(f"{form}[{dtype}-cpu]" for form in ("query", "append") for dtype in ("int8", "fp8"))
        ),
    ),
    Passage(
        PAGE,
        "the KL encoder takes {:.0f} of {:.0f} ms a step and TAESD's {:.0f} of {:.0f}: were every view served, as "
        "here after the first, a step would be {:.1f} times as fast with the one and {:.0f} times with the other, "
        "{:.0f} times in a latent scene; the bounds are {:.1f}, {:.0f} and {:.0f}",
        lambda: [
            *split("KL encoder", "encode", "ms a step"),
            *split("TAESD", "encode", "ms a step"),
            *(
                figure
                for column in ("speed-up", "bound")
                for step in ("KL encoder, cache", "TAESD, cache", "latent scene, cache")
                for figure in split(step, column)
            ),
        ],
    ),
    Passage(
        PAGE,
        "Of the shipped prior's step the U-Net is {:.0%}, so no cache can make it more than {:.1f} times as fast "
        "at k = 2; at x = {:.2f} it was {:.2f} times (bound {:.2f})",
        lambda: split("shipped prior, cache", SHARE, "bound at x = 1", "x", "speed-up", "bound"),
    ),
    Passage(
        PAGE,
        "({:.1f} dB at interval 2 and branch 1, {:.1f} dB at 5 and 1). A run took {:.3f} of DeepCache's time "
        "there at interval 2, {:.3f} and {:.3f} at 5, and {:.3f} at Stable Diffusion's width",
        lambda: [*samplers("PSNR ours, dB", (2, 1), (5, 1)), *samplers(OURS, *PRIOR), at_sd_width(OURS)],
    ),
    Passage(
        PAGE,
        "a second DeepCache took {:.3f} to {:.3f} of the first",
        lambda: [extreme([*samplers(NULL, *PRIOR), at_sd_width(NULL)]) for extreme in (min, max)],
    ),
    Passage(
        PIPELINES,
        "a run took {:.3f} of DeepCache's time at interval 2 and branch 1, {:.3f} at 5 and 0, {:.3f} at 5 and 1, "
        "where a second DeepCache took {:.3f}, {:.3f} and {:.3f} of the first; at Stable Diffusion's width, "
        "latents of 8x8, {:.3f} (four rounds), the second DeepCache {:.3f}",
        lambda: [*samplers(OURS, *PRIOR), *samplers(NULL, *PRIOR), at_sd_width(OURS), at_sd_width(NULL)],
    ),
    Passage(
        PAGE,
        "so a hit costs {:.2f} of a full pass and not the 0.22 of 64×64",
        lambda: split("TAESD, cache", "r"),
    ),
)
