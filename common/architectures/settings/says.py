"""Where a config.json says a setting: the rows of a table that are about no tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .vocabulary import Value

Config = Mapping[str, Any]
Key = str  # of config.json; a dot leads into an object, as in rope_parameters.rope_theta
Synonyms = tuple[Key, ...]

# what every config.json may say twice, whatever its architecture
COMMON_SYNONYMS: tuple[Synonyms, ...] = (("dtype", "torch_dtype"),)


@dataclass(frozen=True, slots=True)
class Says:
    """How a config.json says one setting.

    Attributes:
        setting: Its name in the vocabulary.
        keys: What a user would change to change it. None if the architecture leaves no choice.
        value: Of a config.json, its value. Raises KeyError, TypeError or ValueError if that makes no sense.
        synonyms: Keys that say the same thing; the first that is there counts.
    """

    setting: str
    keys: tuple[Key, ...]
    value: Callable[[Config], Value]
    synonyms: tuple[Synonyms, ...] = ()


def key(
    setting: str, *keys: Key, otherwise: Value = None, reads: Callable[[Value], Value] = lambda value: value
) -> Says:
    """Return the row of a setting that one key says.

    Args:
        setting: Its name in the vocabulary.
        keys: All spellings of the key; the first that is there, and is not null, counts.
        otherwise: The value where none is.
        reads: Turns what the key holds into the setting's value.

    Returns:
        The row.
    """

    def value(config: Config) -> Value:
        for _, held in said(config, keys):
            if held is not None:
                return reads(held)
        return otherwise

    return Says(setting, keys, value, (keys,) if len(keys) > 1 else ())


def flag(setting: str, name: Key, *, otherwise: bool) -> Says:
    """Return the row of a setting that is true or false, and for which readers take null for false.

    Args:
        setting: Its name in the vocabulary.
        name: The key.
        otherwise: The value where the key is absent.

    Returns:
        The row.
    """

    def value(config: Config) -> Value:
        held = config.get(name, otherwise)
        return False if held is None else held

    return Says(setting, (name,), value)


def always(setting: str, value: Value) -> Says:
    """Return the row of a setting that readers of this architecture do not read: it has one value."""
    return Says(setting, (), lambda _: value)


def derived(setting: str, keys: Iterable[Key], value: Callable[[Config], Value], *synonyms: Synonyms) -> Says:
    """Return the row of a setting that follows from several keys.

    Args:
        setting: Its name in the vocabulary.
        keys: What a user would change to change it.
        value: Of a config.json, its value.
        synonyms: Keys that say the same thing.

    Returns:
        The row.
    """
    return Says(setting, tuple(keys), value, synonyms)


def said(config: Config, keys: Iterable[Key]) -> Iterator[tuple[Key, Value]]:
    """Yield those of these keys that are there, with what they hold."""
    for one in keys:
        held: Any = config
        for part in one.split("."):
            if not isinstance(held, Mapping) or part not in held:
                break
            held = held[part]
        else:
            yield one, held


def contradictions(
    config: Config, synonyms: Iterable[Synonyms]
) -> Iterator[tuple[tuple[Key, Value], tuple[Key, Value]]]:
    """Yield pairs of keys that say the same thing and hold different values. Null says nothing."""
    for keys in synonyms:
        held = [(one, value) for one, value in said(config, keys) if value is not None]
        yield from ((held[0], other) for other in held[1:] if other[1] != held[0][1])
