"""Every ablation changes what it should (settings, table, what is retrieved) and nothing else (views, noise, coin)."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from sds_stand_ins import TinyPrior

from hash3d_cuda import HashTable
from hash3d_cuda.keys import PAPER_GRIDS, Grid
from hash3d_cuda.reproduce.ablations import ABLATIONS, EVERYWHERE, RELEASED_GRID, items, stretched, variant
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings

STEPS = 12
WIDE = (Grid(60.0, 90.0, 0.3, 1000.0), Grid(90.0, 120.0, 0.5, 1000.0), Grid(90.0, 180.0, 1.0, 1000.0))
BASE = GenerateSettings(steps=STEPS, scene_size=8, capacity=2 * STEPS, eta=0.6, grids=WIDE)
CROWDED = replace(BASE, grids=(Grid(90.0, 360.0, 4.0, 1000.0),))  # two cells, so that chains fill up
ANCHORED = {"sampler", "eta", "grids", "capacity"}
SPREAD = {*ANCHORED, "anchors", "first_fresh", "fresh_until", "fresh_power", "jitter"}
CHANGED = {
    "none": {"cache"},
    "default": set(),
    "noise": {"mode"},
    "no-keys": {"grids", "num_buckets", "queue_length", "match"},
    "store-all": {"grids", "num_buckets", "queue_length", "match"},  # the capacity is all items already
    "released": {"grids", "num_buckets", "match"},  # Q = 3 is the default
    "no-aggregation": {"aggregation"},
    "mean": {"aggregation"},
    "bucket": {"match"},
    "bounded": {"capacity"},
    "none-4-views": {"cache", "views_per_step"},
    "anchored-85-position-3": {*ANCHORED, "position"},
    "anchored-85-position-4": {*ANCHORED, "position"},
    **{f"anchored-{share}-position-4": {*ANCHORED, "position", "reuse"} for share in (70, 93)},
    "anchored-70-position-3": {*ANCHORED, "position", "reuse"},
    "anchored-85-int8": {*ANCHORED, "position", "feature_dtype"},
    "anchored-85-few": {*ANCHORED, "position", "anchors"},
    "anchored-85-spread": SPREAD,
    "anchored-85-spread-no-cache": {*SPREAD, "cache"},
    "none-middle": {"cache", "t_high", "t_low"},
    "target-0.2": {"target_x"},
    "quality-0.95": {"target_quality"},
    "similarity-0.99": {"min_similarity"},
    "anchored-85-no-cache": {*ANCHORED, "cache"},
    "anchored-85-4-views": {*ANCHORED, "views_per_step"},
    **{f"anchored-{share}": ANCHORED if share == 85 else {*ANCHORED, "reuse"} for share in (50, 70, 85)},
    **{
        f"interval-{n}": {"grids", "num_buckets", "queue_length", "match", "eta", "max_age", "capacity"}
        for n in (2, 4, 7)
    },
}
OTHER_VIEWS = [name for name in ABLATIONS if name.startswith(("anchored", "interval", "none-", "target", "quality"))]


class Recorded:
    """A short run and all that it decided and retrieved."""

    def __init__(self, settings: GenerateSettings, monkeypatch):
        self.queries, self.seeds, self.views, self.noisy = [], [], [], []
        self.keys = {}  # by serial
        query, append = HashTable.query, HashTable.append

        def recorded(table, keys, latents, out=None):
            result = query(table, keys, latents, out=out)
            self.queries += zip(keys.tolist(), result.grid.tolist(), result.serials.tolist(), result.weights.tolist())
            return result

        def appended(table, keys, latents, features):
            serials = append(table, keys, latents, features)
            self.keys |= dict(zip(serials.tolist(), keys.tolist(), strict=True))
            return serials

        prior = TinyPrior()
        with monkeypatch.context() as patch, SdsRun(prior, prior.resolve("cube"), settings) as run:
            patch.setattr(HashTable, "query", recorded)
            patch.setattr(HashTable, "append", appended)
            target = run.guidance.target

            def watched(latents, views, generator):
                self.seeds.append(generator.initial_seed())
                self.views.append(views)
                return target(latents, views, generator)

            run.guidance.target = watched
            self.start = [value.clone() for value in run.scene.state_dict().values()]
            for _ in range(STEPS):
                run.train_step()
            self.end = [value.clone() for value in run.scene.state_dict().values()]
            self.bypassed = (run.log.column("bypasses") > 0).tolist()
            self.served, self.table = run.served, run.cache and run.cache.table

    @property
    def hits(self):
        return [(key, grid, serials, weights) for key, grid, serials, weights in self.queries if grid >= 0]

    def candidates(self):
        return [sum(serial >= 0 for serial in serials) for _, _, serials, _ in self.hits]


RUNS = {}  # by settings: several tests look at the same run


@pytest.fixture
def record(monkeypatch):
    def run(name, base=BASE):
        settings = ABLATIONS[name].apply(base)
        if settings not in RUNS:
            RUNS[settings] = Recorded(settings, monkeypatch)
        return RUNS[settings]

    return run


def differing(one, two):
    return {f.name for f in fields(one) if getattr(one, f.name) != getattr(two, f.name)}


@pytest.mark.parametrize("name", ABLATIONS)
def test_settings_differ_in_the_named_fields_only(name):
    kind = name.split("-")[0]
    by_kind = {
        "age": {"max_age"},
        "change": {"max_change"},
        "queue": {"queue_length"},
        "buckets": {"num_buckets"},
        "position": {"position"},
        "constant": {"grids"},
    }
    expected = CHANGED.get(name, by_kind.get(kind))
    same = {"queue-3", "buckets-100003", "position-2"}
    assert differing(BASE, ABLATIONS[name].apply(BASE)) == (set() if name in same else expected)
    bounded = replace(BASE, capacity=None, memory_budget="4MiB")
    if name == "store-all":
        assert ABLATIONS[name].apply(bounded).capacity == items(BASE)


# Positions have a test of their own; the tiny U-Net has six.
# These look elsewhere, or throw no coin.
@pytest.mark.parametrize("name", [n for n in ABLATIONS if not n.startswith("position") and n not in OTHER_VIEWS])
def test_views_noise_and_coin_are_the_default_runs(name, record):
    default, other = record("default"), record(name)
    assert other.views == default.views and other.seeds == default.seeds
    assert all(torch.equal(a, b) for a, b in zip(other.start, default.start, strict=True))
    if name != "none":
        assert other.bypassed == default.bypassed and any(default.bypassed) and not all(default.bypassed)


def test_the_default_hits_and_misses(record):
    run = record("default")
    assert run.served["hits"] >= 5 and run.served["misses"] > 0


@pytest.mark.parametrize("every", (2, 4))
def test_intervals_run_every_so_manieth_step_in_full(every, record):
    run = record(f"interval-{every}")
    full = -(-STEPS // every) * BASE.views_per_step
    assert run.served == {"hits": items(BASE) - full, "misses": full, "bypasses": 0}
    assert run.views == record("default").views and run.seeds == record("default").seeds


@pytest.mark.parametrize("name", ("anchored-85", "anchored-85-spread"))
def test_anchored_views_are_the_same_with_and_without_the_cache(name, record):
    cached, plain = record(name), record(f"{name}-no-cache")
    assert cached.views == plain.views != record("default").views and cached.seeds == plain.seeds
    assert cached.served["hits"] > 0.6 * items(BASE) and plain.served["hits"] == 0


def test_no_cache(record):
    run = record("none")
    assert run.table is None and run.served == {"hits": 0, "misses": 0, "bypasses": items(BASE)}


@pytest.mark.parametrize("index, name", list(enumerate(("constant-fine", "constant-middle", "constant-coarse"))))
def test_constant_grids_hit_where_their_cells_are_equal(index, name, record):
    run = record(name)
    assert run.table.options.grids == WIDE[index : index + 1] and {grid for _, grid, _, _ in run.hits} == {0}
    keys = run.keys
    for key, _, serials, _ in run.hits:
        cells = [cell(keys[serial], WIDE[index]) for serial in serials if serial >= 0]
        assert set(cells) == {cell(key, WIDE[index])}


def cell(key, grid):
    return tuple(int(value // size) for value, size in zip((key[0], key[1] % 360, *key[2:]), grid.sizes, strict=True))


def test_adaptive_uses_more_than_one_grid(record):
    assert len({grid for _, grid, _, _ in record("default").hits}) > 1


def test_storing_all_finds_every_earlier_item(record):
    run = record("store-all")
    assert run.table.capacity == items(BASE) == run.table.options.queue_length
    assert run.served["misses"] in (0, BASE.views_per_step), "only before the first entry"
    live = [sum(serial >= 0 for serial in serials) for _, _, serials, _ in run.hits]
    assert max(live) == len(run.table) and live == sorted(live), "a chain that only grows"


def test_without_keys_far_poses_serve(record):
    run, default = record("no-keys"), record("default")
    assert run.table.options.queue_length == 1000 and run.table.options.grids == (EVERYWHERE,)
    keys = run.keys
    signs = {(key[0] < 0) == (keys[s][0] < 0) for key, _, serials, _ in run.hits for s in serials if s >= 0}
    assert signs == {True, False}, "elevations on both sides of 0 are one cell"
    assert run.served["hits"] > default.served["hits"]


def test_noise_is_what_is_stored(record):
    prior = TinyPrior()
    assert record("noise").table.options.feature_shape == (prior.groups, *prior.latent_shape)
    assert record("default").table.options.feature_shape != (prior.groups, *prior.latent_shape)


def test_aggregation(record):
    for name, allowed in (("no-aggregation", lambda n: {0.0, 1.0}), ("mean", lambda n: {0.0, 1 / n})):
        run = record(name, CROWDED)
        assert max(run.candidates()) > 1
        for _, _, serials, weights in run.hits:
            shares = allowed(sum(serial >= 0 for serial in serials))
            assert all(min(abs(weight - share) for share in shares) < 1e-6 for weight in weights)
    one, other = record("no-aggregation", CROWDED), record("mean", CROWDED)
    assert [query[:3] for query in one.queries] == [query[:3] for query in other.queries]


@pytest.mark.parametrize("queue", (1, 3, 10))
def test_queue(queue, record):
    run = record(f"queue-{queue}", CROWDED)
    most = max(run.candidates())
    assert run.table.options.queue_length == queue == len(run.queries[0][2])
    assert most == queue if queue < 10 else 3 < most <= queue


def test_buckets_that_collide_serve_other_cells_by_bucket_and_not_by_cell(record):
    few = replace(BASE, num_buckets=2)
    by_bucket, by_cell = record("bucket", few), record("default", few)
    assert by_bucket.served["hits"] > by_cell.served["hits"]
    for run, expected in ((by_bucket, {True, False}), (by_cell, {True})):
        keys = run.keys
        equal = {cell(k, WIDE[g]) == cell(keys[s], WIDE[g]) for k, g, line, _ in run.hits for s in line if s >= 0}
        assert equal == expected


def test_more_buckets_cost_memory(record):
    sizes = [record(f"buckets-{n}").table.nbytes for n in (200, 1000, 100_003)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


def test_bounded_memory_forgets(record):
    run = record("bounded")
    assert run.table.capacity == items(BASE) // 4 and run.table.nbytes < record("default").table.nbytes


def test_released_indexing_hits_across_cells(record):
    run = record("released")
    assert run.table.options.grids == (RELEASED_GRID,) and run.table.options.num_buckets == 200
    assert run.table.options.match == "bucket"


@pytest.mark.parametrize("position", range(1, 7))
def test_positions_change_the_feature(position, record):
    run, default = record(f"position-{position}"), record("default")
    resnets = [resnet for block in TinyPrior().unet.up_blocks for resnet in block.resnets]
    assert 0 < run.table.options.feature_shape[1] < resnets[-position].in_channels
    assert [q[0] for q in run.queries] == [q[0] for q in default.queries]
    assert run.seeds == default.seeds and run.views == default.views and run.bypassed == default.bypassed


@pytest.mark.parametrize("eta", (0.0, 0.3, 1.0))
def test_eta_is_the_share_of_retrievals(eta, record):
    run = record("default", replace(BASE, eta=eta))
    tried = STEPS - sum(run.bypassed)
    assert {0.0: tried == 0, 0.3: 0 < tried < STEPS * 0.7, 1.0: tried == STEPS}[eta]


def test_variants():
    base = GenerateSettings(steps=100, capacity=200)
    assert variant(base, "default", 0.1, "paper") == replace(base, eta=0.1)
    strong = variant(base, "constant-coarse", 0.5, "stretched")
    assert strong.grids == (Grid(30.0, 30.0, 0.2, 1000.0),) and strong.eta == 0.5
    assert stretched(PAPER_GRIDS, 10_000) == PAPER_GRIDS == stretched(PAPER_GRIDS, 50_000)
    assert [grid.timestep for grid in stretched(PAPER_GRIDS, 1000)] == [100.0, 200.0, 300.0]
    with pytest.raises(ValueError, match=r"ablation.*no-keys.*'sideways'"):
        variant(base, "sideways")
    with pytest.raises(ValueError, match="grids"):
        variant(base, "default", 0.1, "wide")


@pytest.mark.parametrize(
    "field, value",
    [
        ("mode", "colour"), ("match", "any"), ("aggregation", "median"), ("queue_length", 0), ("num_buckets", 0),
        ("capacity", 0), ("min_similarity", 2.0),
    ],
)  # fmt: skip
def test_settings_name_what_is_wrong(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        GenerateSettings(**{field: value})


def test_settings_of_before_and_of_now_are_read():
    now = GenerateSettings(capacity=7, mode="noise", match="bucket", aggregation="uniform", min_similarity=0.5)
    assert GenerateSettings.from_dict(now.as_dict()) == now and now.memory_budget is None
    new = {"capacity", "mode", "match", "aggregation", "queue_length", "num_buckets", "min_similarity"}
    before = {name: value for name, value in GenerateSettings().as_dict().items() if name not in new}
    assert GenerateSettings.from_dict(before) == GenerateSettings()
    written = GenerateSettings.from_dict({**before, "memory_budget": 256 * 2**20})  # as it was before it could be None
    assert written.differences(GenerateSettings()) == [] and written.room() == GenerateSettings().room()
    assert written.differences(GenerateSettings(memory_budget="1MiB")) == ["memory_budget"]
    assert written.differences(GenerateSettings(capacity=7)) == ["memory_budget", "capacity"]
    with pytest.raises(ValueError, match=r"capacity.*memory_budget"):
        GenerateSettings(capacity=7, memory_budget="1MiB")
