"""Hit rates at eta = 0.1 of the systems that the paper accelerates, by indexing: the table of docs/plan.md.

The real table goes through the views of each system, many seeds pooled: no GPU, no weights, minutes.

python benchmarks/hit_rates.py > benchmarks/results/hit-rates.md
"""

from __future__ import annotations

from hash3d_cuda.plan import PRESETS, RELEASED_INDEXING, RELEASED_ORDER, CacheSetting, plan

RUNS = {"dreamfusion": 16, "zero123": 100, "dreamgaussian": 200}  # some 10,000 retrievals each
BUCKETS = (200, 1000, 100_000)


def cell(system: str, **indexing: object) -> str:
    """The hit rate over all seeds."""
    setting = CacheSetting(eta=0.1, memory_budget="unlimited", **indexing)
    repeats = plan(PRESETS[system], setting, unet="sd21", runs=RUNS[system]).repeats
    assert repeats is not None
    return f"{repeats.hit_rate:.1%}"


def table() -> str:
    """Markdown: a row per way to index, a column per system."""
    ways = {"released indexing": dict(RELEASED_INDEXING)}
    for n in BUCKETS:
        ways[f"cells verified, released order, {n:,} buckets"] = {**RELEASED_ORDER, "num_buckets": n}
        ways[f"cells verified, our order, {n:,} buckets"] = {"num_buckets": n}
    lines = [
        "| | " + " | ".join(f"{name}, {runs} runs" for name, runs in RUNS.items()) + " |",
        "|---" * (1 + len(RUNS)) + "|",
    ]
    for way, indexing in ways.items():
        lines.append(f"| {way} | " + " | ".join(cell(system, **indexing) for system in RUNS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"<!-- {(__doc__ or '').splitlines()[-1]} -->\n{table()}")
