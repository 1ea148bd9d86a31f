"""Errors about the ranks of a dump and their manifests: missing, damaged, or of different generations."""

from __future__ import annotations

from dataclasses import dataclass

from .exit_codes import ConflictError, IncompleteError
from .wording import first_ranks


@dataclass(eq=False)
class MissingRankError(IncompleteError):
    rank: int
    coordinates: dict[str, int]
    debt: str
    failed: str | None = None

    def message(self) -> str:
        where = ", ".join(f"{axis} {at}" for axis, at in self.coordinates.items())
        place = f"rank {self.rank} ({where})" if where else f"rank {self.rank}"
        why = f"; it recorded a failure: {self.failed.rstrip(' .')}" if self.failed else ""
        do = "Dump this run again, or add the directory that holds the rank."
        return f"{place} has no manifest: {self.debt}{why}. {do}"


@dataclass(eq=False)
class MissingRanksError(IncompleteError):
    absent: int
    world_size: int

    def message(self) -> str:
        return (
            f"{self.absent:,} of {self.world_size:,} ranks have no manifest, too many to name. Give the directories "
            "of all ranks of this run; `shardmerge inspect` shows which are there."
        )


@dataclass(eq=False)
class CorruptManifestError(ConflictError):
    path: str
    reason: str

    def message(self) -> str:
        return (
            f"{self.path} is not a manifest: {self.reason}. Manifests are never edited: take back the original, and "
            "correct a fact with --set facts.KEY=VALUE; or dump this run again."
        )


@dataclass(eq=False)
class MixedGenerationsError(ConflictError):
    field: str
    values: dict[str, tuple[int, ...]]

    def message(self) -> str:
        seen = "; ".join(f"{value} on rank {first_ranks(ranks)}" for value, ranks in self.values.items())
        return (
            f"Manifests of different {self.field}: {seen}. A merge takes one generation: give each dump a directory "
            "of its own."
        )


@dataclass(eq=False)
class MixedSpellingsError(ConflictError):
    part: str  # of the model: the decoder, or multi-token prediction
    values: dict[str, tuple[int, ...]]

    def message(self) -> str:
        seen = "; ".join(f"{value} on rank {first_ranks(ranks)}" for value, ranks in self.values.items())
        return (
            f"Routed experts of {self.part} are spelled in two ways: {seen}. Quantized ones are written one by one "
            "whatever the reference holds: dump all ranks again with --experts per-expert."
        )


@dataclass(eq=False)
class MissingFactsError(ConflictError):
    facts_missing: tuple[str, ...]

    def message(self) -> str:
        return (
            f"The manifests do not say {', '.join(self.facts_missing)}: without that nothing shows whether config.json "
            "describes the model that was trained. Dump this run again with this shardmerge."
        )


@dataclass(eq=False)
class DuplicateRankError(ConflictError):
    rank: int
    paths: tuple[str, ...]

    def message(self) -> str:
        places = ", ".join(self.paths)
        return f"rank {self.rank} has differing manifests in {places}. Keep the one that belongs to this run."


@dataclass(eq=False)
class MixedSettingsError(ConflictError):
    setting: str
    rank: int
    value: str
    others: tuple[int, ...]  # ranks that differ
    other_value: str  # what the first of them says

    def message(self) -> str:
        return (
            f"Ranks computed differently: {self.setting} is {self.value} on rank {self.rank}, {self.other_value} on "
            f"ranks {first_ranks(self.others)}. Give ranks of one model."
        )
