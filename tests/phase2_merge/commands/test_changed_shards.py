"""A published output whose shards are not all there: `metadata` and a merge into it refuse, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shardmerge.common.command.group import main
from tests.dumps.dumps import Topology, moe_config, tree
from tests.dumps.worlds import MakeWorld, World

SIZE = ("--max-shard-size", "500B")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def merge(one: World) -> Result:
    return run("merge", one.dump, one.out, "--hf-reference", one.reference, "--workers", 1, *SIZE)


def metadata(one: World) -> Result:
    return run("metadata", one.out, "--set", "config.rope_theta=5")


def remove(shard: Path) -> str:
    shard.unlink()
    return f"{shard.name} is missing"


def cut(shard: Path) -> str:
    data = shard.read_bytes()
    shard.unlink()  # an adopted one is a file of the dump, which stays as it is
    shard.write_bytes(data[:-1])
    return f"{shard.name} has {len(data) - 1:,} bytes instead of {len(data):,}"


@pytest.mark.parametrize("again", [merge, metadata])
@pytest.mark.parametrize("spoil", [remove, cut])
@pytest.mark.parametrize("which", [0, -1], ids=["adopted", "assembled"])
def test_shards_that_are_missing_or_cut_are_refused_and_nothing_is_changed(
    world: MakeWorld, which: int, spoil: Callable[[Path], str], again: Callable[[World], Result]
) -> None:
    one = world(Topology(tp=2, ep=2), moe_config()).write()
    assert merge(one).exit_code == 0
    reason = spoil(sorted(one.out.glob("*.safetensors"))[which])
    before = tree(one.out)
    refused = again(one)
    assert refused.exit_code == 4
    assert (
        f"{one.out} does not hold exactly its shards: {reason}. Move it away and merge again"
        in refused.stderr
    )
    assert tree(one.out) == before


def test_weights_that_no_plan_has_are_refused_by_a_merge_again(world: MakeWorld) -> None:
    one = world(Topology(tp=2, ep=2), moe_config()).write()
    assert merge(one).exit_code == 0
    (one.out / "model-00099-of-00099.safetensors").write_bytes(b"")
    refused = merge(one)
    assert refused.exit_code == 4
    assert "model-00099-of-00099.safetensors is there, but not planned" in refused.stderr
