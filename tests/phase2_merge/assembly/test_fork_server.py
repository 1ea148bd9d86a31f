"""When the server that workers are forked from is started."""

from __future__ import annotations

import pytest

from shardmerge import phase2_merge
from shardmerge.common.errors import BadInputError
from shardmerge.phase2_merge.assembly import fork_server as worker_server
from tests.dumps.dumps import Topology
from tests.dumps.worlds import MakeWorld
from tests.phase2_merge.test_cli import merge_arguments, run


@pytest.mark.parametrize(
    ("tp", "options", "starts"),
    [
        (1, [], 0),
        (2, [], 1),
        (2, ["--dry-run"], 0),
        (2, ["--workers", 1], 0),
        (1, ["--layout", "canonical"], 1),
        (1, ["--min-shard-size", "1MiB"], 1),
    ],
)
def test_the_server_of_workers_starts_early_only_where_something_will_be_assembled(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch, tp: int, options: list[object], starts: int
) -> None:
    one = world(Topology(tp=tp)).write()
    happened = []

    def merge(*_: object, **__: object) -> None:
        happened.append("merge")
        raise BadInputError("the story is told elsewhere", "")

    monkeypatch.setattr(worker_server, "start", lambda: happened.append("server"))
    monkeypatch.setattr(phase2_merge, "merge", merge)
    assert run(*merge_arguments(one, "--workers", 2, *options)).exit_code == BadInputError.exit_code
    assert happened == ["server"] * starts + ["merge"]
