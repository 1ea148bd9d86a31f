"""Runs commands as a shell does, each in a process of its own, and strikes them at a chosen moment of their work.

A moment is a call that reaches the system, as Python's audit events name it, and the name of the file that it is about;
`os.write` is one, too. Must not know what a command does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from shardmerge.common.command.group import main
from tests.dumps.worlds import World

SECONDS = 60
MAIN = "from shardmerge.common.command.group import main; main(prog_name='shardmerge')"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
STRIKE = """
import fnmatch, os, shutil, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)

def pause(gate):
    open(gate + ".reached", "w").close()
    while not os.path.exists(gate + ".open"):
        time.sleep(0.01)

def names(given):
    return [os.path.basename(os.fsdecode(one)) for one in given if isinstance(one, (str, bytes, os.PathLike))]

def strike(event, given):
    if not inside and strikes:
        wanted, pattern, act, always = strikes[0]
        if event == wanted and any(fnmatch.fnmatchcase(name, pattern) for name in names(given) or [""]):
            if not always:
                del strikes[0]
            inside.append(event)
            try:
                exec(act)
            finally:
                inside.clear()

def write(file, data, write=os.write):
    strike("os.write", [os.readlink(f"/proc/self/fd/{file}")])
    return write(file, data)

inside, strikes = [], STRIKES
os.write = write
sys.addaudithook(strike)
"""


@dataclass(frozen=True)
class Strike:
    """What happens to a command at a moment.

    Attributes:
        event: An audit event, such as `os.rename`, or `os.write`.
        name: A pattern: the last part of a path that the call is given. An event without paths has the name "".
        act: Python, run before the call. What it raises, the call raises.
        always: At each such moment, not only the first.
    """

    event: str
    name: str
    act: str
    always: bool = False


class Gate:
    """Where a command waits until it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def act(self) -> str:
        return f"pause({str(self.path)!r})"

    def open(self) -> None:
        Path(f"{self.path}.open").write_text("")

    def reached(self, process: subprocess.Popen[str]) -> bool:
        """Wait until a process is at the gate, or has ended. Whether it is at the gate."""
        deadline = time.monotonic() + SECONDS
        while not os.path.exists(f"{self.path}.reached"):
            if process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "it neither came to the gate nor ended"
            time.sleep(0.01)
        return True


def line(*arguments: object, strikes: Sequence[Strike] = (), before: str = "") -> list[str]:
    """The command line of `shardmerge` with these arguments. The strikes happen one after the other."""
    code = MAIN
    if strikes or before:
        listed = [[one.event, one.name, one.act, one.always] for one in strikes]
        code = "\n".join([STRIKE.replace("STRIKES", repr(listed)), before, MAIN])
    return [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command line."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of a process, and all that it said."""
    shown = process.communicate(timeout=SECONDS)
    return process.returncode, "".join(shown)


def run(*arguments: object, strikes: Sequence[Strike] = ()) -> tuple[int, str]:
    """Run a command, here if nothing strikes it. Returns its exit code, negative for a signal, and all that it said."""
    if not strikes:
        result = CliRunner().invoke(main, [str(one) for one in arguments])
        assert not isinstance(result.exception, Exception), result.exception
        return result.exit_code, result.output
    with start(line(*arguments, strikes=strikes)) as process:
        return end(process)


def exit_code(*arguments: object) -> int:
    """Run a command that nothing strikes."""
    return run(*arguments)[0]


def merge(one: World, *more: object) -> list[object]:
    """The arguments of a merge into small shards, which this process alone writes."""
    given = ["merge", one.dump, one.out, "--hf-reference", one.reference]
    return [*given, "--workers", 1, "--max-shard-size", "500B", *more]
