"""Errors about the model that is to be dumped: its state, its expert ids, what no table or format covers."""

from __future__ import annotations

from dataclasses import dataclass

from .exit_codes import SHOWN, ConflictError, UnsupportedError, UsageError
from .wording import counted

PAGE = "docs/contribute/architecture.md"


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


@dataclass(eq=False)
class UnsupportedArchitectureError(UnsupportedError):
    architecture: str
    supported: tuple[str, ...]
    reason: str = ""  # a whole sentence, if it is known why there is none

    def message(self) -> str:
        reason = f" {self.reason}" if self.reason else ""
        return (
            f"No table for architecture {self.architecture}.{reason} Supported: {', '.join(self.supported)}. "
            f"{PAGE} says how to write one, which --architecture package.module:TABLE then names."
        )


OTHERWISE = (
    f"Check that the reference is this model's, or write a table with a row for it ({PAGE}) and give it with "
    "--architecture."
)
MTP_CHOICES = (
    "The model has multi-token prediction, and config.json promises none or less of it. Choose: a reference whose "
    "config.json promises it{key}; --drop-mtp, to leave it out; or --drop-mtp here and --graft mtp in the merge, to "
    "take it from the reference."
)


@dataclass(eq=False)
class UnclaimedParameterError(UnsupportedError):
    parameter: str
    shape: tuple[int, ...]
    architecture: str
    rank: int
    mtp_key: str = ""  # of config.json, which says how many steps of multi-token prediction there are

    def message(self) -> str:
        choices = MTP_CHOICES.format(key=f" ({self.mtp_key})" if self.mtp_key else "")
        return (
            f"{self.parameter} {list(self.shape)} on rank {self.rank} is claimed by no row of {self.architecture}. "
            f"Nothing was written. {choices if self.parameter.startswith('mtp.') else OTHERWISE}"
        )


@dataclass(eq=False)
class UnsupportedParameterError(UnsupportedError):
    parameter: str
    reason: str
    rank: int

    def message(self) -> str:
        return f"{self.parameter} on rank {self.rank}: {self.reason}. Nothing was written."


@dataclass(eq=False)
class ExpertSpellingError(UsageError):
    architecture: str
    spelling: str
    reason: str

    def message(self) -> str:
        return (
            f"--experts {self.spelling} for {self.architecture}: {self.reason} Nothing was written. Leave it away, and "
            "the reference decides, or how published checkpoints are spelled."
        )


@dataclass(eq=False)
class ArchitectureTableError(UsageError):
    table: str
    reason: str

    def message(self) -> str:
        return (
            f"--architecture {self.table}: {self.reason}. Nothing was written. Give package.module:TABLE, importable "
            f"here, whose TABLE is an Architecture ({PAGE})."
        )


@dataclass(eq=False)
class TableMismatchError(ConflictError):
    architecture: str
    dumped: str  # digest of the table that phase one had
    given: str

    def message(self) -> str:
        return (
            f"The table of {self.architecture} is another than the one it was dumped with: its digest is {self.given}, "
            f"that of the dump {self.dumped}. Give that table with --architecture, or merge with the version of "
            "shardmerge that dumped (`producer` in any manifest)."
        )


@dataclass(eq=False)
class AdapterError(UnsupportedError):
    parameters: tuple[str, ...]
    rank: int

    def message(self) -> str:
        shown = ", ".join(self.parameters[:SHOWN])
        more = f" and {len(self.parameters) - SHOWN:,} more" if len(self.parameters) > SHOWN else ""
        return (
            f"Rank {self.rank} has {counted(len(self.parameters), 'parameter')} of LoRA adapters or wrapped by them: "
            f"{shown}{more}. Without its adapters the checkpoint would be another model. Nothing was written. Merge "
            "them into the weights first: LoRAMerge of megatron-bridge, or merge_and_unload of the PEFT model that "
            "mcore-bridge made."
        )
