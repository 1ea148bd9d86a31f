"""What becomes of the values of a part: a Change for each key, applied to a copy.

Must not know what was written, nor why a key changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.common.errors import BadInputError
from shardmerge.common.manifest_facts import Facts

from . import typed

Json = Any
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A `value` for the place `path` of a part, whatever is there."""

    part: str
    path: Path
    value: Json

    @property
    def key(self) -> str:
        return ".".join((self.part, *self.path))

    def is_inside(self, other: Change) -> bool:
        """Whether its place is that of another change, or lies in it."""
        return self.part == other.part and self.path[: len(other.path)] == other.path


def corrected(part: str, values: Mapping[str, Json], changes: Sequence[Change]) -> dict[str, Json]:
    """Apply the changes of one part to a copy of its values.

    Args:
        part: "facts", "config" or "quantization".
        values: What is said of that part.
        changes: Those of other parts are ignored.

    Returns:
        The corrected values, in the old order of keys.

    Raises:
        BadInputError: A key leads through something that is not an object.
    """
    result = dict(values)
    for change in changes:
        if change.part == part:
            result = placed(result, change)
    return result


def corrected_facts(facts: Facts, changes: Sequence[Change]) -> Facts:
    """Apply changes to facts. Raises BadInputError as `corrected` does, and for a value that facts cannot have."""
    if not any(change.part == "facts" for change in changes):
        return facts
    try:
        return Facts.of_json(corrected("facts", facts.as_json(), changes))
    except ValueError as error:
        raise BadInputError(f"--set: {error}", "Set it to another value.") from None


def refuse_undone(told: Mapping[str, Json], final: Mapping[str, Json], changes: Sequence[Change]) -> None:
    """Raise BadInputError for a change that promises what is dropped, which the report would record in vain.

    Args:
        told: config.json with all changes.
        final: The same without multi-token prediction.
        changes: Those of other parts are ignored.
    """
    for change in changes:
        asked, stays = at(told, change.path), at(final, change.path)
        if change.part == "config" and asked != stays and (asked or stays):
            becomes = "removes it" if stays is None else f"makes it {typed.shown(stays)}"
            raise BadInputError(
                f"{change.key}={typed.shown(asked)} contradicts --drop-mtp, which {becomes}",
                "Give one of them. What was dropped comes back with a merge without --drop-mtp.",
            )


def placed(values: Mapping[str, Json], change: Change) -> dict[str, Json]:
    """Return a copy of `values` with a change. Raises BadInputError if it leads through something else than objects."""
    return _placed(values, change.path, change)


def _placed(values: Mapping[str, Json], path: Path, change: Change) -> dict[str, Json]:
    """Place a change at `path`, which is what is left of its own path."""
    first, *rest = path
    if not rest:
        return {**values, first: change.value}
    inner = values.get(first)
    if inner is not None and not isinstance(inner, Mapping):
        raise not_an_object(change.key, first, inner)
    return {**values, first: _placed(inner or {}, tuple(rest), change)}


def at(values: Json, path: Path) -> Json:
    """Return the value at a path, None where there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def is_there(values: Json, path: Path) -> bool:
    """Whether there is a key at a path, also one that holds null."""
    inside = at(values, path[:-1])
    return isinstance(inside, Mapping) and path[-1] in inside


def not_an_object(key: str, name: str, held: Json) -> BadInputError:
    """Return the refusal of a key that leads through something else than objects.

    Args:
        key: What should be set.
        name: The part of it that is not an object.
        held: What is there.

    Returns:
        An error that is not raised.
    """
    return BadInputError(
        f"{key} cannot be set: {name} is {typed.shown(held)}, which is not an object", "Set it as a whole."
    )
