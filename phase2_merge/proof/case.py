"""A dump that is to be proven: what is known of it, and what follows from that. Must not judge anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from shardmerge.common.architectures import Blueprint, blueprint, spelling
from shardmerge.common.errors import ShardmergeError
from shardmerge.common.manifest import Manifest
from shardmerge.common.reference import Reference

from ..corrections.changes import Change, corrected_facts
from ..corrections.record import Recorded, recorded
from ..corrections.settle import settled_facts
from ..corrections.written import Correction
from ..ledger import graft
from ..ledger import table as ledger
from ..ledger.fragments import Fragment, fragments
from ..ledger.rank_directories import discover
from ..ledger.table import Ledger
from ..options import VISION, Asked, as_paths
from ..quantization import dropped
from ..quantization.united import Quantization, united
from . import given as beside
from .tensors import verdict
from .tensors.expected import Expected, expected_tensors
from .tensors.verdict import Verdict


@dataclass(frozen=True, eq=False)  # no slots: what follows is worked out once, when a check first asks for it
class Case:
    """What checks look at. The fields were read and corrected, and the properties follow from them.

    Attributes:
        asked: The options.
        reference: With its config.json corrected.
        blueprint: The reference's config.json with the table of its architecture. If multi-token prediction is
            dropped, both promise none.
        ledger: What all ranks wrote, and what is grafted.
        manifests: In the order of `ledger.heads`, whose own facts are as they were dumped.
        failures: What ranks that failed recorded, by rank.
        given: The corrections, as they were written.
        changes: What they make of config.json and of facts.
        corrections: The same for the report: what was corrected, and what it is now.
    """

    asked: Asked
    reference: Reference
    blueprint: Blueprint
    ledger: Ledger
    manifests: tuple[Manifest, ...]
    failures: Mapping[int, str]
    given: tuple[Correction, ...]
    changes: tuple[Change, ...]
    corrections: Recorded

    @property
    def quantization(self) -> Quantization | None:
        """What all ranks say together. None for a dump that is not quantized, or in formats that nobody knows."""
        return self._united[0]

    @property
    def quantization_problems(self) -> tuple[ShardmergeError, ...]:
        """Everything that is wrong with what ranks say of quantization."""
        return tuple(self._united[1])

    @property
    def mtp(self) -> str:
        """Where multi-token prediction comes from: "trained", "grafted" or "dropped"; "" if there is none."""
        if self.asked.drop_mtp:
            return "dropped"
        if any(self.blueprint.is_mtp(name) for file in self.ledger.grafted for name in file.names):
            return "grafted"
        return "trained" if self.blueprint.mtp_layers else ""

    @cached_property
    def dropped(self) -> frozenset[str]:
        """Names of tensors that ranks wrote and that are left out on purpose."""
        return frozenset(filter(self.blueprint.is_mtp, self.ledger.names) if self.asked.drop_mtp else ())

    @cached_property
    def expected(self) -> Expected:
        """All tensors of a complete checkpoint."""
        grafted = graft.tensors(self.ledger.grafted)
        facts, reference = self.manifests[0].facts, self.reference
        if VISION in self.asked.allow:
            wanted = (
                name for name in reference.tensors if name in grafted or not self.blueprint.is_vision(name)
            )
            reference = replace(reference, tensors={name: reference.tensors[name] for name in wanted})
        return expected_tensors(self.blueprint, reference, facts, self.quantization, grafted)

    @cached_property
    def verdict(self) -> Verdict:
        """Which rows make the checkpoint, and what is wrong with its tensors."""
        filled_from = self.quantization.filled_from if self.quantization else {}
        architecture = self.blueprint.architecture.name
        filled_from = self.blueprint.copies() | dict(filled_from)
        return verdict.judge(self.ledger, self.expected, architecture, filled_from, self.dropped)

    @cached_property
    def fragments(self) -> list[Fragment]:
        """All files that manifests name, then whole files of the reference."""
        return fragments(self.ledger)

    @cached_property
    def _united(self) -> tuple[Quantization | None, list[ShardmergeError]]:
        return united(self.manifests, self.asked.uncalibrated)


def read(asked: Asked) -> Case:
    """Read the reference, all manifests, and what is grafted. Raises one error of the tree, OSError."""
    given = beside.read(asked)
    reference, changes, told = given.reference, given.changes, given.told
    ranks = discover(as_paths(asked.dumps))
    table = ledger.read(ranks, graft.graft(reference, given.patterns, given.copies, given.left))
    facts = table.facts()
    described = blueprint(reference.config, reference.tensors, spelling.told(facts.experts), given.own_table)
    of_facts = settled_facts(facts, given.corrections)
    told |= recorded("facts", facts.as_json(), of_facts)
    right = tuple(
        replace(manifest, facts=corrected_facts(manifest.facts, of_facts)) for manifest in table.manifests()
    )
    if asked.drop_mtp:
        right = dropped.without(right, described.is_mtp)
    return Case(
        asked,
        reference,
        described,
        table,
        right,
        ranks.failures,
        given.corrections,
        (*changes, *of_facts),
        told,
    )
