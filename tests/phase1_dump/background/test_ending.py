"""Who outlives whom: an interpreter that ends finishes its dump, one that is killed takes its writer along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardmerge.common.processes.attempts import is_complete
from shardmerge.phase1_dump import dump
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import GENERATION, single_model
from tests.worlds.fake import fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60


def ended(way: str, out: Path, reference: Path) -> tuple[int, int]:
    """The exit code of the process, and the process id of its writer."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.phase1_dump.background.ending", way]
    process = subprocess.Popen(
        [*command, str(out), str(reference)], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        writer = int(process.stdout.readline())
        return process.wait(PATIENCE_S * 3), writer


def wait_for_the_end_of(process: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < deadline, f"process {process} still runs"
        time.sleep(0.02)


@pytest.mark.parametrize(("way", "code"), [("returns", 0), ("raises", 1), ("waits", 0), ("told-to-end", 0)])
def test_an_interpreter_that_ends_finishes_its_dump(
    way: str, code: int, references: References, tmp_path: Path
) -> None:
    """Also one that SIGTERM, sent to the whole job before it is requeued, told to end after its step."""
    found, writer = ended(way, tmp_path, references.config("qwen3_moe"))
    assert found == code
    wait_for_the_end_of(writer)
    assert os.listdir(tmp_path) == ["rank-00000"]
    assert is_complete(tmp_path, 0)


@pytest.mark.parametrize(
    ("way", "code"),
    [
        ("killed", -signal.SIGKILL),
        ("exits-hard", 7),
        ("killed-beside-a-fork", -signal.SIGKILL),
        ("terminated", -signal.SIGTERM),
    ],
)
def test_a_process_that_is_killed_takes_its_writer_along_and_the_rank_may_be_dumped_again(
    way: str, code: int, references: References, tmp_path: Path
) -> None:
    """The writer had not begun: it was stopped, and finds its parent gone when it goes on."""
    reference = references.config("qwen3_moe")
    found, writer = ended(way, tmp_path / "out", reference)
    assert found == code
    os.kill(writer, signal.SIGCONT)
    wait_for_the_end_of(writer)
    there = is_complete(tmp_path / "out", 0)  # all bytes had come: if it was quick, it is whole
    with fake_world(SINGLE, 0):
        model = single_model(by_name("qwen3_moe"))
        options = GENERATION | {"hf_reference": reference, "on_error": "record"}
        assert (dump(model, tmp_path / "out", **options) is None) == there
    assert os.listdir(tmp_path / "out") == ["rank-00000"]
