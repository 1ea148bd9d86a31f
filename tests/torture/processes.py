"""Runs commands as children of a warm interpreter, watched by the library, and waits for all that they start.

Must not know what a command means for the disk.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from . import shim
from .shim import Strike, Watch

PACKAGES = (
    "shardmerge.common",
    "shardmerge.phase2_merge",
    "shardmerge.phase1_dump.checkpoint",
    "shardmerge.phase1_dump.torch_dist",
    "shardmerge.phase1_dump.shares",
)
ALSO = (
    "shardmerge.phase1_dump.cli",
    "shardmerge.phase1_dump.dump_torch_dist",
    "pyarrow.parquet",
    "xxhash",
    "multiprocessing.forkserver",
    "multiprocessing.popen_forkserver",
    "concurrent.futures.process",
    "concurrent.futures.thread",
    "tests.torture.dumping",
)
HANGS_AFTER_S = 60.0
PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
# how names of semaphores begin, which stay where a command and its tracker are killed
SEMAPHORES = "torture-"
LOOK_EVERY_S = 0.0005
Command: TypeAlias = Callable[[], None]  # runs in the child, and ends it by SystemExit, or not at all


def warm_up() -> None:
    """Import everything that a command may import, and become the parent of what outlives a command."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    for name in ALSO:
        importlib.import_module(name)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(slots=True)
class Running:
    """A command that has been started. `code` is its exit code, or minus the signal that ended it."""

    process: int
    watch: Watch
    log: Path
    code: int | None = None
    hung: bool = False
    started: float = field(default_factory=time.monotonic)

    def wait(self) -> int:
        """Wait for it, let what it left run out, and return its code. One that hangs is killed."""
        while not self._ended():
            self._refuse_to_hang()
        self._wait_for_the_rest()
        assert self.code is not None
        return self.code

    def pauses(self) -> bool:
        """Wait until it pauses or ends. Returns whether it pauses."""
        while not self._ended():
            if self.watch.is_waiting():
                return True
            self._refuse_to_hang()
        return False

    def kill(self) -> None:
        """Kill all of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)

    def told(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")

    def _ended(self) -> bool:
        if self.code is None:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            if ended:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def _refuse_to_hang(self) -> None:
        time.sleep(LOOK_EVERY_S)
        if time.monotonic() - self.started > HANGS_AFTER_S and not self.hung:
            self.hung = True
            self.kill()

    def _wait_for_the_rest(self) -> None:
        """Workers end by themselves when their parent is gone: they are waited for."""
        deadline = time.monotonic() + HANGS_AFTER_S
        with suppress(ChildProcessError):
            while True:
                if os.waitpid(-self.process, os.WNOHANG)[0] == 0:
                    time.sleep(LOOK_EVERY_S)
                if time.monotonic() > deadline:
                    self.hung = True
                    self.kill()


class Runner:
    """Starts commands below one folder, each watched through a file of its own."""

    def __init__(self, library: Path, scratch: Path) -> None:
        self.library = library
        scratch.mkdir(parents=True, exist_ok=True)
        self.scratch = scratch
        self.watches = {name: Watch(scratch / f"{name}.control") for name in ("first", "second")}

    def start(self, command: Command, root: Path, strike: Strike, name: str = "first") -> Running:
        """Start a command.

        Args:
            command: Runs in a child.
            root: Calls on paths below it count.
            strike: What is done to it.
            name: "first" or "second": which watch it gets.

        Returns:
            The command, running.
        """
        watch, log = self.watches[name], self.scratch / f"{name}.log"
        watch.reset(root, strike)
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if not process:
            self._be_the_child(command, watch, log)
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(process, process)
        return Running(process, watch, log)

    def run(self, command: Command, root: Path, strike: Strike = Strike()) -> Running:  # noqa: B008
        """Start a command and wait for it."""
        running = self.start(command, root, strike)
        running.wait()
        return running

    def forget_semaphores(self) -> None:
        """Remove the semaphores of commands that were killed."""
        for path in Path("/dev/shm").glob(f"sem.{SEMAPHORES}{os.getpid()}-*"):
            path.unlink(missing_ok=True)

    def _be_the_child(self, command: Command, watch: Watch, log: Path) -> None:
        code = 1
        try:
            with suppress(PermissionError):
                os.setpgid(0, 0)
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for stream in (1, 2):
                os.dup2(file, stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.modules["__main__"] = types.ModuleType("__main__")  # workers import it
            this: Any = multiprocessing.current_process()
            this._config["semprefix"] = f"/{SEMAPHORES}{os.getppid()}"
            os.environ[shim.CONTROL] = str(watch.path)
            shim.arm(self.library, watch.path)
            command()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            _leave(code)


def _leave(code: int) -> None:
    """End the child as the interpreter would: what was registered to run at the end runs."""
    import atexit
    import threading

    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for name in ("multiprocessing.util",):
            sys.modules[name]._exit_function()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
