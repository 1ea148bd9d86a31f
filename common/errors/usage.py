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


@dataclass(eq=False)
class MissingConfigError(UsageError):
    path: str

    def message(self) -> str:
        return (
            f"{self.path} holds no config.json. Give --hf-reference a Hugging Face directory of the same model: "
            "config.json and the tokenizer are enough, weights are optional."
        )
