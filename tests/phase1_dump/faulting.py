"""Faults in the middle of a dump: at every call that reaches the file system, the process is killed or the call fails.

`python -m tests.phase1_dump.faulting FOLDER REFERENCE` builds a model, forks a child for every point, which dumps to
FOLDER/MODE-NUMBER/dump, forks another one that dumps the same rank again, undisturbed, and prints what came of both.
A process of its own, with one thread: only then is a fork of it sound.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

FAMILY = "qwen3_moe"
# of sys.audit
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")
CALLS = ("write", "fsync")  # of os, for which there is no event
CREATES = "open to create"  # the event of an `open` that makes a file
NEEDS_SPACE = (CREATES, "os.mkdir", "write", "fsync")
MODES = ("kill", "half", "EIO", "ENOSPC")


class Faults:
    """Counts the calls of this process below a folder, and lets one of them fail, or all from there on."""

    def __init__(self, folder: Path, mode: str = "", number: int = -1) -> None:
        self.folder, self.mode, self.number = folder, mode, number
        self.calls: list[str] = []

    def install(self) -> None:
        """Watch from now on; an audit hook stays until the process ends."""
        sys.addaudithook(self._audit)
        for name in CALLS:
            setattr(os, name, self._watched(name, getattr(os, name)))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        opened_before = event == "open" and isinstance(arguments[0], int)  # a file object is made of it
        if event in EVENTS and not opened_before and self._is_below(arguments[0]):
            creates = event == "open" and arguments[2] & os.O_CREAT
            self._reached(CREATES if creates else event, lambda: None, str(arguments[0]))

    def _is_below(self, path: Any) -> bool:
        """Whether it is below the folder. Descriptors, and names beside one, are those of a folder being removed."""
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        return not text.startswith("/") or Path(text).is_relative_to(self.folder)

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: int, *data: memoryview) -> Any:
            self._reached(name, lambda: data and real(file, data[0][: len(data[0]) // 2]), None)
            return real(file, *data)

        return call

    def _reached(self, call: str, half: Callable[[], object], path: str | None) -> None:
        number = len(self.calls)
        self.calls.append(call)
        if number == self.number and self.mode in ("kill", "half"):
            if self.mode == "half":
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        full = self.mode == "ENOSPC" and 0 <= self.number <= number and call in NEEDS_SPACE
        if full or (number == self.number and self.mode == "EIO"):
            code = getattr(errno, self.mode)
            raise OSError(code, os.strerror(code), *([] if path is None else [path]))


def main(folder: Path, reference: Path) -> None:
    """Print a line of JSON for every point: what happened, what was left, and what the next attempt made of it."""
    from tests.phase1_dump.dumped import dumped, single_model
    from tests.worlds.fake import fake_world
    from tests.worlds.families import by_name
    from tests.worlds.topology import SINGLE

    with fake_world(SINGLE, 0):
        model = single_model(by_name(FAMILY))

        def dump_to(place: Path) -> None:
            dumped(model, place / "dump", reference, max_fragment_bytes=400_000)

        counted = _forked(folder / "undisturbed", dump_to, Faults(folder / "undisturbed"))
        print(json.dumps({"calls": counted["calls"], "tree": _tree(folder / "undisturbed" / "dump")}))
        for mode, (number, call) in itertools.product(MODES, _points(counted["calls"])):
            if (mode == "half" and call != "write") or (mode == "ENOSPC" and call not in NEEDS_SPACE):
                continue  # nothing but a write can be half done, and removing needs no space
            place = folder / f"{mode}-{number:03d}"
            first = _forked(place, dump_to, Faults(place, mode, number))
            left = _tree(place / "dump")
            second = _forked(place, dump_to, Faults(place))
            point = {"mode": mode, "number": number, "call": call, "first": first, "left": left}
            print(json.dumps(point | {"second": second, "tree": _tree(place / "dump")}))


def _points(calls: list[str]) -> list[tuple[int, str]]:
    """The calls with their numbers; of many writes that follow each other the first two and the last."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(calls), key=lambda one: one[1])]
    return [point for run in runs for point in (run if run[0][1] != "write" else {*run[:2], run[-1]})]


def _forked(place: Path, dump_to: Callable[[Path], None], faults: Faults) -> dict[str, Any]:
    """Dump in a child; its end, its error, what it said on stderr, and its calls."""
    place.mkdir(exist_ok=True)
    answer, said = place / "answer.json", place / "said"
    child = os.fork()
    if not child:
        with open(said, "wb") as file:
            os.dup2(file.fileno(), 2)
        os._exit(_child(place, dump_to, faults, os.open(answer, os.O_CREAT | os.O_WRONLY, 0o600)))
    status = os.waitpid(child, 0)[1]
    text = answer.read_text()
    answer.unlink()
    ended = {"signal": os.WTERMSIG(status), "said": said.read_text()}
    return ended | (json.loads(text) if text else {})


def _child(place: Path, dump_to: Callable[[Path], None], faults: Faults, answer: int) -> int:
    error, write = None, os.write
    faults.install()
    try:
        dump_to(place)
    except Exception as raised:
        error = {
            "class": type(raised).__name__,
            "text": str(raised),
            "notes": getattr(raised, "__notes__", []),
        }
        error["traceback"] = traceback.format_exc()
    faults.mode = ""
    write(answer, json.dumps({"error": error, "calls": list(faults.calls)}).encode())
    return 0


def _tree(dump: Path) -> dict[str, str]:
    """Every file of a dump with a checksum of what it holds, and every folder."""
    found = {}
    for path in _below(dump):
        held = xxhash.xxh3_128_hexdigest(path.read_bytes()) if path.is_file() else "folder"
        found[str(path.relative_to(dump))] = held
    return found


def _below(dump: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from sorted(dump.rglob("*"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
