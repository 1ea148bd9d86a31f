"""Whether the process of an owner's record still runs, as far as anybody can tell."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.processes import owner
from shardmerge.common.processes.owner import Owner, State


@pytest.fixture
def other() -> Iterator[Owner]:
    """Another process of this host that runs, and its record."""
    code = (
        "import json; from shardmerge.common.processes import owner; "
        "print(json.dumps(owner.here(str()).as_json()), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield owner.of_json(json.loads(process.stdout.readline()))
        process.kill()


def test_a_process_that_runs_is_seen_and_one_that_ended_too(other: Owner) -> None:
    assert other.state() is State.RUNS
    assert dataclasses.replace(other, started=other.started + 1).state() is State.ENDED


def test_a_process_that_the_kernel_hides_is_not_taken_for_ended(
    other: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where /proc is mounted with hidepid=2 nobody sees the processes of other users, but signals tell of them."""
    read_text = Path.read_text

    def hiding(path: Path, **how: Any) -> str:
        if path == Path(f"/proc/{other.process}/stat"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return read_text(path, **how)

    monkeypatch.setattr(Path, "read_text", hiding)
    assert other.state() is State.UNKNOWN


@pytest.mark.parametrize("process", [0, -1, 1 << 22, 1 << 70])
def test_no_signal_is_sent_to_what_is_not_the_id_of_one_process(process: int) -> None:
    assert dataclasses.replace(owner.here(""), process=process).state() is State.ENDED


@pytest.mark.parametrize(("machine", "state"), [("a machine", State.ENDED), ("", State.UNKNOWN)])
def test_an_earlier_start_of_a_machine_is_known_only_where_the_machine_has_an_id(
    monkeypatch: pytest.MonkeyPatch, machine: str, state: State
) -> None:
    """Containers often have no /etc/machine-id, and on two hosts the same name."""
    here = dataclasses.replace(owner.here(""), machine=machine)
    monkeypatch.setattr(owner, "here", lambda _task: here)
    assert dataclasses.replace(here, boot="another").state() is state


def test_a_record_of_a_later_version_that_says_more_is_read() -> None:
    here = owner.here("a merge")
    assert owner.of_json(here.as_json() | {"version": "9"}) == here
    with pytest.raises(ValueError, match="it is not the record of an owner"):
        owner.of_json({"token": here.token, "version": "9"})
