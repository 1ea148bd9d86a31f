"""Corrections as they are written: `--set facts.KEY=VALUE`, `config.KEY=VALUE`, `quantization.KEY=VALUE`.

Must not know what is there now, and therefore reads no value: see `typed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shardmerge.common.errors import BadInputError, printable

PARTS = ("facts", "config", "quantization")
OPEN = ("config",)  # parts that take new keys: whoever reads config.json decides what it knows
DECLARATION = "quantization_config"  # a key of config.json that follows from the part "quantization"
HOW = "Write facts.KEY=VALUE, config.KEY=VALUE or quantization.KEY=VALUE, for example config.rope_theta=1000000."
HOW_NEW = "Write config.KEY=VALUE: facts and quantization take no new keys."
ADDS = "+"  # KEY+=VALUE adds to a list
SET, SET_NEW = "--set", "--set-new"
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Correction:
    """What a user wrote.

    Attributes:
        part: One of PARTS.
        path: The key of the part; more of them lead into nested objects.
        text: The value as it was written.
        adds: The value is added to a list.
        new: It was written with `--set-new`, and so replaces whatever is there.
    """

    part: str
    path: Path
    text: str
    adds: bool = False
    new: bool = False

    @property
    def key(self) -> str:
        return ".".join((self.part, *self.path))

    @property
    def said(self) -> str:
        """What was written, option included."""
        return _said(f"{self.key}{ADDS * self.adds}={self.text}", new=self.new)


def parse(texts: Iterable[str], new_texts: Iterable[str] = ()) -> tuple[Correction, ...]:
    """Parse corrections as they are written.

    Args:
        texts: Of `--set`.
        new_texts: Of `--set-new`.

    Returns:
        All of them, those of `--set-new` first: what they add can be corrected.

    Raises:
        BadInputError: One is written otherwise, or two of them are of one place.
    """
    corrections = (
        *(_parse(text, new=True) for text in new_texts),
        *(_parse(text, new=False) for text in texts),
    )
    _refuse_overlaps(corrections)
    return corrections


def of_part(part: str, corrections: Sequence[Correction]) -> tuple[Correction, ...]:
    """Return those that concern one part."""
    return tuple(one for one in corrections if one.part == part)


def _parse(text: str, *, new: bool) -> Correction:
    key, equals, value = text.partition("=")
    adds = key.endswith(ADDS)
    part, *path = key.removesuffix(ADDS).split(".")
    said = _said(text, new=new)
    if not equals or part not in PARTS or not path or not all(path):
        raise BadInputError(said, HOW_NEW if new else HOW)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadInputError(f"{said} holds half a character", "Write text that UTF-8 can hold.") from None
    if new and (part not in OPEN or adds):
        raise BadInputError(said, f"{SET} adds to a list that is there." if adds else HOW_NEW)
    if (part, path[0]) == ("config", DECLARATION):
        raise BadInputError(
            f"{said}: {DECLARATION} says what the weights are",
            "Correct it with --set quantization.KEY=VALUE, which keeps it and hf_quant_config.json alike.",
        )
    return Correction(part, tuple(path), value, adds, new)


def _said(text: str, *, new: bool) -> str:
    return f"{SET_NEW if new else SET} {printable.one_line(text)}"


def _refuse_overlaps(corrections: Sequence[Correction]) -> None:
    """Raise BadInputError if two corrections are of one place, or one is of a place inside of the other's."""
    places = [(correction.part, *correction.path) for correction in corrections]
    if twice := sorted({place for place in places if places.count(place) > 1}):
        raise BadInputError(f"{'.'.join(twice[0])} is set twice", "Set it once.")
    for place in places:
        for length in range(2, len(place)):
            if place[:length] in places:
                raise BadInputError(
                    f"{'.'.join(place)} is set, and so is {'.'.join(place[:length])}, which holds it",
                    "Set one of them.",
                )
