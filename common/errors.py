"""Every way shardmerge refuses, as one tree: a class per fault, its facts as fields, an exit code per branch.

A message says what, which tensor or file, what was got and expected, which rank, and what to do next.
Of the others this module knows only how ranks are told: anything may import it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .telling import first_ranks, suspects

SHOWN = 10


@dataclass(eq=False)
class ShardmergeError(Exception):
    """Root of the tree; never raised itself."""

    exit_code: ClassVar[int] = 1

    def message(self) -> str:
        """One sentence or two: the facts, then what to do."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.message()

    def facts(self) -> dict[str, Any]:
        """The error for machines: class name, exit code, message and every field."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"error": type(self).__name__, "exit_code": self.exit_code, "message": self.message(), **own}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))


# ---- exit 2: the command or its surroundings are wrong, nothing was looked at --------------------------------


class UsageError(ShardmergeError):
    exit_code = 2


@dataclass(eq=False)
class BadInputError(UsageError):
    what: str
    do: str

    def message(self) -> str:
        return f"{self.what}. {self.do}"


@dataclass(eq=False)
class MissingConfigError(UsageError):
    path: str

    def message(self) -> str:
        return (
            f"{self.path} holds no config.json. Give --hf-reference a Hugging Face directory of the same model: "
            "config.json and the tokenizer are enough, weights are optional."
        )


@dataclass(eq=False)
class NotInitializedError(UsageError):
    evidence: str

    def message(self) -> str:
        return (
            f"torch.distributed is not initialised, but {self.evidence}: every process would pass for rank 0 of 1 "
            "and halves for wholes. Call dump() after init_process_group and initialize_model_parallel."
        )


@dataclass(eq=False)
class StaleParametersError(UsageError):
    chunk: int

    def message(self) -> str:
        return (
            f"Model chunk {self.chunk} is a DistributedDataParallel with overlap_param_gather and its forward "
            "pre-hooks installed: its parameters are stale after optimizer.step(). Call "
            "disable_forward_pre_hook(param_sync=True) on every rank first, or pass params_synced=True if you did."
        )


# ---- exit 3: something is missing ----------------------------------------------------------------------------


class IncompleteError(ShardmergeError):
    exit_code = 3


@dataclass(eq=False)
class MissingRankError(IncompleteError):
    rank: int
    coordinates: dict[str, int]
    debt: str
    failed: str | None = None

    def message(self) -> str:
        where = ", ".join(f"{axis} {at}" for axis, at in self.coordinates.items())
        place = f"rank {self.rank} ({where})" if where else f"rank {self.rank}"
        why = f"; it recorded a failure: {self.failed}" if self.failed else ""
        do = "Dump this run again, or add the directory that holds the rank."
        return f"{place} has no manifest: {self.debt}{why}. {do}"


@dataclass(eq=False)
class MissingTensorError(IncompleteError):
    tensor: str
    shape: tuple[int, ...]
    required_by: str
    owed_by: tuple[int, ...] = ()
    where: str = ""

    def message(self) -> str:
        told = f"{self.tensor} {list(self.shape)} is in no manifest, but {self.required_by} requires it."
        do = "If training never held it, --graft takes it from the reference; or use one that does not list it."
        return f"{told} {suspects(self.owed_by, self.where)}{do}"


@dataclass(eq=False)
class UncoveredTensorError(IncompleteError):
    tensor: str
    global_shape: tuple[int, ...]
    missing: str
    present: str
    ranks: tuple[int, ...] = ()
    owed_by: tuple[int, ...] = ()
    where: str = ""

    def message(self) -> str:
        owed = suspects(self.owed_by, self.where) or "A rank did not write its part. "
        return (
            f"{self.tensor} {list(self.global_shape)} is not whole: {self.missing} missing, present {self.present}. "
            f"{owed}Dump this run again."
        )


@dataclass(eq=False)
class MissingPartsError(IncompleteError):
    parts: tuple[str, ...]
    absent_shards: int
    num_shards: int

    def message(self) -> str:
        which = f"Parts {', '.join(self.parts)} are" if self.parts else "No part is complete: all are"
        told = f"{self.absent_shards:,} of {self.num_shards:,} shards were not written. {which} to be run"
        return f"{told}, with --part and otherwise this command. What is written stays."


# ---- exit 4: what is there contradicts itself ----------------------------------------------------------------


class ConflictError(ShardmergeError):
    exit_code = 4


@dataclass(eq=False)
class CorruptManifestError(ConflictError):
    path: str
    reason: str

    def message(self) -> str:
        return (
            f"{self.path} is no manifest: {self.reason}. Manifests are never edited: take back the original, and "
            "correct a fact with --set facts.KEY=VALUE; or dump this run again."
        )


@dataclass(eq=False)
class CorruptFileError(ConflictError):
    path: str
    reason: str
    rank: int | None = None

    def message(self) -> str:
        owner = "" if self.rank is None else f" (rank {self.rank})"
        do = "Copy it again from where it was dumped, or dump this run again."
        return f"{self.path}{owner} is damaged: {self.reason}. {do}"


@dataclass(eq=False)
class CorruptIndexError(ConflictError):
    path: str
    reason: str

    def message(self) -> str:
        return (
            f"{self.path} does not fit the files beside it: {self.reason}. Take back the one that was published with "
            "them."
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
class DuplicateRankError(ConflictError):
    rank: int
    paths: tuple[str, ...]

    def message(self) -> str:
        places = ", ".join(self.paths)
        return f"rank {self.rank} has differing manifests in {places}. Keep the one that belongs to this run."


@dataclass(eq=False)
class OverlapError(ConflictError):
    tensor: str
    ranks: tuple[int, ...]
    rectangles: str

    def message(self) -> str:
        return (
            f"{self.tensor} is covered twice: {self.rectangles}, by ranks {first_ranks(self.ranks)}. Two ranks claim "
            "the same global ids; compare the model's local_expert_indices and parallel groups, and dump again."
        )


@dataclass(eq=False)
class MismatchError(ConflictError):
    tensor: str
    what: str
    got: str
    expected: str
    ranks: tuple[int, ...] = ()

    def message(self) -> str:
        by = f" on rank {first_ranks(self.ranks)}" if self.ranks else ""
        return (
            f"{self.tensor}: {self.what} is {self.got}{by}, expected {self.expected}. Either the reference's "
            "config.json is not this model's, or the dump is not this run's."
        )


@dataclass(eq=False)
class UnexpectedTensorError(ConflictError):
    tensor: str
    ranks: tuple[int, ...]
    architecture: str

    def message(self) -> str:
        return (
            f"{self.tensor} (rank {first_ranks(self.ranks)}) is no tensor of {self.architecture} with this "
            "config.json. Compare num_hidden_layers, the number of experts and tie_word_embeddings with the model "
            "that was trained."
        )


@dataclass(eq=False)
class ReplicaMismatchError(ConflictError):
    tensor: str
    rectangle: str
    owner: int
    ranks: tuple[int, ...]

    def message(self) -> str:
        return (
            f"{self.tensor} {self.rectangle}: rank {first_ranks(self.ranks)} holds other bytes than rank {self.owner}, "
            "which wrote it: replicas have drifted apart in training. --allow replicas merges what was written."
        )


@dataclass(eq=False)
class NonFiniteError(ConflictError):
    tensor: str
    nan_count: int
    inf_count: int
    ranks: tuple[int, ...]

    def message(self) -> str:
        by = f" (rank {first_ranks(self.ranks)})" if self.ranks else ""
        return (
            f"{self.tensor} holds {self.nan_count:,} NaN and {self.inf_count:,} infinite elements{by}. "
            "Take an earlier checkpoint, or --allow nan to merge it as it is."
        )


@dataclass(eq=False)
class ExpertIdsError(ConflictError):
    module: str
    rank: int
    got: tuple[int, ...]
    expected: tuple[int, ...]

    def message(self) -> str:
        return (
            f"{self.module} on rank {self.rank}: the checkpoint keys name experts {list(self.got)}, the module's "
            f"local_expert_indices are {list(self.expected)}. megatron-core numbers experts contiguously by ep rank; "
            "this model does not, and its experts would be exported under wrong ids."
        )


# ---- exit 5: this model or parameter is not supported --------------------------------------------------------


class UnsupportedError(ShardmergeError):
    exit_code = 5


@dataclass(eq=False)
class UnsupportedArchitectureError(UnsupportedError):
    architecture: str
    supported: tuple[str, ...]

    def message(self) -> str:
        return (
            f"No table for architecture {self.architecture}. Supported: {', '.join(self.supported)}. "
            "CONTRIBUTING.md says how to add one."
        )


@dataclass(eq=False)
class UnclaimedParameterError(UnsupportedError):
    parameter: str
    shape: tuple[int, ...]
    architecture: str
    rank: int

    def message(self) -> str:
        return (
            f"{self.parameter} {list(self.shape)} on rank {self.rank} is claimed by no row of {self.architecture}. "
            "Nothing was written. Add a row to its table, or check that the reference is this model's."
        )


@dataclass(eq=False)
class UnsupportedParameterError(UnsupportedError):
    parameter: str
    reason: str
    rank: int

    def message(self) -> str:
        return f"{self.parameter} on rank {self.rank}: {self.reason}. Nothing was written."


@dataclass(eq=False)
class UnsupportedQuantizationError(UnsupportedError):
    formats: str
    ranks: tuple[int, ...]

    def message(self) -> str:
        return (
            f"The dump is quantized as {self.formats} (rank {first_ranks(self.ranks)}), which this shardmerge cannot "
            "merge. Nothing was written. Quantize the model otherwise, or dump it unquantized."
        )


# ---- exit 6: the output -------------------------------------------------------------------------------------


class OutputError(ShardmergeError):
    exit_code = 6


@dataclass(eq=False)
class OutputExistsError(OutputError):
    path: str
    why: str = "it exists"

    def message(self) -> str:
        return f"{self.path} cannot be the output: {self.why}. Give another path, or move it away; nothing was changed."


@dataclass(eq=False)
class OutputLockedError(OutputError):
    path: str
    holder: str

    def message(self) -> str:
        return f"{self.path} is being written by {self.holder}. Wait for it to end; nothing was changed."


# ---- exit 1: the machine, not the input ----------------------------------------------------------------------


@dataclass(eq=False)
class WorkerDiedError(ShardmergeError):
    shards: tuple[str, ...]

    def message(self) -> str:
        return (
            f"A worker process was killed while it wrote {', '.join(self.shards[:SHOWN])} (out of memory?). Nothing "
            "was published. Run again, with fewer --workers if memory is short."
        )
