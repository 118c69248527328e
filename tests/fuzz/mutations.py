"""Damage for files: blind damage to bytes, and damage to JSON that keeps it JSON."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"inf",
    b"",
    b"99999999999999999999",
    b"-9223372036854775809",
    b"0x10",
    b"1.5",
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31, 2**64, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "nan", "\x00", "../../etc/passwd", "a" * 5000, "\ud83d\ude00", [], {}, [[]], {"": None}, [None]),
)


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three blind changes; never the data as it was."""
    changed = data
    while changed == data:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            changed = rng.choice(_CHANGES)(changed, rng)
    return changed


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """One to three changes to the structure: values of other types and sizes, keys that are gone or renamed."""
    document = json.loads(data)
    changed = document
    while json.dumps(changed) == json.dumps(document):
        changed = copy.deepcopy(document)
        for _ in range(rng.choice((1, 1, 2, 3))):
            changed = _change_json(changed, rng)
    return json.dumps(changed).encode("utf-8", "surrogatepass")


def damage_lines(data: bytes, rng: random.Random) -> bytes:
    """One to three changes to a table in text: fields replaced, dropped, added; lines dropped, doubled, swapped."""
    changed = data
    while changed == data:
        lines = data.split(b"\n")
        for _ in range(rng.choice((1, 1, 2, 3))):
            _change_lines(lines, rng)
        changed = b"\n".join(lines)
    return changed


def _place(data: bytes, rng: random.Random) -> tuple[int, int]:
    """A range; often near the front, where headers are, or the end, where some formats have theirs."""
    size = len(data)
    region = rng.choice((64, 1024, size, size, -1024))
    start = max(0, size + region) if region < 0 else 0
    at = rng.randrange(start, max(start + 1, min(size, size if region < 0 else region)))
    return at, min(size, at + rng.choice((1, 1, 2, 4, 8, 64, 1024)))


def _flip(data: bytes, rng: random.Random) -> bytes:
    array = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 32))):
        if array:
            array[_place(data, rng)[0] % len(array)] ^= 1 << rng.randrange(8)
    return bytes(array)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    a, b = _place(data, rng)
    fill = rng.choice((b"\x00", b"\xff", b"\x7f", None))
    return data[:a] + (rng.randbytes(b - a) if fill is None else fill * (b - a)) + data[b:]


def _remove(data: bytes, rng: random.Random) -> bytes:
    a, b = _place(data, rng)
    return data[:a] + data[b:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    a, b = _place(data, rng)
    return data[:a] + rng.randbytes(b - a) + data[a:]


def _double(data: bytes, rng: random.Random) -> bytes:
    a, b = _place(data, rng)
    return data[:b] + data[a:]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, 8, _place(data, rng)[0], rng.randrange(len(data) + 1), max(0, len(data) - 1)))]


def _append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 8, 4096)))


def _number(data: bytes, rng: random.Random) -> bytes:
    """A number in text, where there is one, becomes another."""
    digits = [i for i, byte in enumerate(data[:20000]) if 48 <= byte <= 57]
    if not digits:
        return _flip(data, rng)
    a = b = rng.choice(digits)
    while b < len(data) and 48 <= data[b] <= 57:
        b += 1
    return data[:a] + rng.choice(_NUMBERS) + data[b:]


_CHANGES = (_flip, _flip, _overwrite, _remove, _insert, _double, _truncate, _append, _number)


def _change_json(document: Any, rng: random.Random) -> Any:
    node, path = document, []
    while isinstance(node, dict | list) and node and rng.random() < 0.85:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append((node, key))
        node = node[key]
    if not path:
        return copy.deepcopy(rng.choice(_VALUES))
    parent, key = path[-1]
    action = rng.choice(("replace", "replace", "drop", "double", "wrap", "rename"))
    if action == "drop":
        del parent[key]
    elif action == "double" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(node))
    elif action == "wrap":
        parent[key] = [node]
    elif action == "rename" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    else:
        parent[key] = copy.deepcopy(rng.choice(_VALUES))
    return document


def _change_lines(lines: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    separator = next((s for s in (b",", b"\t", b" ") if s in lines[at]), b",")
    fields = lines[at].split(separator)
    place = rng.randrange(len(fields))
    action = rng.choice(("field", "field", "field", "drop field", "add field", "drop", "double", "swap", "bytes"))
    if action == "field":
        fields[place] = rng.choice((*_NUMBERS, rng.randbytes(4)))
    elif action == "drop field":
        del fields[place]
    elif action == "add field":
        fields.insert(place, rng.choice(_NUMBERS))
    elif action == "drop":
        lines.pop(at)
        lines or lines.append(b"")
        return
    elif action == "double":
        lines.insert(at, lines[at])
        return
    elif action == "swap":
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
        return
    else:
        lines[at] = damage_bytes(lines[at] or b"0", rng)
        return
    lines[at] = separator.join(fields)
