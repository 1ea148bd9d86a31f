"""JSON as it is written and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardmerge.common import canonical_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_keys_are_sorted_and_a_newline_ends_it() -> None:
    assert canonical_json.encode({"b": 1, "a": [True, None]}) == b'{"a":[true,null],"b":1}\n'


def test_indented_json_is_what_the_standard_library_writes() -> None:
    value = {"b": {"c": 1}, "a": []}
    assert (
        canonical_json.encode(value, indent=2).decode() == json.dumps(value, indent=2, sort_keys=True) + "\n"
    )


def test_not_a_number_has_no_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json.encode(float("nan"))


@given(VALUES)
def test_what_is_written_is_read_again(value: object) -> None:
    assert (
        canonical_json.decode(canonical_json.encode(value))
        == value
        == json.loads(canonical_json.encode(value))
    )


def test_a_duplicate_key_is_refused_and_named() -> None:
    with pytest.raises(ValueError, match="'a' occurs twice"):
        canonical_json.decode(b'{"x": {"a": 1, "b": 2, "a": 3}}')


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[1,]", b"[" * 100_000], ids=["empty", "open", "utf8", "comma", "deep"]
)
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        canonical_json.decode(data)


def test_an_object_keeps_the_order_of_its_keys(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"b": 1, "a": 2}')
    assert list(canonical_json.read_object(tmp_path / "x.json")) == ["b", "a"]


def test_a_file_that_holds_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="got list"):
        canonical_json.read_object(tmp_path / "x.json")
