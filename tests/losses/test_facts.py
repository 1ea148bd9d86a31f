"""Facts that a manifest must state, each of which is compared with config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.architectures import blueprint
from tests.common.test_nemotron_h import CONFIG
from tests.dumps import dumps
from tests.dumps.dumps import Model, Topology
from tests.dumps.worlds import World
from tests.losses.commands import exit_code, merge, run


@pytest.mark.parametrize("facts", [{}, {"dtype": "BF16"}, "without dtype"], ids=str)
def test_a_dump_that_does_not_say_dtype_or_dimensions_is_not_published(one: World, facts: Any) -> None:
    for rank in one.dump.iterdir():
        for path in rank.iterdir():
            path.unlink()
        rank.rmdir()
    whole = dumps.facts_of(one.model.config)
    one.write(facts={"dimensions": whole["dimensions"]} if facts == "without dtype" else facts)
    code, said = run(*merge(one))
    assert code == 4, said
    assert not one.out.exists()
    assert exit_code("check", one.dump, "--hf-reference", one.reference) == 4


def test_groups_and_states_of_mamba_are_compared_each_and_not_their_product_alone(tmp_path: Path) -> None:
    """2 groups x 7 states are as many rows as 7 x 2."""
    given, other = (
        CONFIG | {"n_groups": groups, "ssm_state_size": state} for groups, state in ((2, 7), (7, 2))
    )
    table = blueprint(given)
    model = Model(given | {"num_hidden_layers": 0}, {"lm_head.weight": ("BF16", (2, 2), bytes(8))})
    cuts = {"lm_head.weight": [dumps.Cut(0, (0, 0), (2, 2))]}
    facts = {"dtype": "BF16", "dimensions": dict(table.dimensions)}
    dumps.write_dump(
        tmp_path / "dump", model, cuts, Topology(), architecture=table.architecture.name, facts=facts
    )
    dumps.write_reference(tmp_path / "reference", Model(other))
    code, said = run("check", tmp_path / "dump", "--hf-reference", tmp_path / "reference")
    assert code in (3, 4)
    assert "groups" in said
    assert "state" in said
