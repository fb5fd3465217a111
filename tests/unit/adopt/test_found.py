"""kdeploy.toml is written so that it reads back as it was."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.adopt.found import Found, encode_toml, encode_value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_any_tables_read_back(tables: dict[str, Any]) -> None:
    assert tomllib.loads("\n".join(encode_toml(tables))) == tables


@pytest.mark.parametrize(
    "value", ['say "hi"', "a\\b", "a\nb\tc\rd", "\x7f\x00\u0085", "naïve 🐈", "", "x = 1"]
)
def test_any_text_reads_back(value: str) -> None:
    assert tomllib.loads(f"x = {encode_value(value)}") == {"x": value}


def test_a_table_comes_after_the_keys_beside_it() -> None:
    lines = list(encode_toml({"a": {"inner": {"x": 1}, "y": [1, {"z": True}], "empty": {}}}))
    assert lines == ["", "[a]", "y = [1, { z = true }]", "", "[a.inner]", "x = 1", "", "[a.empty]"]


def test_what_is_found_later_wins() -> None:
    first, second = Found(), Found()
    first.take("a", ("serving", "cpu"), "1")
    first.set(("serving", "gpu"), 1)
    second.take("b", ("serving", "cpu"), "2", fate="stays")
    first.add(second)
    assert first.tables == {"serving": {"cpu": "2", "gpu": 1}}
    assert [(line.field, line.fate, line.becomes) for line in first.lines] == [
        ("a", "taken over", "serving.cpu"),
        ("b", "stays", "serving.cpu"),
    ]
