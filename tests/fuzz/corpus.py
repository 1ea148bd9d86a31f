"""`python -m tests.fuzz.corpus`: chooses, from all inputs that campaigns kept, few and small ones for the repository.

An input is worth its place by the steps from line to line of shardmerge that no other chosen input makes. Needs no
atheris: the interpreter itself tells the steps.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from shardmerge import common, phase1_dump, phase2_merge

from . import sound as sounds
from .sound import Sound
from .targets import TARGETS, Target
from .verdict import judge

OWN = tuple(f"{folder}/" for package in (common, phase1_dump, phase2_merge) for folder in package.__path__)
CORPUS = Path(__file__).parent / "corpus"
SUFFIX = ".bin"
FINDING = "finding-"  # how names of inputs begin that found a defect once: these always stay
BYTES_OF_A_TARGET = 16_000

Step = tuple[CodeType, int, int]


def main() -> None:
    """Choose inputs of all targets, or of those that are named."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.corpus", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="what campaigns wrote")
    parser.add_argument("--target", action="append", choices=TARGETS)
    given = parser.parse_args()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        sound = sounds.make(Path(folder))
        for name in given.target or TARGETS:
            kept = _renew(CORPUS / name, TARGETS[name], sound, given.out / "corpus" / name)
            print(f"{name:22}{len(kept):6} inputs, {sum(map(len, kept)):,} bytes")


def steps(target: Target, reader: Callable[[bytes], object], data: bytes) -> set[Step]:
    """Return the steps from line to line of shardmerge that reading an input makes."""
    built = target.built(data)
    seen: set[Step] = set()
    if built is None:
        return seen

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        del event, arg
        if not frame.f_code.co_filename.startswith(OWN):
            return None
        last = frame.f_lineno

        def inside(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            del event, arg
            seen.add((frame.f_code, last, frame.f_lineno))
            last = frame.f_lineno
            return inside

        return inside

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        with contextlib.suppress(Exception):  # refusals; findings are not looked for here
            reader(built)
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return seen


def chosen(inputs: Iterable[tuple[bytes, set[Step]]], known: set[Step], most_bytes: int) -> list[bytes]:
    """Return inputs that add steps to those that are known, the most for their size first, up to a size of all."""
    left = [(data, steps_of - known) for data, steps_of in inputs]
    kept: list[bytes] = []
    while left := [(data, new) for data, new in left if new and len(data) <= most_bytes]:
        best, gained = max(left, key=lambda one: (len(one[1]) / (len(one[0]) + 100), one[0]))
        kept.append(best)
        most_bytes -= len(best)
        left = [(data, new - gained) for data, new in left if data != best]
    return kept


def _renew(folder: Path, target: Target, sound: Sound, found: Path) -> list[bytes]:
    """Replace the inputs of one target. Returns those that it has now."""
    reader = target.reader(sound)
    own = sorted(folder.glob(f"*{SUFFIX}"))
    findings = [path.read_bytes() for path in own if path.name.startswith(FINDING)]
    candidates = {path.read_bytes() for path in (*own, *(found.iterdir() if found.is_dir() else ()))}
    known: set[Step] = set()
    for data in (*target.seeds(sound), *findings):
        known |= steps(target, reader, data)
    fair = [data for data in sorted(candidates) if not _tells_where(data) and _is_fair(target, reader, data)]
    kept = chosen([(data, steps(target, reader, data)) for data in fair], known, BYTES_OF_A_TARGET)
    for path in own:
        if not path.name.startswith(FINDING):
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for data in kept:
        digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        (folder / f"{digest[:12]}{SUFFIX}").write_bytes(data)
    return kept + findings


def _tells_where(data: bytes) -> bool:
    """Whether an input is, or was, the record of a process on this machine, which nobody else should read."""
    return (
        b'"namespace"' in data
        or b'"boot"' in data
        or b'"host"' in data
        or b"/owners/" in data.partition(b"\n")[0]
    )


def _is_fair(target: Target, reader: Callable[[bytes], object], data: bytes) -> bool:
    """Whether something can be built of an input, and reading it finds nothing."""
    built = target.built(data)
    return built is not None and judge(reader, built, target.refusals) is None


if __name__ == "__main__":
    main()
