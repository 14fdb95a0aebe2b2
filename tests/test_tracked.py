"""What a tracked table still knows as it came: :meth:`TrackedTable.recall` beside :meth:`TrackedTable.query`."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hash3d_cuda as h3d
from hash3d_cuda.poses import HostCopies
from hash3d_cuda.store import TableStore
from hash3d_cuda.tracked import TrackedTable

FEATURE, LATENT = (2, 3, 5, 1), (4, 3)
CELL = (h3d.Grid(1.0, 1.0, 1.0, 4.0),)  # of four steps


def tracked(keeps: bool = True, **options: Any) -> TrackedTable:
    arguments = {"grids": CELL, "num_buckets": 1, "queue_length": 1, "capacity": 1, "min_similarity": None, **options}
    table = h3d.HashTable(FEATURE, LATENT, **{"feature_dtype": torch.float32, **arguments})
    return TrackedTable(table, arguments, HostCopies(strict=True), keeps=keeps)


def at(step: int) -> Tensor:
    return h3d.make_keys(0.0, 0.0, 0.0, step)


def key(keys: Tensor) -> list[float]:
    """Of the one item, as numbers."""
    return keys[0].tolist()


def latent(seed: int = 0) -> Tensor:
    return torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(seed))


def feature(seed: int = 0) -> Tensor:
    return torch.randn(1, *FEATURE, generator=torch.Generator().manual_seed(seed))


def asked(table: TrackedTable, keys: Tensor, latents: Tensor) -> tuple[bool, Tensor]:
    out = torch.full((1, *FEATURE), 7.0)
    [hit] = table.query(keys, latents, out)
    return hit, out[0]


def test_the_last_feature_is_handed_out_without_a_copy() -> None:
    table, given = tracked(), feature()
    table.append(at(0), latent(), given)
    for step in (0, 1, 3):
        found = table.recall(key(at(step)), latent(step))
        assert found is not None and found.data_ptr() == given.data_ptr() and found.shape == FEATURE
        assert torch.equal(asked(table, at(step), latent(step))[1], found)


def test_memory_format_is_kept() -> None:
    shape = (2, 3, 5, 4)
    table = h3d.HashTable(shape, LATENT, grids=CELL, capacity=1, num_buckets=1, feature_dtype=torch.float32)
    keeping = TrackedTable(table, {"min_similarity": None}, HostCopies(strict=True), keeps=True)
    given = torch.randn(shape).to(memory_format=torch.channels_last)
    keeping.append(at(0), latent(), given[None])
    found = keeping.recall(key(at(1)), latent())
    assert found is not None and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, given)


def test_another_cell_knows_nothing_and_lets_go() -> None:
    table = tracked()
    table.append(at(0), latent(), feature())
    assert table.recall(key(at(4)), latent()) is None
    assert table.recall(key(at(0)), latent()) is None, "its memory was let go"
    assert asked(table, at(0), latent()) == (True, pytest.approx(feature()[0]))


def test_a_feature_that_was_written_to_is_asked_of_the_table() -> None:
    table, given = tracked(), feature()
    table.append(at(0), latent(), given)
    given[:, :1].mul_(2)  # as FreeU does in the tail
    assert table.recall(key(at(1)), latent()) is None
    hit, found = asked(table, at(1), latent())
    assert hit and torch.equal(found, feature()[0])


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_finite(number: float) -> None:
    """Such a latent misses; of such an entry there is none."""
    table = tracked()
    table.append(at(0), latent(), feature())
    bad = latent()
    bad[0, 0, 0] = number
    assert table.recall(key(at(1)), bad) is None and asked(table, at(1), bad)[0] is False
    table.append(at(0), latent(), feature() * number)
    assert table.recall(key(at(1)), latent()) is None and asked(table, at(1), latent())[0] is False
    table.append(at(0), bad, feature())
    assert table.recall(key(at(1)), latent()) is None and asked(table, at(1), latent())[0] is False


def test_latents_whose_sum_is_beyond_float32_are_asked_of_the_table() -> None:
    table = tracked()
    table.append(at(0), latent(), feature())
    large = torch.full((1, *LATENT), 3e38)
    assert table.recall(key(at(1)), large) is None and asked(table, at(1), large)[0] is True


def test_several_candidates_are_asked_of_the_table() -> None:
    table = tracked(queue_length=2, capacity=2)
    table.append(at(0), latent(), feature())
    assert table.recall(key(at(1)), latent()) is not None
    table.append(at(1), latent(1), feature(1))
    assert table.recall(key(at(2)), latent()) is None and asked(table, at(2), latent())[0] is True


def test_nothing_is_kept_where_it_might_differ() -> None:
    half, plain, batch = tracked(feature_dtype=torch.float16), tracked(keeps=False), tracked(capacity=4)
    for table in (half, plain):
        table.append(at(0), latent(), feature())
        assert table.recall(key(at(0)), latent()) is None and asked_half(table)
    batch.append(at(0).expand(2, -1), latent().expand(2, -1, -1), feature().expand(2, -1, -1, -1, -1))
    assert batch.recall(key(at(0)), latent()) is None
    uncounted = tracked()
    with torch.inference_mode():
        uncounted.append(at(0), latent(), feature())
        assert uncounted.recall(key(at(0)), latent()) is None


def asked_half(table: TrackedTable) -> bool:
    out = torch.zeros(1, *FEATURE, dtype=table.table.options.feature_dtype)
    return table.query(at(0), latent(), out) == [True]


def test_a_table_that_is_emptied_forgets() -> None:
    table = tracked()
    table.append(at(0), latent(), feature())
    table.clear()
    assert table.recall(key(at(0)), latent()) is None
    table.append(at(0), latent(), feature(1))  # the same serial
    assert torch.equal(table.recall(key(at(0)), latent()), feature(1)[0])


@pytest.mark.parametrize(
    ("config", "keeps"),
    [
        (h3d.Hash3DConfig.every(3), True),
        (h3d.Hash3DConfig.every(3, compile={"backend": "eager"}), False),
        (h3d.Hash3DConfig(capacity=1), False),
    ],
)
def test_which_configurations_keep(config: h3d.Hash3DConfig, keeps: bool) -> None:
    """Entries of views come back long after they were stored; compiled parts may write to their outputs again."""
    store = TableStore(config, FEATURE, LATENT, torch.float32, torch.device("cpu"), HostCopies(strict=True))
    table = store.get("condition")
    table.append(at(0), latent(), feature())
    assert (table.recall(key(at(1)), latent()) is not None) is keeps


STEPS = st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), max_size=12)


@settings(max_examples=40, deadline=None)
@given(STEPS, st.integers(1, 3), st.integers(1, 3))
def test_what_is_recalled_is_what_a_query_copies(steps: Any, queue: int, capacity: int) -> None:
    table = tracked(queue_length=queue, capacity=capacity, num_buckets=2)
    last = feature()
    for place, (step, writes, appends) in enumerate(steps):
        if appends:
            last = feature(place)
            table.append(at(step), latent(place), last)
        elif writes:
            last.add_(1)
        found = table.recall(key(at(step)), latent(-place))
        if found is not None:
            hit, copied = asked(table, at(step), latent(-place))
            assert hit and torch.equal(found, copied)


WAYS = st.sampled_from(["step", "step", "step", "lost", "rejected", "query", "state", "clear", "handed out"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), WAYS), max_size=12))
def test_what_is_held_is_as_if_appended(steps: Any) -> None:
    """Whoever asks sees the same table, its statistics included, and the same serials come next."""
    held, plain = tracked(), tracked()
    handed_out = False
    for place, (step, way) in enumerate(steps):
        if way in ("step", "rejected"):
            given = feature(place) if way == "step" else feature(place) * math.nan
            takes = held.hold(key(at(step)), latent(place), given[0])
            assert takes is (way == "step" and not handed_out)
            for table in (plain,) if takes else (plain, held):
                table.append(at(step), latent(place), given)
            known = [table.recall(key(at(step + 1)), latent()) for table in (held, plain)]
            assert [found is None for found in known] in ([True] * 2, [False] * 2)
            assert held.holds_nothing_for(key(at(step + 4))) == plain.holds_nothing_for(key(at(step + 4)))
        elif way == "lost":
            given = feature(place)
            if held.hold(key(at(step)), latent(place), given[0]):
                given.add_(1)
                held.settle()
            else:
                held.append(at(step), latent(place), given * math.nan)
            plain.append(at(step), latent(place), given * math.nan)
        elif way == "query":
            answers = [asked(table, at(step), latent(place)) for table in (held, plain)]
            assert answers[0][0] == answers[1][0] and torch.equal(answers[0][1], answers[1][1])
        elif way == "clear":
            held.clear()
            plain.clear()
        elif way == "handed out":
            handed_out = True
            assert held.hand_out().stats() == plain.hand_out().stats()
        else:
            torch.testing.assert_close(held.state_dict(), plain.state_dict(), rtol=0, atol=0, equal_nan=True)
        assert (held.appended, held.rejected) == (plain.appended, plain.rejected)
    assert held.table.stats() == plain.table.stats()


@pytest.mark.parametrize("options", [{"capacity": 2}, {"keeps": False}, {"feature_dtype": torch.float16}])
def test_what_cannot_be_held(options: dict[str, Any]) -> None:
    table = tracked(**options)
    assert not table.hold(key(at(0)), latent(), feature()[0]) and table.appended == 0


def test_what_was_written_to_before_it_came_to_the_table_is_lost() -> None:
    """Never served as if it were the item."""
    table, given = tracked(), feature()
    assert table.hold(key(at(0)), latent(), given[0])
    given.mul_(2)
    assert table.recall(key(at(1)), latent()) is None and asked(table, at(1), latent())[0] is False
    assert table.table.stats().live == 0 and table.rejected == 1
    again = tracked()
    again.load_state_dict("state", table.state_dict())
    assert again.table.append(at(4), latent(), feature()).tolist() == [1], "its serial is used up"


def test_what_is_held_when_the_table_is_cleared_does_not_come_after_it() -> None:
    """Another thread is about to write it."""
    table = tracked()
    assert table.hold(key(at(0)), latent(), feature()[0])
    writes, goes_on = threading.Event(), threading.Event()
    append = table.append

    def late(*given: Any) -> None:
        writes.set()
        goes_on.wait(10)
        append(*given)

    table.append = late  # type: ignore[method-assign]
    asks = threading.Thread(target=table.settle)
    asks.start()
    assert writes.wait(10)
    clears = threading.Thread(target=table.clear)
    clears.start()
    clears.join(0.2)  # it waits for the other
    goes_on.set()
    for thread in (asks, clears):
        thread.join()
    assert table.table.stats().live == 0 and table.recall(key(at(1)), latent()) is None


def test_the_dtype_of_the_day_does_not_matter() -> None:
    table = tracked()
    assert table.hold(key(at(0)), latent(), feature()[0])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert table.table.stats().appended == 1
    finally:
        torch.set_default_dtype(before)
