"""Dumps of real models as they are and with a setting of their own, and what `check` says beside a config.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmerge.common.errors import ConfigMismatchError, ProblemsFoundError, ShardmergeError
from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import check
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family
from tests.worlds.mtp import BUILT
from tests.worlds.topology import SINGLE

Json = dict[str, Any]
Change = Callable[[Any], None]
NAMES = tuple(family.name for family in BUILT)


@dataclass(frozen=True, slots=True)
class Dumped:
    """A dump of a model as it is, and its reference."""

    dump: Path
    reference: Path

    def config(self) -> Json:
        found: Json = json.loads((self.reference / "config.json").read_text())
        return found

    def saying(self, folder: Path, config: Json) -> Path:
        """A reference with another config.json."""
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder


def dumped(family: Family, reference: Path, out: Path, change: Change | None = None) -> Dumped:
    """Dump a model of one rank, changed or as it is."""
    with fake_world(SINGLE, 0):
        chunks = build_model(family, SINGLE)
        if change is not None:
            change(chunks[0])
        dump(chunks, out, hf_reference=reference, run_id="run", step=1)
    return Dumped(out, reference)


def problems(one: Dumped, reference: Path | None = None, **options: Any) -> list[ShardmergeError]:
    """All that `check` finds."""
    try:
        check([one.dump], hf_reference=reference or one.reference, verify="size", **options)
    except ProblemsFoundError as several:
        return list(several.problems)
    except ShardmergeError as error:
        return [error]
    return []


def mismatches(found: list[ShardmergeError]) -> dict[str, ConfigMismatchError]:
    return {problem.setting: problem for problem in found if isinstance(problem, ConfigMismatchError)}
