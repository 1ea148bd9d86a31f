"""A dump that is to be proven: what is known of it, and what follows from that. Must not judge anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from shardmerge.common import reference as references
from shardmerge.common.architectures import Blueprint, blueprint
from shardmerge.common.errors import ShardmergeError
from shardmerge.common.manifest import Manifest
from shardmerge.common.reference import Reference

from ..corrections import Correction, Recorded, corrected, corrected_facts, parse, recorded
from ..ledger import graft
from ..ledger import table as ledger
from ..ledger.fragments import Fragment, fragments
from ..ledger.rank_directories import discover
from ..ledger.table import Ledger
from ..options import Asked
from ..quantization.united import Quantization, united
from .tensors import verdict
from .tensors.expected import Expected, expected_tensors
from .tensors.verdict import Verdict


@dataclass(frozen=True, eq=False)  # no slots: what follows is worked out once, when a check first asks for it
class Case:
    """What checks look at. The fields were read and corrected, and the properties follow from them.

    Attributes:
        asked: The options.
        reference: With its config.json corrected.
        blueprint: The reference's config.json with the table of its architecture.
        ledger: What all ranks wrote, and what is grafted.
        manifests: In the order of `ledger.heads`, whose own facts are as they were dumped.
        failures: What ranks that failed recorded, by rank.
        given: The corrections.
        corrections: For the report, what was corrected, and what it is now.
    """

    asked: Asked
    reference: Reference
    blueprint: Blueprint
    ledger: Ledger
    manifests: tuple[Manifest, ...]
    failures: Mapping[int, str]
    given: tuple[Correction, ...]
    corrections: Recorded

    @property
    def quantization(self) -> Quantization | None:
        """What all ranks say together. None for a dump that is not quantized, or in formats that nobody knows."""
        return self._united[0]

    @property
    def quantization_problems(self) -> tuple[ShardmergeError, ...]:
        """Everything that is wrong with what ranks say of quantization."""
        return tuple(self._united[1])

    @cached_property
    def expected(self) -> Expected:
        """All tensors of a complete checkpoint."""
        grafted = graft.tensors(self.ledger.grafted)
        facts = self.manifests[0].facts
        return expected_tensors(self.blueprint, self.reference, facts, self.quantization, grafted)

    @cached_property
    def verdict(self) -> Verdict:
        """Which rows make the checkpoint, and what is wrong with its tensors."""
        filled_from = self.quantization.filled_from if self.quantization else {}
        architecture = self.blueprint.architecture.name
        return verdict.judge(self.ledger, self.expected, architecture, filled_from)

    @cached_property
    def fragments(self) -> list[Fragment]:
        """All files that manifests name, then whole files of the reference."""
        return fragments(self.ledger)

    @cached_property
    def _united(self) -> tuple[Quantization | None, list[ShardmergeError]]:
        return united(self.manifests, self.asked.uncalibrated)


def read(asked: Asked) -> Case:
    """Read the reference, all manifests, and what is grafted. Raises one error of the tree, OSError."""
    given = parse(asked.corrections)
    reference = references.read(Path(asked.hf_reference))
    changes = recorded("config", reference.config, given)
    reference = replace(reference, config=corrected("config", reference.config, given))
    described = blueprint(reference.config)
    ranks = discover([Path(dump) for dump in asked.dumps])
    table = ledger.read(ranks, graft.graft(reference, asked.grafts))
    manifests = [head.manifest for head in table.heads]
    changes |= recorded("facts", manifests[0].facts.as_json(), given)
    right = tuple(_corrected(manifest, given) for manifest in manifests)
    return Case(asked, reference, described, table, right, ranks.failures, given, changes)


def _corrected(manifest: Manifest, given: Sequence[Correction]) -> Manifest:
    """Return a manifest with its facts as they should be. The file and its digest stay as they are."""
    return replace(manifest, facts=corrected_facts(manifest.facts, given))
