"""What do features in 8 bits cost and save?

F = bytes of a feature in float16 (2 rows of 320 channels), L = bytes of a latent in float32, S = bytes of its scales, a
float32 for each channel. One candidate has the whole weight, as nearly always; an append goes to a cell with Q = 3.

    query, float16       reads F and Q + 1 latents, writes F                       2 F + (Q + 1) L
    query, 8 bits        reads F / 2, the scales and Q + 1 latents, writes F       1.5 F + S + (Q + 1) L
    append, float16      reads F, L and Q features, writes F and L                 (Q + 2) F + 2 L
    append, 8 bits       reads F, L and Q features of half the size, writes them   (Q / 2 + 1.5) F + (Q + 1) S + 2 L

At SD's size F is 5 MiB, S 2.5 KiB and L 64 KiB. The rival is the float16 table, in the same run.
"""

from __future__ import annotations

import pytest
import torch
from axes import SD, compare, devices
from stored import CANDIDATES, Stored, fill

DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
NEAR = {torch.int8: 0.9999, torch.float8_e4m3fn: 0.999}  # cosine with the feature that went in, at least
SCALES = 4 * 2 * 320


def check_quantised(stored: Stored, half: Stored) -> None:
    """The same candidates and weights as in float16, and a feature that is nearly the same."""
    found = stored.engine.query(stored.key, stored.latent, out=stored.out)
    exact = half.engine.query(half.key, half.latent, out=half.out)
    assert torch.equal(found.serials, exact.serials) and torch.equal(found.weights, exact.weights)
    both = (stored.out.float().flatten(1), half.out.float().flatten(1))
    assert torch.cosine_similarity(*both).min() >= NEAR[stored.engine.options.feature_dtype]


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", DTYPES)
def test_query(benchmark, dtype, device):
    stored, half = (fill(SD, kind, device, "one") for kind in (DTYPES[dtype], torch.float16))
    check_quantised(stored, half)
    compare(
        benchmark,
        lambda: stored.engine.query(stored.key, stored.latent, out=stored.out),
        lambda: half.engine.query(half.key, half.latent, out=half.out),
        against="float16",
        rounds=200,
        warm=1,
        device=device,
        moved=3 * SD.feature_bytes(torch.float16) // 2 + SCALES + (CANDIDATES + 1) * SD.latent_bytes,
        limit="<= 1.0",
    )


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", DTYPES)
def test_append(benchmark, dtype, device):
    stored, half = (fill(SD, kind, device, "one") for kind in (DTYPES[dtype], torch.float16))
    check_quantised(stored, half)
    half_feature = SD.feature_bytes(torch.float16) // 2
    compare(
        benchmark,
        lambda: stored.engine.append(stored.key, stored.latent, stored.features[:1]),
        lambda: half.engine.append(half.key, half.latent, half.features[:1]),
        against="float16",
        rounds=40,
        warm=1,
        device=device,
        moved=(CANDIDATES + 3) * half_feature + (CANDIDATES + 1) * SCALES + 2 * SD.latent_bytes,
    )
