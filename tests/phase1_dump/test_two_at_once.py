"""One rank dumped by two processes at the same time: one of them has it, whole, and the other one says why not.

The first is stopped, as by Ctrl-Z, at a moment of its dump. It still runs, as far as anybody can tell.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shardmerge.common.command.group import main
from shardmerge.phase2_merge import check
from tests.phase1_dump.conftest import References

PROVIDERS = "tests.phase1_dump.providers"
ROOT = Path(__file__).parents[2]
PATIENCE_S = 200
IN_THE_FIRST_FILE = "open whole-*"
BEFORE_THE_MANIFEST = "open .manifest.json.*"
BEFORE_ITS_FOLDER_IS_THERE = "os.mkdir .rank-*"
BEFORE_ITS_FOLDER_HAS_ITS_NAME = "os.mkdir rank-00000"
BEFORE_THE_RENAME = "os.rename rank-00000"
Start = Callable[[str], subprocess.Popen[str]]


def arguments(provider: str, out: Path, reference: Path) -> list[str]:
    given = ["dump", "--model-provider", f"{PROVIDERS}:{provider}", "--out", str(out), "--wait", "0"]
    return [*given, "--hf-reference", str(reference), "--run-id", "run", "--step", "7"]


@pytest.fixture
def start(references: References, tmp_path: Path) -> Iterator[Start]:
    """Start the command for rank 0 in a process of its own, and wait until it has stopped at a moment."""
    processes: list[subprocess.Popen[str]] = []

    def started(moment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from shardmerge.common.command.group import main; main()"]
        command += arguments("whole_that_stops", tmp_path / "out", references.config("llama"))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "STOPS_AT": moment}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        processes.append(process)
        _wait_until_stopped(process)
        return process

    yield started
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _wait_until_stopped(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.05)
    raise TimeoutError("the process has not stopped")


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Let it go on; its exit code and what it said."""
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said


@pytest.fixture
def second(references: References, tmp_path: Path) -> Callable[[], Result]:
    """The same command in this process, undisturbed."""

    def run() -> Result:
        return CliRunner().invoke(main, arguments("whole", tmp_path / "out", references.config("llama")))

    return run


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def attempt_of(out: Path) -> Path:
    (folder,) = out.glob(".rank-00000.*.partial")
    return folder


def assert_whole(out: Path, references: References) -> None:
    """Nothing but a rank, of which every byte is as its manifest says."""
    assert names(out) == ["rank-00000"]
    assert {path.name for path in (out / "rank-00000").iterdir()} == {
        "manifest.json",
        "whole-00001.safetensors",
    }
    check([out], hf_reference=references.config("llama"))


@pytest.mark.parametrize("moment", [IN_THE_FIRST_FILE, BEFORE_THE_MANIFEST, BEFORE_THE_RENAME])
def test_a_second_attempt_beside_one_that_runs_is_refused_and_destroys_nothing(
    moment: str, start: Start, second: Callable[[], Result], references: References, tmp_path: Path
) -> None:
    first = start(moment)
    before = names(tmp_path / "out")

    refused = second()

    assert refused.exit_code == 6, refused.output
    assert f"is being written by the dump of rank 0 (process {first.pid} on " in refused.stderr
    assert names(tmp_path / "out") == before == [attempt_of(tmp_path / "out").name]
    assert finished(first)[0] == 0
    assert_whole(tmp_path / "out", references)


@pytest.mark.parametrize("moment", [BEFORE_ITS_FOLDER_IS_THERE, BEFORE_ITS_FOLDER_HAS_ITS_NAME])
def test_of_two_that_did_not_see_each_other_the_first_to_finish_has_the_rank(
    moment: str, start: Start, second: Callable[[], Result], references: References, tmp_path: Path
) -> None:
    first = start(moment)

    assert second().exit_code == 0
    manifest = (tmp_path / "out" / "rank-00000" / "manifest.json").stat()
    exit_code, said = finished(first)

    assert exit_code == 6
    assert "another attempt at this rank finished first" in said
    assert (tmp_path / "out" / "rank-00000" / "manifest.json").stat() == manifest
    assert_whole(tmp_path / "out", references)


def test_an_attempt_on_another_host_is_left_alone_and_does_not_hinder(
    start: Start, second: Callable[[], Result], references: References, tmp_path: Path
) -> None:
    first = start(IN_THE_FIRST_FILE)
    folder = attempt_of(tmp_path / "out")
    record = json.loads((folder / "owner.json").read_text()) | {"host": "elsewhere"}
    (folder / "owner.json").write_text(json.dumps(record))

    done = second()

    assert done.exit_code == 0, done.output
    assert f"{folder} belongs to the dump of rank 0 (process {first.pid} on elsewhere" in done.stderr
    assert "Remove the folder if that process has ended." in done.stderr
    assert names(tmp_path / "out") == [folder.name, "rank-00000"]
    assert finished(first)[0] == 6
    assert_whole(tmp_path / "out", references)


def test_what_a_killed_attempt_left_goes_and_what_a_person_put_there_stays(
    start: Start, second: Callable[[], Result], tmp_path: Path
) -> None:
    first = start(IN_THE_FIRST_FILE)
    (attempt_of(tmp_path / "out") / "notes.txt").write_text("mine")
    first.kill()
    first.communicate()

    done = second()

    assert done.exit_code == 0, done.output
    assert "could not be removed: [Errno 39] Directory not empty" in done.stderr
    (left,) = [path for path in (tmp_path / "out").iterdir() if path.name != "rank-00000"]
    assert [path.name for path in left.iterdir()] == ["notes.txt"]
