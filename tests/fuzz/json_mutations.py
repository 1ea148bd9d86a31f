"""Changes values inside JSON, by their kind: what no flip of bytes would find, because its result does not parse.

Decides what is put where. Must not know what the JSON means; who keeps a digest repairs it afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

Json = Any
MOST_CHANGES = 3
DEEP = 2_000
INTEGERS = (
    -1,
    0,
    1,
    2,
    5,
    127,
    255,
    1 << 15,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    1 << 53,
    1 << 62,
    1 << 63,
    1 << 64,
    1 << 70,
    10**12,
    10**400,
    -(1 << 63),
)
FLOATS = (0.0, -0.0, 0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "a",
    ".",
    "..",
    "../x",
    "/",
    "/x",
    "a/b",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "\ud800",
    "\u202e",
    "x" * 300,
    "*",
    "**",
    "[",
    "F32",
    "BF16",
    "F4",
    "U8",
    "F8_E4M3",
    "NVFP4",
    "FP8",
    "MIXED_PRECISION",
    "config.json",
    "model.safetensors",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1000000000000.mlp.up_proj.weight",
    "0" * 32,
)


def mutated(text: bytes, rng: Random) -> bytes:
    """Return JSON with some values changed. Raises ValueError if it is not JSON."""
    root = [parsed(text)]
    for _ in range(rng.randint(1, MOST_CHANGES)):
        rng.choice(CHANGES)(*_place(root, rng), rng)
        root = root[:1] or [None]  # whoever changed it as a whole may have removed or repeated it
    return encoded(root[0], rng)


def parsed(text: bytes) -> Json:
    """Parse JSON, NaN included. Raises ValueError, also for what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encoded(value: Json, rng: Random) -> bytes:
    """Return a value as JSON; now and then as another program might write it, and with a key twice."""
    try:
        text = json.dumps(value, separators=(",", ":"), indent=rng.choice((None,) * 15 + (2,)))
    except RecursionError:
        return b"[" * DEEP
    if rng.random() < 0.02 and text.startswith("{") and isinstance(value, dict) and value:
        text = f"{{{json.dumps(rng.choice(list(value)))}:0,{text[1:]}"
    return text.encode("utf-8", "surrogatepass") + b"\n"


def any_value(rng: Random) -> Json:
    """Return a value of any kind."""
    kind = rng.randrange(10)
    if kind < 3:
        return rng.choice(INTEGERS)
    if kind < 6:
        return rng.choice(TEXTS)
    return rng.choice(
        (None, True, False, [], {}, [[]], [{}], {"": None}, {"a": {}}, [0] * 300, rng.choice(FLOATS))
    )


def _like(value: Json, rng: Random) -> Json:
    """Return another value of the same kind."""
    if type(value) is int:
        return rng.choice(
            (value + 1, value - 1, -value, value * 2, value ^ 1 << rng.randrange(40), rng.choice(INTEGERS))
        )
    if isinstance(value, str):
        at = rng.randint(0, len(value))
        put = rng.choice((*TEXTS, chr(rng.randrange(32, 127))))
        return rng.choice(
            (rng.choice(TEXTS), value[:at] + put + value[at:], value[:at], value[:at] + value[at + 1 :])
        )
    if isinstance(value, float):
        return rng.choice((*FLOATS, -value, value * 3))
    if isinstance(value, list):
        return rng.choice(([], value * 2, value[1:], value[::-1], [value]))
    if isinstance(value, dict):
        return rng.choice(({}, {"a": value}, list(value), dict(list(value.items())[1:])))
    return rng.choice((None, True, False))


def _place(root: Json, rng: Random) -> tuple[Json, Json]:
    """Walk to a random value. Returns what holds it, and its key there."""
    held, key = root, 0
    while True:
        inner = held[key]
        if not isinstance(inner, list | dict) or not inner or rng.random() < 0.15:
            return held, key
        held = inner
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))


def _change(held: Json, key: Json, rng: Random) -> None:
    held[key] = _like(held[key], rng)


def _replace(held: Json, key: Json, rng: Random) -> None:
    held[key] = any_value(rng)


def _remove(held: Json, key: Json, rng: Random) -> None:
    del held[key]
    if not held and rng.random() < 0.5:
        _add(held, "", any_value(rng))


def _repeat(held: Json, key: Json, rng: Random) -> None:
    _add(held, f"{key}{rng.choice(('', '2', '_scale', '@0'))}", held[key])


def _add(held: Json, key: str, value: Json) -> None:
    if isinstance(held, dict):
        held[key] = value
    else:
        held.append(value)


def _rename(held: Json, key: Json, rng: Random) -> None:
    if isinstance(held, dict):
        held[_like(key, rng)] = held.pop(key)
    else:
        held[key] = rng.choice(held)


def _row(held: Json, key: Json, rng: Random) -> None:
    """Remove or repeat one place of all lists that are as long as this one: a row of columns."""
    if not isinstance(held[key], list) or not held[key]:
        return _change(held, key, rng)
    size, at = len(held[key]), rng.randrange(len(held[key]))
    put = rng.random() < 0.5
    for column in held.values() if isinstance(held, dict) else held:
        if isinstance(column, list) and len(column) == size:
            column[at : at + 1] = column[at : at + 1] * 2 if put else []
    return None


def _deepen(held: Json, key: Json, rng: Random) -> None:
    for _ in range(rng.choice((2, 10, DEEP // 10))):
        held[key] = [held[key]] if rng.random() < 0.5 else {"a": held[key]}


def _borrow(held: Json, key: Json, rng: Random) -> None:
    """Put a value from elsewhere in the same object or list."""
    others = list(held.values()) if isinstance(held, dict) else held
    held[key] = parsed(json.dumps(rng.choice(others)).encode())


Change = Callable[[Json, Json, Random], None]
CHANGES: tuple[Change, ...] = (_change,) * 6 + (_replace,) * 4 + (_remove,) * 2 + (_row,) * 2 + (
    _repeat, _rename, _borrow, _deepen,
)  # fmt: skip
