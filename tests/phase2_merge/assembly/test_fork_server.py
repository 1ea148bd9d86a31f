"""When the server that workers are forked from is started: where shards are left to assemble, and not before."""

from __future__ import annotations

from multiprocessing.context import BaseContext
from typing import Any

import pytest

from shardmerge.phase2_merge.assembly import fork_server
from shardmerge.phase2_merge.shards import adopted_bytes
from shardmerge.phase2_merge.shards.adopt import Adoption, adopt
from tests.dumps.dumps import Topology
from tests.dumps.worlds import MakeWorld

SERVER, ADOPTING = "server", "adopting"


@pytest.mark.parametrize(
    ("tp", "options", "before"),
    [
        (1, {}, []),
        (2, {}, [SERVER]),
        (2, {"dry_run": True}, None),
        (2, {"workers": 1}, []),
        (2, {"max_shard_bytes": 10**9}, []),  # one shard, which needs no second process
        (1, {"layout": "canonical"}, [SERVER]),
        (1, {"min_shard_bytes": 1 << 20, "max_shard_bytes": 1 << 20}, []),
    ],
)
def test_the_server_of_workers_starts_before_adopting_only_where_several_will_assemble(
    world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    tp: int,
    options: dict[str, Any],
    before: list[str] | None,
) -> None:
    one = world(Topology(tp=tp)).write()
    happened: list[str] = []
    start = fork_server.start

    def starting() -> BaseContext:
        happened.append(SERVER)
        return start()

    def adopting(*given: Any) -> Adoption:
        happened.append(ADOPTING)
        return adopt(*given)

    monkeypatch.setattr(fork_server, "start", starting)
    monkeypatch.setattr(adopted_bytes, "adopt", adopting)
    one.merge(**{"workers": 2, "max_shard_bytes": 500, **options})
    assert happened[: happened.index(ADOPTING)] == before if before is not None else happened == []
    assert (SERVER in happened) is bool(before)


def test_a_merge_that_finds_every_shard_finished_starts_no_server(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world(Topology(tp=2)).write()
    with monkeypatch.context() as patched:
        patched.setattr("shardmerge.phase2_merge.commands.merge._describe", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            one.merge(max_shard_bytes=500, verify="size")
    monkeypatch.setattr(fork_server, "start", lambda: pytest.fail("nothing is left to assemble"))
    assert one.merge(max_shard_bytes=500, workers=2, verify="size").kept_shards > 2
