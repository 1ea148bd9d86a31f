"""`merge --dry-run` ends as the merge would, and writes nothing: told by running both on the same disk."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.errors import MissingPartsError, ShardmergeError
from shardmerge.phase2_merge import merge, merge_part
from tests.dumps.dumps import Topology
from tests.dumps.worlds import MakeWorld, World

SHAPE: dict[str, Any] = {"max_shard_bytes": 500}
FINALIZE: dict[str, Any] = {"finalize": True}


def state(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Everything below a folder, as far as writing could change it."""
    stats = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
    return {path: (one.st_ino, one.st_mtime_ns, one.st_ctime_ns, one.st_size) for path, one in stats.items()}


def rehearsed(one: World, **how: Any) -> Any:
    """What a dry run reports, or refuses with. It changes nothing."""
    before = state(one.folder)
    try:
        return one.merge(dry_run=True, **how)
    except ShardmergeError as error:
        return error
    finally:
        assert state(one.folder) == before


def part(one: World, this: str, **how: Any) -> None:
    merge_part([one.dump], one.out, this, hf_reference=one.reference, workers=1, **{**SHAPE, **how})


def published(one: World) -> None:
    one.merge(**SHAPE)


def published_in_other_shards(one: World) -> None:
    one.merge(layout="canonical")


def published_and_spoiled(one: World) -> None:
    one.merge(**SHAPE)
    next(one.out.glob("model-*.safetensors")).unlink()


def of_somebody(one: World) -> None:
    (one.folder / "out.partial").mkdir()
    (one.folder / "out.partial" / "mine").write_text("")


def published_under_the_name(one: World) -> None:
    merge([one.dump], one.folder / "out.partial", hf_reference=one.reference, workers=1)


def begun_with_foreign_weights(one: World) -> None:
    part(one, "1/2")
    (one.folder / "out.partial" / "consolidated.safetensors").write_text("")


def half(one: World) -> None:
    part(one, "2/3")


def all_but_a_shard(one: World) -> None:
    part(one, "1/1")
    next((one.folder / "out.partial").glob("model-*.safetensors")).unlink()


def all_but_a_receipt(one: World) -> None:
    part(one, "1/1")
    next((one.folder / "out.partial" / ".shardmerge" / "receipts").glob("model-*")).unlink()


def unread(one: World) -> None:
    part(one, "1/1", verify="size")


@pytest.mark.parametrize(
    ("before", "how", "code"),
    [
        (published_in_other_shards, {}, 6),
        (published_and_spoiled, {}, 4),
        (of_somebody, {}, 6),
        (of_somebody, FINALIZE, 6),
        (published_under_the_name, {}, 6),
        (published_under_the_name, FINALIZE, 6),
        (begun_with_foreign_weights, {}, 6),
        (lambda _: None, FINALIZE, 3),
        (half, FINALIZE, 3),
        (all_but_a_shard, FINALIZE, 3),
        (all_but_a_receipt, FINALIZE, 3),
        (unread, FINALIZE, 3),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_what_the_merge_refuses_a_dry_run_refuses_likewise(
    world: MakeWorld, before: Callable[[World], None], how: dict[str, Any], code: int
) -> None:
    one = world(Topology(tp=2)).write()
    before(one)
    told = rehearsed(one, **SHAPE, **how)
    assert isinstance(told, ShardmergeError)
    with pytest.raises(ShardmergeError) as refused:
        one.merge(**SHAPE, **how)
    assert (told.exit_code, told.message()) == (code, refused.value.message())


def test_a_dry_run_into_what_was_published_names_what_would_be_rewritten(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    published(one)
    told = rehearsed(one, **SHAPE)
    assert told.rewritten == ()
    assert (
        f"{one.out} was published before from this dump: would change nothing; no shard would be"
        in told.text()
    )

    config = json.loads((one.reference / "config.json").read_text())
    (one.reference / "config.json").write_text(json.dumps(config | {"of_mine": 1}))
    (one.reference / "tokenizer.json").rename(one.reference / "vocab.json")
    told = rehearsed(one, **SHAPE)
    what = f"would rewrite {', '.join(told.rewritten)} and would remove tokenizer.json"
    assert f"from this dump: {what}; no shard would be" in told.text()
    again = one.merge(**SHAPE)
    assert (again.rewritten, again.removed) == (told.rewritten, told.removed)
    assert set(told.rewritten) == {"config.json", "vocab.json", ".shardmerge/report.json"}


def test_a_dry_run_says_that_a_rewriting_is_to_be_finished_first(
    world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    one = world(Topology(tp=2)).write()
    published(one)
    journal = {"schema_version": 1, "replace": [], "remove": []}
    (one.out / ".shardmerge" / "journal.json").write_text(json.dumps(journal))
    assert rehearsed(one, talk=sys.stderr, **SHAPE).rewritten == ()
    assert "was interrupted: some JSON files are old and some new" in capsys.readouterr().err


def test_a_dry_run_of_finalize_is_well_when_all_parts_are_there(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    for this in ("1/2", "2/2"):
        part(one, this)
    assert "Would publish" in rehearsed(one, **SHAPE, **FINALIZE).text()
    one.merge(**SHAPE, **FINALIZE)


@pytest.mark.parametrize("there", [False, True])
def test_finalize_before_any_part_leaves_what_was_there(world: MakeWorld, there: bool) -> None:
    one = world(Topology(tp=2)).write()
    if there:
        (one.folder / "out.partial").mkdir()
    before = state(one.folder)
    with pytest.raises(MissingPartsError, match="No part is complete"):
        one.merge(**SHAPE, **FINALIZE)
    assert state(one.folder) == before
    shutil.rmtree(one.folder / "out.partial", ignore_errors=True)
    part(one, "1/1")
    one.merge(**SHAPE, **FINALIZE)
