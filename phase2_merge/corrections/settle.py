"""From corrections to changes: which keys of what is there now get which value.

Decides which keys are known, and that what is said in two places changes in both.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shardmerge.common.architectures import Architecture, table_of
from shardmerge.common.architectures.settings.says import COMMON_SYNONYMS, Synonyms
from shardmerge.common.errors import BadInputError, UnsupportedArchitectureError
from shardmerge.common.manifest_facts import Facts

from . import typed
from .changes import Change, Path, at, corrected, is_there, not_an_object, placed
from .written import OPEN, SET_NEW, Correction, of_part

Json = Any
ARCHITECTURES = "architectures"
# keys that a merge writes into every config.json, as strings: they can be corrected also where a reference has neither
WRITTEN = {"torch_dtype": "", "dtype": ""}
DEPTH = 3  # of objects, in which near keys are looked for
NEAR = 3  # of them are named
NAMES = (("quantization", "quant_algo"), ("quantization", "kv_cache_quant_algo"))  # each is a string or null


def settled(
    part: str,
    values: Mapping[str, Json],
    corrections: Sequence[Correction],
    synonyms: Iterable[Synonyms] = (),
) -> tuple[Change, ...]:
    """Turn the corrections of one part into changes.

    Args:
        part: "facts", "config" or "quantization".
        values: What is said of that part now.
        corrections: All that were given. Those of other parts are ignored.
        synonyms: Groups of keys that say the same thing. A correction of one is of each that is there.

    Returns:
        A change for each key that gets a value.

    Raises:
        BadInputError: A key is not there, a value is not JSON or has another type, or two corrections contradict each
            other.
    """
    groups, now = tuple(synonyms), dict(values)
    direct: list[tuple[Correction, Change]] = []
    # those of keys that are not there come last: they are of what the others leave there
    in_order = sorted(of_part(part, corrections), key=lambda one: not (one.new or is_there(values, one.path)))
    for correction in in_order:
        path = _place(now, correction, groups)
        was = at(now, path)
        change = Change(part, path, _value(correction, was))
        direct.append((correction, change))
        now = placed(now, change)
    changes = {change.path: change for _, change in direct}
    for group in groups:
        changes |= {change.path: change for change in _spread(now, direct, group)}
    return tuple(changes.values())


def settled_config(
    config: Mapping[str, Json], corrections: Sequence[Correction], table: Architecture | None = None
) -> tuple[Change, ...]:
    """Turn the corrections of config.json into changes, also of what its architecture says in a second place.

    Args:
        config: What it says now.
        corrections: All that were given. Those of other parts are ignored.
        table: A table of the caller's own, which may know second places too.

    Returns:
        A change for each key that gets a value.

    Raises:
        BadInputError: As for `settled`.
    """
    named = [one for one in of_part("config", corrections) if one.path == (ARCHITECTURES,)]
    becomes = corrected("config", config, settled("config", config, named))
    return settled("config", {**WRITTEN, **config}, corrections, _synonyms(becomes, table))


def settled_facts(facts: Facts, corrections: Sequence[Correction]) -> tuple[Change, ...]:
    """Turn the corrections of facts into changes. Raises BadInputError as `settled` does."""
    return settled("facts", facts.as_json(), corrections) if of_part("facts", corrections) else ()


def _place(now: Mapping[str, Json], correction: Correction, groups: Sequence[Synonyms]) -> Path:
    """Return which path a correction is of: its own, or if only another key says the same, that key's.

    Raises BadInputError if neither is there.
    """
    path = correction.path
    for length in range(1, len(path)):
        inner = at(now, path[:length])
        if inner is not None and not isinstance(inner, Mapping):
            raise not_an_object(correction.key, path[length - 1], inner)
    if correction.new or is_there(now, path):
        return path
    named = ".".join(path)
    siblings = (tuple(key.split(".")) for group in groups if named in group for key in group)
    if (sibling := next((one for one in siblings if is_there(now, one)), None)) is not None:
        return sibling
    raise BadInputError(
        f"{correction.said}: there is no {named} to correct", _what_there_is(now, correction, named)
    )


def _what_there_is(now: Mapping[str, Json], correction: Correction, named: str) -> str:
    """Return what to do about a key that is not there."""
    if correction.part not in OPEN:
        return f"There is {', '.join(sorted(now)) or 'nothing: it is not quantized'}."
    keys = list(_keys(now))
    last = correction.path[-1]
    near = dict.fromkeys(key for key in keys if key.split(".")[-1] == last)
    near |= dict.fromkeys(difflib.get_close_matches(named, keys, NEAR))
    question = f"Do you mean {', '.join(list(near)[:NEAR])}? " if near else ""
    return f"{question}To add a key: {SET_NEW} {correction.key}=VALUE."


def _keys(values: Mapping[str, Json], depth: int = DEPTH) -> Iterator[str]:
    """Yield all keys, dotted, also of nested objects."""
    for key, held in values.items():
        yield key
        if isinstance(held, Mapping) and depth > 1:
            yield from (f"{key}.{inner}" for inner in _keys(held, depth - 1))


def _value(correction: Correction, was: Json) -> Json:
    """Return the value that a correction gives to what was there. Raises BadInputError."""
    try:
        return typed.require_recordable(_read(correction, was))
    except typed.NotJsonError as error:
        raise BadInputError(f"{correction.said}: {error}", "Write VALUE as JSON.") from None
    except ValueError as error:
        raise BadInputError(f"{correction.said}: {error}", _another_way(correction)) from None


def _read(correction: Correction, was: Json) -> Json:
    """Return the value of a correction. Raises ValueError for a text that does not say one that fits."""
    if correction.adds:
        words = not isinstance(was, list) or all(isinstance(each, str) for each in was)
        return typed.added(typed.read(correction.text, "" if words else None), was)
    is_name = (correction.part, *correction.path) in NAMES
    was = "" if is_name and was is None else was
    value = typed.read(correction.text, was)
    return value if correction.new or (is_name and value is None) else typed.fitting(value, was)


def _spread(
    now: Mapping[str, Json], direct: Sequence[tuple[Correction, Change]], group: Synonyms
) -> Iterator[Change]:
    """Yield changes of all keys of a group that are there, if corrections say what one of them says.

    A null says nothing, and stays alone. Raises BadInputError if two corrections say different things.
    """
    said = [
        (correction, value)
        for correction, change in direct
        for key in group
        if (value := _said(change, tuple(key.split(".")))) is not None
    ]
    if not said:
        return
    correction, value = said[0]
    for other, other_value in said[1:]:
        if not typed.same(value, other_value):
            raise BadInputError(
                f"{correction.said} and {other.said} contradict each other: {', '.join(group)} say the same",
                "Give one of them: it changes all that are there.",
            )
    for path in (tuple(key.split(".")) for key in group):
        if not is_there(now, path) or any(_said(change, path) is not None for _, change in direct):
            continue
        try:
            fits = typed.fitting(value, at(now, path))
        except ValueError as error:
            if correction.new:
                yield Change(correction.part, path, value)
                continue
            raise BadInputError(
                f"{correction.said}, which {'.'.join(path)} says too: {error}", _another_way(correction)
            ) from None
        yield Change(correction.part, path, fits)


def _said(change: Change, path: Path) -> Json:
    """Return what a change says of a path, None for nothing."""
    if path[: len(change.path)] != change.path:
        return None
    return at(change.value, path[len(change.path) :])


def _another_way(correction: Correction) -> str:
    """Return what to do about a value that does not fit."""
    if correction.new or correction.adds or correction.part not in OPEN:
        return "Give another value."
    return f"Give a value of that type, or replace it whatever it is: {SET_NEW} {correction.key}=VALUE."


def _synonyms(config: Mapping[str, Json], table: Architecture | None) -> tuple[Synonyms, ...]:
    """Return the groups of keys that say the same; of an architecture without a table, those that all have."""
    try:
        return table_of(config, table).synonyms
    except (BadInputError, UnsupportedArchitectureError):
        return COMMON_SYNONYMS
