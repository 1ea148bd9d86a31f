"""How a command must end on hostile input: soon, with a refusal of the tree or well, and with nothing that a terminal
obeys."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from shardmerge.common.command.group import main
from tests.dumps.dumps import Topology, moe_config
from tests.dumps.refusals import edit
from tests.dumps.worlds import World

SECONDS = 20  # far above what is needed, since other tests may run at the same time: a hang is for ever
REFUSALS = range(2, 7)
MEMORY = 1 << 30  # of data; Arrow and numpy take a third of it before they read anything
ESCAPE = "\x1b]0;owned\x07"


def run(*arguments: str | Path, codes: tuple[int, ...] = ()) -> Result:
    """Run a command. It ends in time, without a traceback, in one of `codes` or else as a refusal of the tree."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    finally:
        signal.alarm(0)
    assert not isinstance(result.exception, Exception), result.exception
    assert "Traceback" not in result.stderr, result.stderr
    assert result.exit_code in (codes or REFUSALS), result.output
    assert all(line.isprintable() for line in result.output.split("\n")), repr(result.output)
    return result


def check(one: World, **how: Any) -> Result:
    """Run `check` on a dump."""
    return run("check", one.dump, "--hf-reference", one.reference, **how)


def merge(one: World, **how: Any) -> Result:
    """Run `merge` on a dump."""
    return run("merge", one.dump, one.out, "--hf-reference", one.reference, "--workers", "1", **how)


def written(make: Callable[..., World], *, weights: bool = False) -> World:
    """A dump with fragments of both kinds, on four ranks."""
    return make(Topology(tp=2, ep=2), moe_config()).write(weights=weights)


def edit_manifest(one: World, changes: dict[str, Any]) -> None:
    """Change the manifest of rank 0 under a digest that fits."""
    edit(one.rank(0) / "manifest.json", **changes)


def manifest(one: World) -> dict[str, Any]:
    """What the manifest of rank 0 holds."""
    held: dict[str, Any] = json.loads((one.rank(0) / "manifest.json").read_bytes())
    return held


def in_a_process(*arguments: str | Path) -> list[str]:
    """Return a command line of `shardmerge` with these arguments, for a process of its own."""
    start = "from shardmerge.common.command.group import main; main()"
    return [sys.executable, "-W", "ignore", "-c", start, *map(str, arguments)]


def in_little_memory(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own that may not have more than MEMORY."""
    return subprocess.run(
        in_a_process(*arguments), capture_output=True, text=True, check=False, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY)),
    )  # fmt: skip


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not finished after {SECONDS} s")
