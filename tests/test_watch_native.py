"""The look at many objects at once, in ``_C``, against what Python says of them."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
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


@given(st.lists(st.integers(-(2**40), 2**40), max_size=20), st.integers(0, 3))
def test_sums(numbers: list[int], unknown: int) -> None:
    """Addresses are only asked for, wherever they point."""
    objects, addresses = [SimpleNamespace(count=number) for number in numbers], array("Q", [0, 64, 2**63][:unknown])
    assert _C.sum_attributes(objects, "count", *addresses.buffer_info()) == sum(numbers)


def test_what_is_no_dictionary_or_has_no_number() -> None:
    for function in (_C.items_of, _C.sizes_of, lambda dicts: _C.are_items_of(dicts, []), _C.items_of):
        with pytest.raises(TypeError, match="a list of dictionaries"):
            function([{}, 3])
    with pytest.raises(AttributeError, match="count"):
        _C.sum_attributes([SimpleNamespace()], "count", 0, 0)
    with pytest.raises(TypeError):
        _C.sum_attributes([SimpleNamespace(count="one")], "count", 0, 0)
