"""The look at many objects at once, in ``_C``, against what Python says of them."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hash3d_cuda import _C

VALUES = [object() for _ in range(4)]  # told apart by identity alone
DICTS = st.lists(st.dictionaries(st.sampled_from("abcdefghijklmnop"), st.sampled_from(VALUES), max_size=12), max_size=9)


def said(dicts: list[dict[str, Any]]) -> list[int]:
    return [id(part) for members in dicts for item in (*members.items(), (members,)) for part in item]


@given(DICTS)
def test_items_and_sizes(dicts: list[dict[str, Any]]) -> None:
    items, sizes = _C.items_of(dicts), _C.sizes_of(dicts)
    assert [*map(id, items)] == said(dicts) and sizes == [*map(len, dicts)]
    assert _C.are_items_of(dicts, items) and _C.are_sizes_of(dicts, sizes)


@given(DICTS, st.data())
def test_every_change_is_seen(dicts: list[dict[str, Any]], data: st.DataObject) -> None:
    items, sizes = _C.items_of(dicts), _C.sizes_of(dicts)
    places = [(members, name) for members in dicts for name in members]
    change = data.draw(st.sampled_from(["append", "pop", "put", "copy", "exchange", "delete"]))
    if change == "append":
        dicts.append({})
    elif change in ("pop", "put", "copy"):
        if not dicts:
            return
        place = data.draw(st.integers(0, len(dicts) - 1))
        if change == "pop":
            del dicts[place]
        elif change == "put":
            dicts[place]["new"] = VALUES[0]
        else:
            dicts[place] = dict(dicts[place])  # equal, and another
    else:
        if not places:
            return
        members, name = data.draw(st.sampled_from(places))
        if change == "exchange":
            members[name] = object()
        else:
            del members[name]
    assert not _C.are_items_of(dicts, items)
    assert _C.are_sizes_of(dicts, sizes) is (change in ("copy", "exchange"))


def test_equal_is_not_the_same() -> None:
    members = {"number": 1000.0}
    items = _C.items_of([members])
    members["number"] = float("1000")
    assert not _C.are_items_of([members], items)


@given(st.lists(st.integers(0, 5), max_size=8))
def test_counters(writes: list[int]) -> None:
    """Three addresses on, as in a tensor: object, tensor, counter."""
    counters = [(ctypes.c_uint32 * 4)(7, 7, 2**32 - 1 - count, 7) for count in writes]
    tensors = [(ctypes.c_uint64 * 2)(7, ctypes.addressof(counter)) for counter in counters]
    objects = [ctypes.c_uint64(ctypes.addressof(tensor)) for tensor in tensors]
    first = {ctypes.addressof(number) - id(number) for number in objects} or {0}  # within themselves
    assert _C.sum_counters(objects, first.pop(), 8, 8) == len(writes) * (2**32 - 1) - sum(writes) and not first


def test_what_is_no_dictionary_or_has_no_number() -> None:
    for function in (_C.items_of, _C.sizes_of, lambda dicts: _C.are_items_of(dicts, []), _C.items_of):
        with pytest.raises(TypeError, match="a list of dictionaries"):
            function([{}, 3])
