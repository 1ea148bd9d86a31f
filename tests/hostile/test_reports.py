"""Where a report goes that was asked for: into devices and FIFOs, through links; and what if it cannot be written."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from tests.dumps.worlds import MakeWorld, World
from tests.hostile.running import in_a_process, run, written


@pytest.fixture
def one(world: MakeWorld) -> World:
    return written(world)


OPTIONS = ["--report", "--html"]


def inspect(one: World, option: str, path: Path | str, code: int = 0) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        in_a_process("inspect", one.dump, option, path),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout.startswith(f"Dump {one.dump}: ")
    return found


def is_whole(option: str, text: str) -> bool:
    """Whether a text is a report, or a page."""
    return "</html>" in text if option == "--html" else json.loads(text)["kind"] == "dump"


def behind_the_verdict(text: str) -> str:
    """What follows the last line of the text."""
    return text.partition("\nAll 4 ranks are there, ")[2].partition("\n")[2]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_device_is_written_to_and_stays_one(one: World, option: str, tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o20666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    inspect(one, option, device)
    assert stat.S_ISCHR(os.lstat(device).st_mode)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("option", OPTIONS)
def test_the_standard_output_comes_after_the_text(one: World, option: str) -> None:
    assert is_whole(option, behind_the_verdict(inspect(one, option, "/dev/stdout").stdout))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_standard_output_that_is_a_file_is_not_replaced(one: World, option: str, tmp_path: Path) -> None:
    with open(tmp_path / "log", "w+") as log:
        subprocess.run(
            in_a_process("inspect", one.dump, option, "/dev/stdout"), stdout=log, check=True, timeout=60
        )
        log.seek(0)
        text = log.read()
    assert text.startswith(f"Dump {one.dump}: ")
    assert is_whole(option, behind_the_verdict(text))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_fifo_is_written_to(one: World, option: str, tmp_path: Path) -> None:
    fifo, read = tmp_path / "fifo", list[str]()
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    inspect(one, option, fifo)
    reader.join(30)
    assert is_whole(option, read[0])
    assert stat.S_ISFIFO(os.lstat(fifo).st_mode)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(one: World, option: str, tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    if there:
        target.write_text("old")
    link.symlink_to("target")
    inspect(one, option, link)
    assert link.is_symlink()
    assert is_whole(option, target.read_text())


@pytest.mark.parametrize("option", OPTIONS)
def test_a_file_that_cannot_be_written_is_said_after_what_was_found(one: World, option: str) -> None:
    found = inspect(one, option, "/dev/full", code=1)
    assert "No space left on device: '/dev/full'" in found.stderr
    assert "Everything else was done." in found.stderr


def test_a_refusal_keeps_its_exit_code_if_its_report_cannot_be_written(one: World) -> None:
    shown = run("inspect", one.dump / "nothing", "--report", "/dev/full", codes=(2,)).stderr
    assert shown.index("does not exist") < shown.index("/dev/full")


@pytest.mark.parametrize("option", OPTIONS)
def test_a_name_of_255_bytes_is_written(one: World, option: str, tmp_path: Path) -> None:
    path = tmp_path / ("r" * 255)
    inspect(one, option, path)
    assert is_whole(option, path.read_text())
