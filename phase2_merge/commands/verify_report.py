"""The report of `verify`: what was looked at in a directory, and what not. It speaks of that directory only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shardmerge.common.command.byte_count import show
from shardmerge.common.errors.wording import counted

from ..options import Verification
from .report import warning_lines


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` says of a directory in which nothing contradicts itself.

    Attributes:
        path: The directory.
        num_shards, num_tensors, total_bytes: What it holds.
        verification: Whether bytes were compared where that is possible.
        checksums_compared: How many tensors have the checksum that a merge recorded.
        without_checksum: How many have none, so that their bytes could not be compared.
        scanned: Whether all numbers were looked at.
        table: The architecture whose table says which tensors there must be; empty without one.
        has_index, is_quantized, is_ours: Whether there is an index, a declared quantization, the records of a merge.
        settings: Names of what of config.json was compared with what the dump says that the model computes.
        warnings: What is strange and stops nobody.
    """

    path: str
    num_shards: int
    num_tensors: int
    total_bytes: int
    verification: Verification
    checksums_compared: int
    without_checksum: int
    scanned: bool
    table: str
    has_index: bool
    is_quantized: bool
    is_ours: bool
    settings: tuple[str, ...]
    warnings: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def scope(self) -> tuple[list[str], list[str]]:
        """Return what was looked at, and what not."""
        parts = (
            (True, "headers and sizes of all files", ""),
            (self.has_index, "the index and its total_size", "an index (there is none)"),
            (
                bool(self.table),
                f"every tensor that config.json and the table of {self.table} require, and its shape",
                "which tensors config.json requires (shardmerge has no table for it)",
            ),
            (self.is_quantized, "what is declared of the quantization", ""),
            (
                bool(self.settings),
                f"{counted(len(self.settings), 'setting')} of config.json against the model that was dumped",
                self._not_told(),
            ),
            (bool(self.checksums_compared), f"the bytes of {counted(self.checksums_compared, 'tensor')}", ""),
            (not self.without_checksum, "", self._not_compared()),
            (self.scanned, "every number: no NaN, no infinity", "numbers (--scan)"),
        )
        checked = [text for holds, text, _ in parts if holds and text]
        return checked, [text for holds, _, text in parts if not holds and text]

    def _not_told(self) -> str:
        why = "the dump did not tell that" if self.is_ours else "no merge is recorded here"
        return f"whether config.json computes what the model did ({why})"

    def _not_compared(self) -> str:
        why = "--verify size" if self.verification == "size" else "no checksum of them is recorded"
        return f"the bytes of {counted(self.without_checksum, 'tensor')} ({why})"

    def text(self) -> str:
        size = f"{counted(self.num_shards, 'shard')}, {counted(self.num_tensors, 'tensor')}, {show(self.total_bytes)}"
        checked, unchecked = self.scope()
        lines = [f"Sound: {self.path}, {size}.", f"Checked: {'; '.join(checked)}."]
        lines += [f"NOT checked: {'; '.join(unchecked)}."] if unchecked else []
        return "\n".join([*lines, *warning_lines(self.warnings)])
