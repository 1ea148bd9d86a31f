"""Errors about the command or its surroundings, raised before anything was looked at."""

from __future__ import annotations

from dataclasses import dataclass

from .exit_codes import UsageError


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
