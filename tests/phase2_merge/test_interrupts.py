"""Ctrl-C and SIGTERM at moments that a person hits now and then: while imports run, and while a worker is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.watching import children
from tests.dumps import dumps
from tests.dumps.dumps import Topology
from tests.dumps.worlds import MakeWorld

# what every process of a test imports first
AT_THE_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "shardmerge.common.command.group":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
"""
SLOW_SERVER = """
import sys, time

if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    time.sleep(1)
"""


def start(folder: Path, first: str, *words: object) -> subprocess.Popen[str]:
    """The command in a group of processes of its own, all of which run `first` before anything else."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(first)
    places = f"{folder}:{os.environ.get('PYTHONPATH', folder)}"
    return subprocess.Popen(
        [sys.executable, "-m", "shardmerge", *map(str, words)],
        env=os.environ | {"PYTHONPATH": places},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_ctrl_c_while_the_program_is_imported_ends_it_as_later(tmp_path: Path) -> None:
    process = start(tmp_path / "site", AT_THE_IMPORT, "--version")
    assert process.communicate(timeout=30) == ("", "Interrupted.\n")
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("sent", "code", "last"),
    [(signal.SIGINT, 130, "Interrupted.\n"), (signal.SIGTERM, 143, "Ended by SIGTERM.\n")],
)
def test_a_merge_that_is_ended_while_a_worker_is_started_says_so_and_no_more(
    world: MakeWorld, sent: signal.Signals, code: int, last: str
) -> None:
    """The server that workers are forked from imports, and the first worker has been asked for."""
    one = world(Topology(tp=2)).write()
    given = [one.dump, one.out, "--hf-reference", one.reference, "--max-shard-size", "500B"]
    process = start(one.folder / "site", SLOW_SERVER, "merge", *given, "--workers", 2)
    waits_for(process, one.folder / "out.partial")
    os.kill(process.pid, sent)
    began = time.monotonic()
    out, talk = process.communicate(timeout=30)  # until nobody is left who could still say something
    assert time.monotonic() - began < 10
    assert (process.returncode, out) == (code, "")
    assert talk == (
        f"Nothing was published. What was written stays in {one.out}.partial for the next attempt.\n{last}"
    )
    while group_of(process.pid):  # the server ends when it sees that nobody needs it
        assert time.monotonic() - began < 10
        time.sleep(0.01)
    one.merge(max_shard_bytes=500)
    assert dumps.load(one.out) == one.model.tensors


def waits_for(process: subprocess.Popen[str], partial: Path) -> None:
    """Wait until a merge has adopted what it can, and has been waiting for its server since."""
    deadline = time.monotonic() + 30
    while not (children(process.pid) and list(partial.glob("*.safetensors"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)


def group_of(leader: int) -> list[int]:
    """The processes that run in a group."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listed.stdout.splitlines())
    return [int(pid) for pid, group, state in rows if int(group) == leader and state[0] != "Z"]
