"""What ranks send each other: the arithmetic of docs/scaling.md."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hash3d_cuda.distributed.cost import Entry, break_even, link, replicated, sharded

ONE = Entry("sd21", (320, 64, 64), 2 * 320 * 64 * 64 * 2, 4 * 64 * 64 * 2, full=1.6e12, hit=0.36e12)


def test_by_hand():
    assert ONE.total == 5 * 2**20 + 32 * 2**10 + 16
    assert replicated(ONE, 2, 5, 0.75) == 0.25 * 2 * 4 * ONE.total and replicated(ONE, 1, 1, 0.0) == 0
    assert sharded(ONE, 1, 4) == 0.75 * ONE.total and sharded(ONE, 3, 1) == 0
    assert ONE.step_seconds(2, 0.5, rate=1e12) == pytest.approx(1.96)
    assert link(ONE, 2, 0.5, share=0.5, rate=1e12) == pytest.approx(0.5 * ONE.total / (0.5 * 0.98))


@given(st.floats(0.01, 0.99), st.integers(2, 500))
def test_sharding_sends_less_from_the_break_even_on(x, ranks):
    if abs(ranks - break_even(x)) > 1e-6:
        assert (sharded(ONE, 1, ranks) < replicated(ONE, 1, ranks, x)) == (ranks > break_even(x))
