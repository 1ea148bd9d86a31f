"""Errors about the command or its surroundings, raised before anything was looked at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .exit_codes import UsageError


@dataclass(eq=False)
class BadInputError(UsageError):
    what: str
    do: str

    def message(self) -> str:
        return f"{self.what}. {self.do}"


def not_a_directory(path: Path, do: str) -> BadInputError:
    """Return the error about a path that is not a directory: it says whether there is anything. `do` is what to do."""
    return BadInputError(f"{path} {'is not a directory' if os.path.lexists(path) else 'does not exist'}", do)


OF_A_REFERENCE = (
    "Give --hf-reference a Hugging Face directory of the same model: config.json and the tokenizer are enough, weights "
    "are optional."
)


@dataclass(eq=False)
class MissingConfigError(UsageError):
    path: str
    do: str = OF_A_REFERENCE

    def message(self) -> str:
        return f"{self.path} holds no config.json. {self.do}"


@dataclass(eq=False)
class HostMemoryError(UsageError):
    wanted: int
    available: int

    def message(self) -> str:
        return (
            f"{self.wanted / 1e9:.2f} GB of host memory are wanted for bytes on their way to the disk, and only "
            f"{self.available / 1e9:.2f} GB can be had. Nothing was copied. Give a smaller host_bytes, with which the "
            "call takes as long as the disk, or use dump()."
        )


@dataclass(eq=False)
class PinnedMemoryError(UsageError):
    wanted: int
    reason: str

    def message(self) -> str:
        return (
            f"{self.wanted / 1e9:.2f} GB of host memory were taken for bytes on their way to the disk, and CUDA "
            f"refused to pin them: {self.reason}. Nothing was copied, and the memory was given back. Give a smaller "
            "host_bytes, with which the call takes as long as the disk, or use dump()."
        )


@dataclass(eq=False)
class StillDumpingError(UsageError):
    rank: int
    path: str

    def message(self) -> str:
        return (
            f"Rank {self.rank} is still being written to {self.path}. Call wait() of that dump first, or leave "
            'if_busy at "wait".'
        )
