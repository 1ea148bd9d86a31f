"""A folder that somebody else filled as a merge would: no command that it is given to writes outside of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dumps.dumps import tree
from tests.dumps.worlds import World
from tests.losses.commands import exit_code, merge, run

CODES = range(7)


@pytest.fixture
def published(one: World) -> World:
    assert exit_code(*merge(one)) == 0
    (one.folder / "mine").mkdir()
    for name in ("notes.txt", "config.json", "report.json", "next/config.json", "journal.json"):
        path = one.folder / "mine" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("keep me")
    (one.out / "notes.txt").write_text("keep me")
    return one


def journal(replace: list[Any], remove: list[Any]) -> Callable[[Path, Path], None]:
    """What makes an output have a journal, and files that wait for it."""

    def put(out: Path, mine: Path) -> None:
        told = {"schema_version": 1, "replace": replace, "remove": remove}
        text = json.dumps(told).replace("MINE", str(mine))
        (out / ".shardmerge" / "journal.json").write_text(text)
        (out / ".shardmerge" / "next").mkdir()
        for name in ("notes.txt", "config.json"):
            (out / ".shardmerge" / "next" / name).write_text("forged")

    return put


def moved(*names: str) -> Callable[[Path, Path], None]:
    """What puts links in place of folders or files of an output; they lead to somebody's."""

    def put(out: Path, mine: Path) -> None:
        for name in names:
            path = out / name
            if path.exists():
                path.rename(out / f"{path.name}-before")
            path.symlink_to(mine if path.suffix == "" else mine / path.name)

    return put


def waiting_elsewhere(out: Path, mine: Path) -> None:
    """A journal takes files away from where they are said to wait."""
    journal(["config.json"], [])(out, mine)
    shutil.rmtree(out / ".shardmerge" / "next")
    (out / ".shardmerge" / "next").symlink_to(mine)


def records_of_another(out: Path, mine: Path) -> None:
    """They are whole, and another output's."""
    (out / ".shardmerge").rename(mine / "records")
    (out / ".shardmerge").symlink_to(mine / "records")


def report(out: Path, _mine: Path) -> None:
    """Its sidecars, which `metadata` removes, are files of somebody."""
    path = out / ".shardmerge" / "report.json"
    told = json.loads(path.read_bytes())
    told["sidecars"] = ["../mine/notes.txt", "notes.txt", "tokenizer.json"]
    path.write_text(json.dumps(told))


HOW = {
    "a journal that replaces outside": journal(["../mine/notes.txt"], []),
    "a journal that removes outside": journal([], ["../mine/notes.txt"]),
    "a journal that removes by a whole path": journal([], ["MINE/notes.txt"]),
    "a journal that removes a file of a person": journal([], ["notes.txt"]),
    "a journal that replaces a file of a person": journal(["notes.txt"], []),
    "a journal that is called elsewhere": moved(".shardmerge/journal.json"),
    "files that wait elsewhere": waiting_elsewhere,
    "records of another output": records_of_another,
    "records that lie elsewhere": moved(".shardmerge"),
    "owners that lie elsewhere": moved(".shardmerge/owners"),
    "receipts that lie elsewhere": moved(".shardmerge/receipts"),
    "a config that lies elsewhere": moved("config.json"),
    "a report that lies elsewhere": moved(".shardmerge/report.json"),
    "a report of foreign sidecars": report,
}


@pytest.mark.parametrize("how", HOW)
def test_no_command_writes_outside_of_an_output_that_it_does_not_trust(published: World, how: str) -> None:
    out, mine = published.out, published.folder / "mine"
    HOW[how](out, mine)
    before, notes = tree(mine), (out / "notes.txt").read_bytes()
    looked = tree(out)
    for command in (["verify", out], ["inspect", out], ["diff", out, out]):
        code, said = run(*command)
        assert code in CODES, said
        assert tree(out) == looked
    for more in ([], ["--set", "config.rope_theta=5"], ["--hf-reference", published.reference]):
        assert run("metadata", out, *more)[0] in CODES
        assert tree(mine) == before
        assert (out / "notes.txt").read_bytes() == notes
    assert run(*merge(published))[0] in CODES
    assert tree(mine) == before
    assert (out / "notes.txt").read_bytes() == notes
    assert not list(mine.rglob("*.tmp"))


@pytest.mark.parametrize("more", [[], ["--part", "1/1"], ["--finalize"], ["--break-lock"]], ids=str)
@pytest.mark.parametrize("name", [".shardmerge", ".shardmerge/receipts", ".shardmerge/owners", ""])
def test_no_merge_writes_outside_of_a_partial_output(one: World, name: str, more: list[str]) -> None:
    mine, partial = one.folder / "mine", one.folder / "out.partial"
    (mine / "receipts").mkdir(parents=True)
    for path in ("stale.safetensors.json", "part-1-of-1.json", "plan.json", "receipts/x.safetensors.json"):
        (mine / path).write_text("keep me")
    (partial / name).parent.mkdir(parents=True, exist_ok=True)
    (partial / name).symlink_to(mine)
    before = sorted(mine.rglob("*"))
    code, said = run(*merge(one, *more))
    assert code in (3, 4, 6), said
    assert sorted(mine.rglob("*")) == before
    assert not one.out.exists()
