"""Errors about what config.json says: it makes readers compute something else, or says two things of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .exit_codes import ConflictError

ALLOW = "--allow config publishes it as it is."
SAID_TWICE = "config.json says one thing twice:"
MODEL_TYPE = "model_type"


@dataclass(eq=False)
class ConfigMismatchError(ConflictError):
    allow: ClassVar[str] = "config"
    setting: str
    meaning: str
    model: str
    config: str
    keys: tuple[str, ...]  # of config.json, that say it; none if the architecture has no choice
    architecture: str

    def message(self) -> str:
        if self.keys:
            where, do = (
                f"by config.json ({', '.join(self.keys)})",
                f"Correct it (--set config.{self.keys[0]}=...)",
            )
        else:
            where, do = f"in every {self.architecture}", "No key of config.json says it otherwise"
        return f"{self.setting} ({self.meaning}) is {self.model} in the model, {self.config} {where}. {do}; {ALLOW}"


@dataclass(eq=False)
class ModelTypeError(ConflictError):
    allow: ClassVar[str] = "config"
    model_type: str | None  # None: config.json has none
    architecture: str
    expected: tuple[str, ...]

    def message(self) -> str:
        fits = " or ".join(f'"{one}"' for one in self.expected)
        correction = f"config.{MODEL_TYPE}={self.expected[0]}"
        if self.model_type is None:
            said = f"config.json has no {MODEL_TYPE}, by which readers choose the model; of {self.architecture} it is"
            return f"{said} {fits}. Add it (--set-new {correction}); {ALLOW}"
        return (
            f'config.json says {MODEL_TYPE} "{self.model_type}", by which readers choose the model, but that of '
            f"{self.architecture} is {fits}: they would load another model, with random numbers for the weights that "
            f"they do not find. Correct it (--set {correction}); {ALLOW}"
        )


@dataclass(eq=False)
class ConfigContradictionError(ConflictError):
    allow: ClassVar[str] = "config"
    key: str
    value: str
    other: str
    other_value: str

    def message(self) -> str:
        return (
            f"{SAID_TWICE} {self.key} is {self.value}, {self.other} is {self.other_value}. Some "
            f"readers take the one, some the other. Correct both (--set config.{self.key}=... does); {ALLOW}"
        )
