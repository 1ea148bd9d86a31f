"""How a command ends, with commands made for the purpose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from shardmerge.common.command.outcome import reported
from shardmerge.common.errors import BadInputError


@dataclass(frozen=True)
class Found:
    def facts(self) -> dict[str, Any]:
        return {"b": 1, "a": 2}

    def text(self) -> str:
        return "found it"


def run(error: BaseException | None, *arguments: str) -> Result:
    @click.command()
    @reported
    def command() -> Found:
        if error:
            raise error
        return Found()

    return CliRunner().invoke(command, arguments)


def own(facts: dict[str, Any]) -> dict[str, Any]:
    """What a command found out, without what all of them say."""
    common = {"checked", "command", "exit_code", "ok", "schema_version", "shardmerge", "unchecked"}
    assert common <= facts.keys()
    return {key: value for key, value in facts.items() if key not in common}


def test_text_goes_to_stdout() -> None:
    found = run(None)
    assert (found.exit_code, found.stdout, found.stderr) == (0, "found it\n", "")


def test_json_goes_to_stdout_instead() -> None:
    assert own(json.loads(run(None, "--json").stdout)) == {"a": 2, "b": 1}


def test_a_report_is_a_file_beside_the_text(tmp_path: Path) -> None:
    found = run(None, "--report", str(tmp_path / "r.json"))
    assert found.stdout == "found it\n"
    assert own(json.loads((tmp_path / "r.json").read_bytes())) == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (BadInputError("what", "Do."), 2, "Error: what. Do.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (
            OSError(28, "No space left on device", "/x"),
            1,
            "Error: [Errno 28] No space left on device: '/x'\n",
        ),
    ],
)
def test_refusals_go_to_stderr_with_their_code(error: BaseException, code: int, text: str) -> None:
    found = run(error)
    assert (found.exit_code, found.stdout, found.stderr) == (code, "", text)


def test_a_refusal_as_json_has_its_facts() -> None:
    found = run(BadInputError("what", "Do."), "--json")
    assert own(json.loads(found.stdout)) | {"exit_code": 2} == {
        "error": "BadInputError", "exit_code": 2, "message": "what. Do.", "what": "what", "do": "Do.",
    }  # fmt: skip


def test_a_defect_shows_where_it_happened() -> None:
    found = run(ZeroDivisionError("oops"))
    assert found.exit_code == 1
    assert "test_outcome.py" in found.stderr
    assert found.stderr.endswith("This is a defect of shardmerge. Please report it with the lines above.\n")
