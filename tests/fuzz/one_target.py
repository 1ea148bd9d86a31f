"""One process that fuzzes one target with atheris, which must be installed. Started by `campaign`.

Findings do not end it: each is kept once, in its smallest input. What kills the process (a crash of Arrow, a hang) is
left to libFuzzer, which writes the input and dies; then the campaign keeps it.
"""

from __future__ import annotations

import argparse
import hashlib
import pkgutil
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from random import Random
from types import ModuleType
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from .sound import Sound
    from .targets import Target
    from .verdict import Finding

HANG_SECONDS = 30
MEMORY_MB = 4_096
LONGEST = 1 << 15
FRESH = 0.3  # how often a mutation begins with a sound input
CHECKPOINTS = (
    "checkpoint",
    "torch_dist",
    "shares",
    "fragments",
    "rectangles",
)  # what of phase one needs no torch
PACKAGES = (
    "shardmerge.common",
    "shardmerge.phase2_merge",
    *(f"shardmerge.phase1_dump.{room}" for room in CHECKPOINTS),
)


def main() -> None:
    """Fuzz until the time is over."""
    given = _arguments()
    warnings.simplefilter("error")
    with atheris.instrument_imports(include=["shardmerge"]):
        _import_all()
        targets = import_module("tests.fuzz.targets")
    target: Target = targets.TARGETS[given.target]
    sound = import_module("tests.fuzz.sound").make(given.scratch)
    seeds = target.seeds(sound)
    _write(seeds, given.corpus)
    found = Findings(given.findings)
    atheris.Setup(_libfuzzer(given), _one_input(target, sound, found), custom_mutator=_mutator(target, seeds))
    atheris.Fuzz()  # which never returns


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument(
        "--corpus", type=Path, required=True, help="inputs that reached something new; it grows"
    )
    parser.add_argument("--seeds", type=Path, help="more inputs to begin with")
    parser.add_argument("--findings", type=Path, required=True, help="where inputs go that found something")
    parser.add_argument("--scratch", type=Path, required=True, help="an empty folder; in memory is best")
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0 for another each time")
    return parser.parse_args()


def _libfuzzer(given: argparse.Namespace) -> list[str]:
    """Return the command line that libFuzzer reads."""
    folders = [str(path) for path in (given.corpus, given.seeds) if path is not None and path.is_dir()]
    return [
        given.target,
        f"-max_total_time={given.seconds}",
        f"-timeout={HANG_SECONDS}",
        f"-report_slow_units={HANG_SECONDS + 1}",  # that is judged here
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={given.findings}/died-",
        f"-max_len={LONGEST}",
        f"-seed={given.seed}",
        "-len_control=0",
        "-reload=5",
        "-print_final_stats=1",
        *folders,
    ]


def _import_all() -> None:
    """Import every module of shardmerge that reads something, so that all are instrumented."""
    for package in PACKAGES:
        parent = import_module(package)
        for module in pkgutil.walk_packages(parent.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                _import(module.name)


def _import(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("shardmerge"):
            raise
        return None  # it needs what is not installed here, such as dask


def _write(seeds: Sequence[bytes], corpus: Path) -> None:
    """Put sound inputs, made by the code as it is now, into the corpus."""
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)


def _one_input(target: Target, sound: Sound, found: Findings) -> object:
    judge = import_module("tests.fuzz.verdict").judge
    read = target.reader(sound)

    def one_input(data: bytes) -> None:
        built = target.built(data)
        if built is not None and (finding := judge(read, built, target.refusals)) is not None:
            found.keep(finding, data)

    return one_input


def _mutator(target: Target, seeds: Sequence[bytes]) -> object:
    """Return what changes an input. Now and then it begins again with a sound one.

    libFuzzer would forget those: all sound files of an output are the same to it, so it keeps the shortest of them.
    """

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        begin = rng.choice(seeds) if rng.random() < FRESH else data
        return target.mutation(begin, rng, lambda part: _blind(part, max_size))[:max_size]

    return mutator


def _blind(data: bytes, max_size: int) -> bytes:
    changed: bytes = atheris.Mutate(data, max_size)
    return changed


class Findings:
    """Inputs that found something, one for each key: the smallest so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, finding: Finding, data: bytes) -> None:
        """Keep an input, unless a smaller one found the same."""
        path = self.folder / hashlib.sha1(finding.key.encode(), usedforsecurity=False).hexdigest()[:12]
        if not path.exists() or path.stat().st_size > len(data):
            path.write_bytes(data)
            path.with_suffix(".txt").write_text(
                f"{finding.key}\n{finding.words}\n", errors="backslashreplace"
            )


if __name__ == "__main__":
    main()
