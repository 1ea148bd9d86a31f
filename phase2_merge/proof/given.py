"""What a merge is given beside a dump, read and corrected: the reference, corrections, patterns of what is grafted.

Whatever is wrong with it can be said before there is a dump. Must not know ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shardmerge.common import reference as references
from shardmerge.common.architectures import Architecture, Blueprint, blueprint, own
from shardmerge.common.errors import BadInputError
from shardmerge.common.reference import Reference

from ..corrections.changes import Change, corrected, refuse_undone
from ..corrections.record import Recorded, recorded
from ..corrections.settle import settled_config
from ..corrections.written import Correction, parse
from ..ledger import graft
from ..options import MTP, VISION, Asked


@dataclass(frozen=True, slots=True)
class Given:
    """What the options say, as far as no rank is needed to know it.

    Attributes:
        corrections: As they were written.
        own_table: A table of the caller's own, None for the one that is known.
        reference: With its config.json corrected, and without multi-token prediction if that is dropped.
        blueprint: The same with the table of its architecture.
        changes: What corrections make of config.json.
        told: The same for the report.
        patterns: Names of tensors that are grafted, words spelled out.
        copies: Names of tensors that the merge makes of others, and of which.
        left: Names of tensors of the reference that are left out.
    """

    corrections: tuple[Correction, ...]
    own_table: Architecture | None
    reference: Reference
    blueprint: Blueprint
    changes: tuple[Change, ...]
    told: Recorded
    patterns: tuple[str, ...]
    copies: Mapping[str, str]
    left: frozenset[str]


def read(asked: Asked) -> Given:
    """Read what is given beside a dump.

    Raises:
        BadInputError: a correction, a table or a pattern makes no sense for this reference.
        ShardmergeError: the reference cannot be read; any of the tree.
        OSError: a file cannot be read.
    """
    corrections = parse(asked.corrections, asked.new_corrections)
    own_table = None if asked.architecture is None else own.named(asked.architecture)
    reference = references.read(Path(asked.hf_reference))
    changes = settled_config(reference.config, corrections, own_table)
    told = recorded("config", reference.config, changes)
    reference = replace(reference, config=corrected("config", reference.config, changes))
    described = blueprint(reference.config, reference.tensors, table=own_table)
    copies, left = described.copies(), frozenset[str]()
    if asked.drop_mtp:
        left = frozenset(filter(described.is_mtp, reference.tensors))
        reference = _without_mtp(reference, described, changes)
        described = blueprint(reference.config, reference.tensors, table=own_table)
    patterns = _patterns(asked, reference, described)
    graft.require_fitting(reference, patterns, copies)
    return Given(corrections, own_table, reference, described, changes, told, patterns, copies, left)


def _without_mtp(reference: Reference, described: Blueprint, changes: Sequence[Change]) -> Reference:
    """Return a reference that holds and promises no multi-token prediction.

    Raises BadInputError for an architecture that has none, and for a correction that promises it.
    """
    mtp = described.architecture.mtp
    if mtp is None:
        raise BadInputError(
            f"--drop-mtp: the table of {described.architecture.name} knows no multi-token prediction",
            "Leave it away.",
        )
    tensors = {name: tensor for name, tensor in reference.tensors.items() if not described.is_mtp(name)}
    config = mtp.without(reference.config)
    refuse_undone(reference.config, config, changes)
    return replace(reference, config=config, tensors=tensors)


def _patterns(asked: Asked, reference: Reference, described: Blueprint) -> tuple[str, ...]:
    """Return the patterns of what is grafted, words spelled out. Raises BadInputError if nothing is called so."""
    words = {
        MTP: (described.mtp_patterns, "multi-token prediction", "--drop-mtp"),
        VISION: (described.vision_patterns, "a vision tower", "--allow vision to publish none"),
    }
    patterns = [pattern for pattern in asked.grafts if pattern not in words]
    for word in (word for word in words if word in asked.grafts):
        patterns_of, what, otherwise = words[word]
        if not (found := patterns_of(reference.tensors)):
            raise BadInputError(
                f"--graft {word}: {reference.path} holds no tensor of {what} of {described.architecture.name}",
                f"Give a reference with weights that has it, or {otherwise}.",
            )
        patterns += found
    return tuple(patterns)
