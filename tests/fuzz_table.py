"""Random operations on the engine and the oracle at once, compared one by one.

    python tests/fuzz_table.py --operations 1000000 --seed 0

An operation is one item of an append, a query, a lookup or a similarity. Every few thousand of them a new pair of
tables with other options is made; one pair in eight is also saved, loaded crosswise and continued. A difference prints
the pair's number; ``--only NUMBER`` repeats that pair alone.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from table_pair import Pair
from table_random import Items, random_options, random_rows, random_step

PER_PAIR = 2500


def fuzz_pair(seed: int, number: int, operations: int, device: str) -> tuple[int, collections.Counter]:
    """Runs one pair for at least ``operations`` operations; returns how many, and what happened."""
    rng = np.random.default_rng((seed, number))
    options = random_options(rng)
    shapes = options["feature_shape"], options["latent_shape"]
    pair = Pair(
        device, *shapes, **{name: value for name, value in options.items() if not name.endswith("_shape")}
    )
    items = Items(rng, options)
    saves_at = operations // 2 if rng.random() < 0.125 else None
    done = saves = 0
    while done < operations:
        rows = random_rows(rng)
        random_step(pair, items, rng, rows)
        done += rows
        if saves_at is not None and done >= saves_at:
            with tempfile.TemporaryDirectory() as folder:
                pair.swap_files(Path(folder))
            saves, saves_at = saves + 1, None
    pair.check_counters()
    pair.compare_states()
    stats = pair.oracle.stats()
    happened = {"near_ties": pair.near_ties, "saves": saves}
    happened.update({name: getattr(stats, name) for name in ("appended", "rejected", "queries", "hits")})
    return done, collections.Counter(happened)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", type=int, help="number of the one pair to run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started, done, number = time.perf_counter(), 0, arguments.only or 0
    happened: collections.Counter = collections.Counter()
    while done < arguments.operations:
        try:
            count, counts = fuzz_pair(arguments.seed, number, PER_PAIR, arguments.device)
        except Exception:
            print(
                f"pair {number} of seed {arguments.seed} differs: repeat with --only {number}",
                file=sys.stderr,
            )
            raise
        done += count
        happened += counts
        number += 1
        if arguments.only is not None:
            break
    seconds = time.perf_counter() - started
    summary = ", ".join(f"{happened[name]} {name}" for name in ("appended", "rejected", "queries", "hits"))
    print(
        f"{done} operations, none differing; {number} pairs of tables ({happened['saves']} saved and loaded), {summary}; "
        f"{happened['near_ties']} decisions within the floats' tolerance; {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
