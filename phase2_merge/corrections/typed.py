"""Values of corrections: JSON, of the type that is there now.

Decides what a text means, and what fits in place of what. Must not know which key it is about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shardmerge.common import canonical_json

Json = Any
LITERALS = {
    "true": "true",
    "false": "false",
    "none": "null",
    "null": "null",
}  # however they are spelt elsewhere
BEGINNINGS = ("{", "[", '"', "'")  # of what is meant to be JSON, or is a string of another language
SHOWN = 60  # characters of a value in a message
NO_NUMBER = "JSON has no such number"
TOO_DEEP = "it is nested too deeply"


class NotJsonError(ValueError):
    """A text is not JSON. The message says how it is written."""


def read(text: str, was: Json) -> Json:
    """Return the value that a text says.

    Args:
        text: JSON. In place of a string, a word needs no quotes.
        was: What is there now, None for nothing.

    Returns:
        The value.

    Raises:
        NotJsonError: It is not JSON.
        ValueError: It holds a key twice, or is nested too deeply.
    """
    try:
        return canonical_json.decode(text.encode())
    except json.JSONDecodeError:
        if isinstance(was, str) and _is_word(text):
            return text
        raise NotJsonError(f"it is not JSON: {_how(text)}") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None


def fitting(value: Json, was: Json) -> Json:
    """Return a value for the place of another one, whose type it has.

    Numbers are one type: one without a fraction becomes an integer in place of an integer, and any becomes a fraction
    in place of a fraction. What objects hold under the same key, and what lists of one type hold, is compared too.

    Args:
        value: What shall be there.
        was: What is there now. In place of null anything fits.

    Returns:
        The value, numbers spelt as those that are there.

    Raises:
        ValueError: It has another type, or is too large a number.
    """
    try:
        return _fitting(value, was)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def added(value: Json, was: Json) -> list[Json]:
    """Return a list with a value, or with the elements of a value that is a list, at its end, unless it holds them.

    Raises ValueError if there is not a list, or its elements have another type.
    """
    if not isinstance(was, list):
        raise ValueError(f"there is {shown(was)}, which is not a list")
    more = fitting(value if isinstance(value, list) else [value], was)
    return was + [each for each in more if each not in was]


def recordable(value: Json) -> Json:
    """Return a value for the report. Infinities, which files like config.json may hold, become strings in it."""
    return json.loads(json.dumps(value), parse_constant=str)


def require_recordable(value: Json) -> Json:
    """Return a value that a report can record as it is. Raises ValueError for any other."""
    try:
        if value == recordable(value):
            return value
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    raise ValueError(NO_NUMBER)


def same(one: Json, other: Json) -> bool:
    """Whether two values say the same: numbers whatever their spelling, and true is not 1."""
    return bool(one == other and kind(one) == kind(other))


def kind(value: Json) -> str:
    """Return what a value is, in words with an article."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def shown(value: Json) -> str:
    """Return a value for a message, cut if it is long."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _fitting(value: Json, was: Json) -> Json:
    if was is None:
        return value
    if kind(value) != kind(was):
        raise ValueError(f"{shown(value)} is {kind(value)}, and {shown(was)}, which is there, is {kind(was)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, was)
    if isinstance(value, Mapping):
        return {key: _fitting(held, was.get(key)) for key, held in value.items()}
    return _elements(value, was) if isinstance(value, list) else value


def _elements(value: list[Json], was: list[Json]) -> list[Json]:
    """Return elements for the place of others, compared with them if all of those have one type."""
    if len({kind(each) for each in was}) != 1:
        return value
    example = next((each for each in was if isinstance(each, float)), was[0])
    if isinstance(example, list | Mapping):
        example = type(example)()  # one of them tells nothing of what is inside of the others
    return [_fitting(each, example) for each in value]


def _number(value: Json, was: Json) -> Json:
    if isinstance(was, float):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(NO_NUMBER) from None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_word(text: str) -> bool:
    """Whether a text that is not JSON can only be meant as a string."""
    return not (text.startswith(BEGINNINGS) or text.strip().lower() in LITERALS or _is_number(text))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _how(text: str) -> str:
    """Return how a text that is not JSON is written."""
    if (literal := LITERALS.get(text.strip().lower())) is not None:
        return f"it is written as {literal}"
    if text.startswith(BEGINNINGS):
        return 'strings and keys stand in double quotes, as ["a", "b"] or {"a": true}'
    return (
        "a number is written as 0.5 or 1000000"
        if _is_number(text)
        else f"a string is written as {json.dumps(text)}"
    )
