"""Collects keys of `kdeploy.toml`, and what became of each field that was read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct

Fate = Literal["taken over", "stays", "left out"]


class Adopted(Struct, frozen=True):
    """What became of one field.

    `taken over`: kdeploy sets it from now on, from the keys that `becomes` names. `stays`: it is as it was,
    and kdeploy does not change it. `left out`: it has no effect any more, for the reason in `becomes`.
    """

    field: str
    fate: Fate
    becomes: str


class Found:
    """The keys of `kdeploy.toml`, as nested tables, and a line for each field."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.lines: list[Adopted] = []

    def set(self, path: tuple[str, ...], value: Any) -> None:
        """Set a key."""
        *tables, key = path
        table = self.tables
        for name in tables:
            table = table.setdefault(name, {})
        table[key] = value

    def take(self, field: str, path: tuple[str, ...], value: Any, *, fate: Fate = "taken over") -> None:
        """Set a key to the value of a field."""
        self.set(path, value)
        self.note(field, fate, ".".join(path))

    def note(self, field: str, fate: Fate, becomes: str) -> None:
        """Say what became of a field."""
        self.lines.append(Adopted(field, fate, becomes))

    def add(self, other: Found) -> None:
        """Add what was found elsewhere: its keys win."""
        merge_tables(self.tables, other.tables)
        self.lines += other.lines


def merge_tables(base: dict[str, Any], tables: Mapping[str, Any]) -> None:
    """Merge nested tables into others."""
    for key, value in tables.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merge_tables(base[key], value)
        else:
            base[key] = value


def encode_toml(tables: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the lines of a TOML file with nested tables."""
    inner = {key: value for key, value in tables.items() if isinstance(value, dict)}
    plain = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    if path and (plain or not inner):
        yield from ("", f"[{'.'.join(map(_key, path))}]")
    for key, value in plain.items():
        yield f"{_key(key)} = {encode_value(value)}"
    for key, value in inner.items():
        yield from encode_toml(value, (*path, key))


def encode_value(value: Any) -> str:
    """Return a value as TOML; a table in one line."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(key)} = {encode_value(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(encode_value, value))}]"
    if isinstance(value, str):
        return _text(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("-", "a").replace("_", "a").isalnum()
    return key if plain else _text(key)


def _text(text: str) -> str:
    """Return a basic string of TOML."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    shown = "".join(escapes.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text)
    return f'"{shown}"'
