"""A dump that does not say what its model is: nothing would compare config.json with it, so it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.architectures import blueprint
from tests.common.test_nemotron_h import CONFIG
from tests.dumps.dumps import facts_of, moe_config
from tests.dumps.refusals import edit
from tests.dumps.worlds import MakeWorld, World
from tests.hostile.running import check, merge, run, written

FACTS = facts_of(moe_config())


def say(one: World, facts: dict[str, Any]) -> None:
    """Give every rank the same facts."""
    for rank in range(one.topology.size):
        edit(one.rank(rank) / "manifest.json", facts=facts)


@pytest.mark.parametrize("name", sorted(FACTS["dimensions"]))
def test_a_dump_without_one_dimension_is_refused(world: MakeWorld, name: str) -> None:
    one = written(world)
    say(one, FACTS | {"dimensions": {key: size for key, size in FACTS["dimensions"].items() if key != name}})
    assert f"The manifests do not say facts.dimensions.{name}: " in check(one, codes=(4,)).stderr


def test_a_dump_without_facts_is_refused_and_not_published(world: MakeWorld) -> None:
    one = written(world)
    say(one, {})
    assert "facts.dtype, facts.dimensions.ffn, facts.dimensions.groups" in merge(one, codes=(4,)).stderr
    assert not one.out.exists()


def test_a_dump_without_facts_can_still_be_looked_at(world: MakeWorld) -> None:
    one = written(world)
    say(one, {})
    run("inspect", one.dump, codes=(0,))


def test_factors_of_a_product_are_dimensions_of_their_own() -> None:
    """2 groups x 7 states are as many rows as 7 x 2, and readers cut them otherwise."""
    first, second = (
        blueprint(CONFIG | {"n_groups": groups, "ssm_state_size": state}).dimensions
        for groups, state in ((2, 7), (7, 2))
    )
    different = {name for name in first if first[name] != second[name]}
    assert different == {"mamba_groups", "mamba_state"}
