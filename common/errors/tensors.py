"""Errors about tensors that are missing, cut wrongly, covered twice, or hold what weights should not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .exit_codes import ConflictError, IncompleteError
from .wording import first_ranks, of_ranks, suspects

GRAFT_IT = "If training never held it, --graft takes it from the reference; or use one that does not list it."
OF_ANOTHER = "Either the reference's config.json is not this model's, or the dump is not this run's."


@dataclass(eq=False)
class MissingTensorError(IncompleteError):
    tensor: str
    shape: tuple[int, ...]
    required_by: str
    owed_by: tuple[int, ...] = ()
    where: str = ""
    do: str = GRAFT_IT

    def message(self) -> str:
        what = f"{self.tensor} {list(self.shape)} is in no manifest, but {self.required_by} requires it."
        return f"{what} {suspects(self.owed_by, self.where)}{self.do}"


@dataclass(eq=False)
class MtpMismatchError(ConflictError):
    promised: str  # the first tensor of multi-token prediction that config.json promises, "" for none
    held: str  # the first that ranks hold or that is grafted, "" for none
    listed: str  # the first that the reference's weights hold, "" for none
    key: str  # of config.json, which says how many steps there are; "" if the table does not tell

    def message(self) -> str:
        let = "let config.json promise it" + (f" (--set-new config.{self.key}=1)" if self.key else "")
        if self.promised:
            what = (
                f"config.json promises multi-token prediction ({self.promised}), and nobody holds any of it."
            )
            ways = "dump a model that trained it, --graft mtp to take it from the reference"
        elif self.held:
            what = f"The dump holds multi-token prediction ({self.held}), and config.json promises none."
            ways = f"{let}, that and --graft mtp with a dump without it"
        else:
            what = f"The reference holds multi-token prediction ({self.listed}), and its config.json promises none."
            ways = (
                f"{let} and dump a model that trained it, that and --graft mtp to take it from the reference"
            )
        return f"{what} Choose: {ways}, or --drop-mtp to publish none."


@dataclass(eq=False)
class MissingVisionError(IncompleteError):
    allow: ClassVar[str] = "vision"
    promised_by: str  # the key of config.json
    patterns: tuple[str, ...]  # of the names of its tensors

    def message(self) -> str:
        held = f"nobody holds any of {' '.join(self.patterns)}"
        what = f"config.json promises a vision tower ({self.promised_by}), and {held}."
        ways = "--graft vision to take it from the reference's weights"
        return f"{what} Choose: {ways}, or --allow vision to publish the language model without it."


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
class OverlapError(ConflictError):
    tensor: str
    ranks: tuple[int, ...]
    rectangles: str

    def message(self) -> str:
        do = (
            "The model, or the checkpoint, has it twice: leave one of them out"
            if len(self.ranks) == 1
            else "Two ranks claim the same global ids; compare the model's local_expert_indices and parallel groups"
        )
        by = f"{'rank' if len(self.ranks) == 1 else 'ranks'} {first_ranks(self.ranks)}"
        return f"{self.tensor} is covered twice: {self.rectangles}, by {by}. {do}, and dump again."


@dataclass(eq=False)
class MismatchError(ConflictError):
    tensor: str
    what: str
    got: str
    expected: str
    ranks: tuple[int, ...] = ()
    do: str = OF_ANOTHER

    def message(self) -> str:
        by = f" on rank {first_ranks(self.ranks)}" if self.ranks else ""
        return f"{self.tensor}: {self.what} is {self.got}{by}, expected {self.expected}. {self.do}"


@dataclass(eq=False)
class UnexpectedTensorError(ConflictError):
    tensor: str
    ranks: tuple[int, ...]
    architecture: str

    def message(self) -> str:
        return (
            f"{self.tensor}{of_ranks(self.ranks)} is not a tensor of {self.architecture} with this "
            "config.json. Compare num_hidden_layers, the number of experts and tie_word_embeddings with the model "
            "that was trained."
        )


@dataclass(eq=False)
class ReplicaMismatchError(ConflictError):
    allow = "replicas"
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
    allow = "nan"
    tensor: str
    nan_count: int
    inf_count: int
    ranks: tuple[int, ...]

    def message(self) -> str:
        return (
            f"{self.tensor} holds {self.nan_count:,} NaN and {self.inf_count:,} infinite elements"
            f"{of_ranks(self.ranks)}. "
            "Take an earlier checkpoint, or --allow nan to merge it as it is."
        )
