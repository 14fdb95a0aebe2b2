"""Rules 1 and 2: the cell of a key, and the bucket of a cell."""

from __future__ import annotations

import pytest
from table_cases import UNIT, append, found, same_cell, small

from hash3d_cuda import PAPER_GRIDS, Grid

COARSE = Grid(10.0, 10.0, 0.1, 10.0)


def key(elevation=0.0, azimuth=0.0, radius=0.0, timestep=0.0):
    return (elevation, azimuth, radius, timestep)


def test_cells_are_floored_not_truncated(make_table):
    table = small(make_table, grids=[COARSE])
    others = [key(elevation=value) for value in (-0.001, -9.99, -10.0, -10.001, 0.0, 5.0)]
    assert same_cell(table, key(elevation=-5.0), others) == [True, True, True, False, False, False]


def test_every_component_counts(make_table):
    table = small(make_table, grids=[COARSE])
    others = [key(), key(10, 0, 0, 0), key(0, 10, 0, 0), key(0, 0, 0.11, 0), key(0, 0, 0, 10)]
    assert same_cell(table, key(9.9, 9.9, 0.09, 9.9), others) == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("azimuth", "cell"),
    [
        (-0.0, 0),
        (360.0, 0),
        (-360.0, 0),
        (720.0, 0),
        (-1e-9, 0),  # -1e-9 + 360 rounds to 360 in float32, which is 0
        (-1e-3, 35),
        (359.99997, 35),  # the float32 below 360
        (725.0, 0),
        (-5.0, 35),
        (-355.0, 0),
        (-350.0, 1),
        (3599.0, 35),
        (36000012.0, 1),  # 100,000 turns and 12 degrees, a float32
    ],
)
def test_azimuth_is_reduced_to_one_period(make_table, azimuth, cell):
    table = small(make_table, grids=[COARSE], capacity=36)
    append(table, *[key(azimuth=10.0 * i + 5.0) for i in range(36)])  # serial = azimuth cell
    assert found(table, key(azimuth=azimuth)) == [[[cell]]]


def test_azimuth_period_may_be_another(make_table):
    table = small(make_table, grids=[COARSE], azimuth_period=180.0)
    others = [key(azimuth=value) for value in (185.0, -175.0, 365.0, 15.0)]
    assert same_cell(table, key(azimuth=5.0), others) == [True, True, True, False]


def test_azimuth_period_none_is_off(make_table):
    table = small(make_table, grids=[COARSE], azimuth_period=None)
    others = [key(azimuth=value) for value in (-5.0, -0.001, 355.0, 5.0, 715.0)]
    assert same_cell(table, key(azimuth=-10.0), others) == [True, True, False, False, False]


def test_the_division_is_float32(make_table):
    """0.3 / 0.1 is 2.9999999999999996 in float64, but in float32 0.300000012 / 0.100000001 = 3.00000007 rounds to 3;
    and 0.7 / 0.1 is 6.999999999999999, but 7."""
    table = small(make_table, grids=[COARSE])
    assert same_cell(table, key(radius=0.3), [key(radius=0.35), key(radius=0.25)]) == [True, False]
    assert same_cell(table, key(radius=0.7), [key(radius=0.75), key(radius=0.65)]) == [True, False]


def test_only_the_azimuth_is_periodic(make_table):
    table = small(make_table, grids=[COARSE])
    assert same_cell(table, key(), [key(360.0), key(timestep=360.0)]) == [False, False]


def bucket_of(make_table, num_buckets, cell):
    """The bucket of a unit cell: bucket b of a table with match="bucket" and Q=1 holds serial b, because keys
    (b, 0, 0, 0) hash to b. No azimuth period, so that its cell may be negative."""
    options = {
        "grids": [UNIT],
        "num_buckets": num_buckets,
        "queue_length": 1,
        "capacity": num_buckets,
        "match": "bucket",
    }
    table = small(make_table, azimuth_period=None, **options)
    assert append(table, *[key(elevation=float(b)) for b in range(num_buckets)]) == list(range(num_buckets))
    ((serials,),) = found(table, cell)
    return serials


@pytest.mark.parametrize(
    ("num_buckets", "cell", "bucket"),
    [
        (10, (7, 0, 0, 0), 7),
        (10, (23, 0, 0, 0), 3),
        (10, (-1, 0, 0, 0), 9),  # floored; a truncated remainder would be -1
        (10, (0, 1, 0, 0), 3),  # 73856093
        (10, (0, -1, 0, 0), 7),  # -73856093
        (10, (0, 0, 1, 0), 3),  # 19349663
        (10, (0, 0, 0, 1), 1),  # 83492791
        (10, (0, 0, 0, -1), 9),
        (10, (-2, 3, -1, 2), 6),  # -2 + 221568279 - 19349663 + 166985582 = 369204196
        (7, (1, 1, 1, 1), 5),  # 1 + 73856093 + 19349663 + 83492791 = 176698548 = 7 * 25242649 + 5
        (1, (-5, 4, -3, 2), 0),
    ],
)
def test_buckets_by_hand(make_table, num_buckets, cell, bucket):
    assert bucket_of(make_table, num_buckets, tuple(map(float, cell))) == [bucket]


@pytest.mark.parametrize(
    ("cell", "bucket"),
    [
        # 83492791 * 2^40 wraps: 83492791 mod 2^24 = 16383927, as a signed 24-bit number -393289, so the 64-bit sum is
        # -393289 * 2^40; 2^40 ends in 6 and 393289 * 2^40 in 4, so the floored remainder of its negative is 6.
        ((0.0, 0.0, 0.0, 2.0**40), 6),
        ((1e30, 0.0, 0.0, 0.0), 7),  # saturates at 2^63 - 1 = 9223372036854775807
        ((-1e30, 0.0, 0.0, 0.0), 2),  # saturates at -2^63 = -9223372036854775808
        ((1e30, 0.0, 0.0, 1.0), 2),  # 2^63 - 1 + 83492791 wraps to -2^63 + 83492790: -9223372036771283018
        ((3e38, 0.0, 0.0, 0.0), 7),
    ],
)
def test_huge_cells_saturate_and_the_sum_wraps_around(make_table, cell, bucket):
    assert bucket_of(make_table, 10, cell) == [bucket]


def test_huge_cells_share_a_bucket_not_a_cell(make_table):
    table = small(make_table, num_buckets=10)
    assert same_cell(table, key(1e30), [key(2e30), key(1e30), key(2.0**63 - 2.0**39)]) == [False, True, False]


def test_grids_are_told_apart(make_table):
    """Key (15, 15, .12, 15) and (5, 5, .02, 5) share the cell of the 20-degree and of the 30-degree grid only."""
    table = small(make_table, grids=PAPER_GRIDS)
    append(table, (15.0, 15.0, 0.12, 15.0))
    assert found(table, (5.0, 5.0, 0.02, 5.0), (25.0, 25.0, 0.18, 25.0), (31.0, 5.0, 0.02, 5.0)) == [
        [[], [0], [0]],
        [[], [], [0]],
        [[], [], []],
    ]
