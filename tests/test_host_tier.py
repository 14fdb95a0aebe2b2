"""The host tier: with the table on the device, one large table; what is late is answered by the device alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tier_pair import OPTIONS, SHAPES, SlowCopier, TierPair, make_items, make_tier

import hash3d_cuda as h3d
from hash3d_cuda.host_tier.front import divide, entry_bytes
from hash3d_cuda.host_tier.landing import Landing

GRIDS = (h3d.Grid(10.0, 10.0, 1.0, 100.0), h3d.Grid(30.0, 30.0, 1.0, 100.0), h3d.Grid(90.0, 90.0, 1.0, 1000.0))
KEY = st.tuples(st.sampled_from([5.0, 25.0]), st.sampled_from([5.0, 15.0, 100.0, 365.0]), st.just(1.5),
                st.sampled_from([50.0, 150.0, 950.0]))  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "append", "query", "query", "hint", "bad", "save", "clear", "deliver"]),
              st.lists(KEY, min_size=1, max_size=4), st.integers(0, 99)),
    min_size=4, max_size=24,
)  # fmt: skip
CASES = st.fixed_dictionaries({
    "queue_length": st.integers(1, 3), "num_buckets": st.sampled_from([1, 13]),
    "grids": st.integers(1, 3).map(lambda count: GRIDS[:count]), "match": st.sampled_from(["cell", "bucket"]),
    "weighting": st.sampled_from(["softmax", "nearest_key", "uniform"]),
    "feature_dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn]),
})  # fmt: skip


def slots_for(options, own):
    """So many slots that ``own`` are the table's; the others are what comes back."""
    return own + len(options["grids"]) * options["queue_length"]


@settings(max_examples=25, deadline=None)
@given(CASES, STEPS, st.integers(1, 5), st.integers(1, 9))
def test_two_tiers_are_one_large_table(options, steps, own, more):
    """Any appends and retrievals: the same hits; the same blends where the averages (Eq. 9) are the same."""
    slots = slots_for(options, own)
    front = divide(make_tier(slots, 99, **options).options, slots)[0]
    pair = TierPair(slots, front + more, **options)
    for kind, poses, seed in steps:
        keys, (latents, features) = torch.tensor(poses), make_items(len(poses), seed)
        if kind in ("append", "bad"):
            features[0, 0, 0, 0, 0] *= torch.inf if kind == "bad" else 1
            pair.append(keys, latents, features)
        elif kind == "query":
            pair.query(keys, latents, same_averages=len(options["grids"]) > 1)
        elif kind == "hint":
            pair.tier.prefetch(keys)
        elif kind == "save":
            pair.swap_states()
        elif kind == "clear":
            pair.clear()


@settings(max_examples=25, deadline=None)
@given(CASES, STEPS, st.integers(1, 5), st.integers(1, 9))
def test_where_only_misses_are_stored_the_averages_agree_too(options, steps, own, more):
    """As in a cache with eta 1 and cells: blends of several grids are those of the large table, bit for bit."""
    options = {**options, "match": "cell", "num_buckets": 13}
    slots = slots_for(options, own)
    front = divide(make_tier(slots, 99, **options).options, slots)[0]
    pair = TierPair(slots, front + more, **options)
    for _, poses, seed in steps:
        for key in torch.tensor(poses).split(1):
            latents, features = make_items(1, seed)
            if pair.query(key, latents) == [False]:
                pair.append(key, latents, features)


@settings(max_examples=25, deadline=None)
@given(CASES, STEPS, st.integers(1, 5), st.integers(1, 9))
def test_what_is_late_is_answered_as_without_a_tier(options, steps, own, more):
    """Slow copies in both directions: an answer is the large table's, or that of the device's table alone, and never
    made of numbers that have not arrived."""
    slots, copier = slots_for(options, own), SlowCopier()
    front = divide(make_tier(slots, 99, **options).options, slots)[0]
    tier = make_tier(slots, front + more, copier, **options)
    tables = [h3d.HashTable(*SHAPES, **{**OPTIONS, **options, "capacity": n}) for n in (front + more, front)]
    for kind, poses, seed in steps:
        keys, (latents, features) = torch.tensor(poses), make_items(len(poses), seed)
        if kind in ("append", "bad"):
            for first in range(0, len(keys), front):
                part = slice(first, first + front)
                items = keys[part], latents[part], features[part]
                assert tier.append(*items) == next(iter([table.append(*items).tolist() for table in tables]))
        elif kind in ("hint", "save"):
            tier.prefetch(keys)
        elif kind == "clear":
            for table in (tier, *tables):
                table.clear()
        elif kind == "deliver" and copier.queued:
            copier.finish(list(copier.queued)[seed % len(copier.queued)])
        elif kind == "query":
            for row in range(len(keys)):
                key, latent, before = keys[row : row + 1], latents[row : row + 1], tier.stats
                out = torch.zeros(1, *SHAPES[0], dtype=tables[0].options.answer_dtype)
                hit = tier.query(key, latent, out)
                for table in tables:
                    table._similarity.copy_(tier.table._similarity)
                expected = tables[0 if tier.stats.hits > before.hits else 1].query(key, latent)
                assert hit == expected.hit.tolist() and torch.equal(out, expected.features)
                assert tier.stats.late - before.late in (0, 1)


def fill(tier, azimuths):
    """One entry after the other, at these azimuths; returns latents and features."""
    keys = h3d.make_keys(0.0, azimuths, 1.5, 50.0)
    latents, features = make_items(len(azimuths), 0)
    for row in range(len(azimuths)):
        tier.append(keys[row : row + 1], latents[row : row + 1], features[row : row + 1])
    return keys, latents, features


def ask(tier, key, latent):
    out = torch.zeros(1, *SHAPES[0])
    return tier.query(key[None], latent[None], out), out[0]


def test_a_hint_brings_an_entry_back_in_time():
    copier = SlowCopier()
    tier = make_tier(4, 20, copier)
    keys, latents, features = fill(tier, [10.0 * place for place in range(8)])
    assert tier.table.lookup(keys[:1]).max() == -1, "it has left the device"
    assert ask(tier, keys[0], latents[0])[0] == [False] and tier.stats.late == 1 and tier.stats.bytes_up == 0
    tier.prefetch(keys[:1])
    assert ask(tier, keys[0], latents[0])[0] == [False] and tier.stats.late == 2, "under way"
    copier.settle()
    hits, found = ask(tier, keys[0], latents[0])
    assert hits == [True] and torch.equal(found, features[0])
    entry = entry_bytes(tier.options)
    assert entry == 8 * 4 + 3 * 4
    stats = tier.stats
    assert (stats.hits, stats.late, stats.bytes_up, stats.bytes_down) == (1, 2, entry, 8 * entry)
    tier.prefetch(keys[:1])
    assert tier.stats.bytes_up == entry, "it is there still"


def test_a_late_entry_does_not_cost_the_hit_that_the_device_has():
    """Two candidates, the older on the host alone: without its copy the device's own answers."""
    copier = SlowCopier()
    tier = make_tier(4, 20, copier)  # two slots for the table
    keys, latents, features = fill(tier, [0.0, 40.0, 1.0])
    hits, found = ask(tier, keys[0], latents[0])
    assert hits == [True] and torch.equal(found, features[2]) and tier.stats.late == 1
    tier.prefetch(keys[:1])
    copier.settle()
    hits, found = ask(tier, keys[0], latents[0])
    assert hits == [True] and not torch.equal(found, features[2]) and tier.stats.hits == 1


def test_hints_for_more_than_there_is_room_for():
    tier = make_tier(4, 20, SlowCopier())
    keys, latents, features = fill(tier, [10.0 * place for place in range(8)])
    tier.prefetch(keys[:5])  # two slots for what comes back
    tier._copier.settle()
    assert [ask(tier, key, latent)[0][0] for key, latent in zip(keys[:5], latents[:5], strict=True)].count(True) == 2
    for row in range(5):
        tier.prefetch(keys[row : row + 1])
        tier._copier.settle()
        hits, found = ask(tier, keys[row], latents[row])
        assert hits == [True] and torch.equal(found, features[row])


def test_a_slot_is_not_written_to_before_it_has_been_read():
    copier = SlowCopier()
    tier = make_tier(3, 20, copier, queue_length=1)  # one slot for what comes back
    keys, latents, _ = fill(tier, [10.0 * place for place in range(6)])
    tier.prefetch(keys[:1])
    copier.settle()
    assert ask(tier, keys[0], latents[0])[0] == [True]
    read = f"mark {copier.marks}"
    tier.append(keys[:1], latents[:1], torch.zeros(1, *SHAPES[0]))  # marks the stream again
    tier.prefetch(keys[1:2])
    (after,) = (after for way, _, after in copier.queued.values() if way == "up")
    assert read in after


def test_an_entry_that_the_host_drops_is_gone():
    tier = make_tier(4, 6)
    keys, latents, _ = fill(tier, [10.0 * place for place in range(8)])
    found = [ask(tier, key, latent)[0][0] for key, latent in zip(keys, latents, strict=True)]
    assert found == [False] * 2 + [True] * 6 and tier.stats.entries == 6


def test_a_query_that_is_not_finite_misses():
    tier = make_tier(4, 20)
    keys, latents, _ = fill(tier, [10.0 * place for place in range(8)])
    assert ask(tier, keys[0], torch.full((3,), torch.nan))[0] == [False]
    assert ask(tier, torch.full((4,), torch.nan), latents[0])[0] == [False]
    assert ask(tier, keys[0], latents[0])[0] == [True] and tier.stats.hits == 1


def test_memory_is_shared_out_and_counted():
    tier = make_tier(20, 50, queue_length=3)
    assert (tier.table.capacity, len(tier.table.landing)) == (15, 5)
    assert tier.table.nbytes == h3d.HashTable(*SHAPES, **{**OPTIONS, "queue_length": 3, "capacity": 20}).nbytes
    held = [host.nbytes for _, host in tier._memory]
    assert tier.stats.nbytes == sum(held) + tier.index.table.nbytes and tier.stats.capacity == 50


@pytest.mark.parametrize("slots, entries, message", [
    (2, 50, "capacity, memory_budget: expected room for at least 3 entries beside a host_budget"),
    (20, 15, "host_budget: expected more than"),
])  # fmt: skip
def test_room_that_is_too_small(slots, entries, message):
    with pytest.raises(ValueError, match=message):
        make_tier(slots, entries)


def test_slots_go_to_what_was_not_asked_for_for_longest():
    landing = Landing(range(10, 13))
    first = landing.take([1, 2, 3], set())
    assert first is not None and sorted(place.slot for place in first.values()) == [10, 11, 12]
    assert not landing.holds([1]) and landing.take([1], set()) == {}
    landing.poll(lambda ticket: True)
    assert landing.holds([1, 2, 3])
    assert list(landing.take([4], set())) == [4] and not landing.holds([2]), "2 is the one not asked for since"
    assert landing.take([5, 6], {1, 3}) is None and landing.holds([1, 3])
