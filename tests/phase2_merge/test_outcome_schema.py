"""What every command of phase two prints with --json, against the schema that is published."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from shardmerge.common.command.group import main
from tests.dumps.dumps import Topology
from tests.dumps.outcomes import facts_of
from tests.dumps.worlds import MakeWorld

GIVEN = ["--hf-reference", "reference"]
ONE = ["--workers", "1"]


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    found = CliRunner().invoke(main, [*arguments, "--json"])
    facts = facts_of(found)
    assert facts["command"] == arguments[0]
    return found.exit_code, facts


def test_every_command_says_what_it_checked_and_what_not(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world(Topology(tp=2)).write()
    monkeypatch.chdir(one.folder)
    commands = (
        ["check", "dump", *GIVEN],
        ["merge", "dump", "out", *GIVEN, *ONE, "--dry-run"],
        ["merge", "dump", "out", *GIVEN, *ONE, "--part", "1/1"],
        ["merge", "dump", "out", *GIVEN, *ONE, "--finalize"],
        ["merge", "dump", "out", *GIVEN, *ONE],
        ["metadata", "out"],
        ["verify", "out", "--scan", "--verify", "size"],
        ["inspect", "dump"],
        ["inspect", "out"],
        ["diff", "dump", "out"],
        ["architectures"],
    )
    facts = {tuple(command): run(*command)[1] for command in commands}
    assert all(found["ok"] is (command[0] != "verify") for command, found in facts.items())
    assert [command[0] for command, found in facts.items() if not found["checked"] and found["ok"]] == [
        "architectures"
    ]
    checked = facts[tuple(commands[0])]
    assert "the checksum of every rectangle" in checked["checked"]
    assert any("replicas" in text for text in checked["unchecked"])
    assert "the checksum of every rectangle" not in facts[tuple(commands[1])]["checked"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "nothing", *GIVEN], 2),
        (["merge", "dump", "out", *GIVEN], 3),
        (["verify", "dump"], 2),
        (["diff", "dump", "reference"], 2),
        (["metadata", "reference"], 2),
    ],
)
def test_a_refusal_is_one_too(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int
) -> None:
    one = world()
    one.cuts = {"lm_head.weight": one.cuts["lm_head.weight"]}
    one.write()
    monkeypatch.chdir(one.folder)
    assert run(*arguments)[0] == code
