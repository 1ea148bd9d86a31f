"""Errors about what config.json says: it makes readers compute something else, or says two things of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .exit_codes import ConflictError

ALLOW = "--allow config publishes it as it is."
SAID_TWICE = "config.json says one thing twice:"


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
