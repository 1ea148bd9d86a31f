"""The options that several commands share, and the words that they accept.

Imports nothing of what the options decide, so help and refusals are instant.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from shardmerge.common.errors import BadInputError

if TYPE_CHECKING:
    from shardmerge.common.architectures import Architecture

Verification = Literal["full", "size"]
VERIFICATIONS: tuple[str, ...] = get_args(Verification)
Uncalibrated = Literal["error", "layer-max"]
UNCALIBRATED: tuple[str, ...] = get_args(Uncalibrated)
ALLOW_CONFIG = "config"
# as grafts: what the table of the architecture calls multi-token prediction, and what stands beside the language model
MTP, VISION = "mtp", "vision"
ALLOWANCES = ("nan", "replicas", ALLOW_CONFIG, VISION)  # the words that errors name as their `allow`
ADOPT, CANONICAL = LAYOUTS = ("adopt", "canonical")


@dataclass(frozen=True, slots=True)
class Asked:
    """The options that `check`, `merge` and `merge_part` share. Raises BadInputError for a word that is not known.

    Attributes:
        dumps: Directories that, together, hold all ranks.
        hf_reference: Hugging Face directory of the same model.
        allow: Kinds of problems that become warnings.
        uncalibrated: What experts get whose inputs calibration never saw.
        corrections: `facts.KEY=VALUE` and the like.
        grafts: Patterns of the names of tensors that are taken from the reference, MTP, or VISION.
        drop_mtp: Leave out multi-token prediction, and say so in config.json.
        new_corrections: `config.KEY=VALUE`, whatever is there.
        architecture: A table of the caller's own, or `package.module:TABLE`.
    """

    dumps: str | Path | Sequence[str | Path]
    hf_reference: str | Path
    allow: Collection[str] = ()
    uncalibrated: Uncalibrated = "error"
    corrections: Sequence[str] = ()
    grafts: Sequence[str] = ()
    drop_mtp: bool = False
    new_corrections: Sequence[str] = ()
    architecture: str | Architecture | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dumps", as_paths(self.dumps))
        refuse_unknown("allow", self.allow, ALLOWANCES)
        refuse_unknown("uncalibrated", [self.uncalibrated], UNCALIBRATED)
        if self.drop_mtp and MTP in self.grafts:
            raise BadInputError(
                "--drop-mtp and --graft mtp", "Give one of them, or none to keep what was trained."
            )


def as_paths(dumps: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """Return the dumps that a caller gave, who may have given one without a list. Raises BadInputError for none."""
    given = (dumps,) if isinstance(dumps, str | Path) else tuple(dumps)
    if not given or not all(map(str, given)):
        raise BadInputError("no DUMP", "Give the directories that a dump wrote.")
    return tuple(map(Path, given))


def refuse_nested(dumps: str | Path | Sequence[str | Path], out: Path) -> None:
    """Refuse an output inside a dump, whose listing it would change, and a dump inside of the output.

    Args:
        dumps: The dumps.
        out: The output.

    Raises:
        BadInputError: One lies in the other, or they are the same.
    """
    here = Path(os.path.realpath(out))
    for dump in as_paths(dumps):
        there = Path(os.path.realpath(dump))
        if here.is_relative_to(there):
            where = "is the DUMP" if here == there else f"lies inside the DUMP {dump}"
            raise BadInputError(f"OUT {out} {where}", "Give an OUT beside it.")
        if there.is_relative_to(here):
            raise BadInputError(f"the DUMP {dump} lies inside OUT {out}", "Give an OUT beside it.")


def refuse_unknown_verification(verify: object) -> None:
    """Raise BadInputError for a word that is neither: taken for "size", it would let bytes pass that nobody read."""
    refuse_unknown("verify", [str(verify)], VERIFICATIONS)


def refuse_unknown(option: str, given: Collection[str], known: Sequence[str]) -> None:
    """Refuse a word that an option does not know.

    Args:
        option: Its name.
        given: The words that it was given.
        known: The words that it knows.

    Raises:
        BadInputError: There is another.
    """
    if strange := sorted(set(given) - set(known)):
        raise BadInputError(f"{option} {', '.join(strange)}", f"Known: {', '.join(known)}.")
