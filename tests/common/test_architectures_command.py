"""The command `architectures`: every table, in words and as JSON, and tables that packages bring, right or wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardmerge.common.architectures import TABLES
from shardmerge.common.architectures.keys import is_routed_expert
from shardmerge.common.command.group import main

TABLE = """
from dataclasses import replace
from shardmerge.common.architectures import ARCHITECTURES

MINE = replace(ARCHITECTURES["LlamaForCausalLM"], name="MineForCausalLM", aliases=("OursForCausalLM",), oracles=())
"""


def listed(*arguments: str) -> dict[str, dict[str, object]]:
    result = CliRunner().invoke(main, ["architectures", "--json", *arguments])
    assert result.exit_code == 0, result.output
    return {one["name"]: one for one in json.loads(result.stdout)["architectures"]}


def test_every_table_is_listed_with_what_it_knows() -> None:
    found = listed()
    assert [*found] == [table.name for table in TABLES]
    glm, llama = found["Glm4MoeForCausalLM"], found["LlamaForCausalLM"]
    assert glm["experts"] == {"decoder": ["per-expert", "packed"], "only": ""}
    assert glm["mtp"] == {
        "names": "model.layers.{layer}.",
        "experts": ["per-expert"],
        "source": "vllm/model_executor/models/glm4_moe_mtp.py",
    }
    assert glm["layouts"] == ["packed", "qkv", "same", "vocab"]
    assert glm["oracles"] == ["Megatron-Bridge", "transformers"]
    assert (llama["experts"], llama["mtp"], llama["aliases"], llama["owner"]) == (
        None,
        None,
        [],
        "shardmerge",
    )
    assert found["DeepseekV3ForCausalLM"]["aliases"] == ["KimiK2ForCausalLM"]


def test_in_words() -> None:
    text = CliRunner().invoke(main, ["architectures"]).stdout
    told = text.partition("DeepseekV3ForCausalLM\n")[2].splitlines()[:5]
    assert told == [
        "  also called KimiK2ForCausalLM",
        "  layouts: same, vocab",
        "  experts: per-expert alone",
        "  multi-token prediction: model.layers.{layer}.*, experts per-expert alone",
        "  oracles: Megatron-Bridge, Model-Optimizer, transformers",
    ]


def test_every_table_with_routed_experts_says_how_they_may_be_spelled() -> None:
    """And has rows for each way, and a reason where there is one way alone."""
    for table in TABLES:
        rows = [row for row in table.rows if row.keys and is_routed_expert(row.keys[0])]
        assert bool(rows) == (table.experts is not None), table.name
        if table.experts is not None:
            assert (table.experts.only == "") == (len(table.experts.decoder) > 1), table.name
            marked = {row.spelling for row in rows} - {None}
            assert not marked or marked >= {*table.experts.decoder, *table.experts.mtp}, table.name


def test_tables_of_packages_and_one_that_is_given_are_listed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be imported is listed with the reason, and hides no other."""
    (tmp_path / "mine_tables.py").write_text(TABLE)
    (tmp_path / "mine-1.0.dist-info").mkdir()
    (tmp_path / "mine-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n"
    )
    (tmp_path / "mine-1.0.dist-info" / "entry_points.txt").write_text(
        "[shardmerge.architectures]\nMineForCausalLM = mine_tables:MINE\nLostForCausalLM = mine_tables:LOST\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = listed("--architecture", "mine_tables:MINE")
    assert [*found][-2:] == ["LostForCausalLM", "MineForCausalLM"]
    assert found["MineForCausalLM"]["owner"] == "mine_tables:MINE"
    assert "has no attribute 'LOST'" in str(found["LostForCausalLM"]["fault"])
    text = CliRunner().invoke(main, ["architectures"]).stdout
    assert "LostForCausalLM, of mine_tables:LOST\n  cannot be used: AttributeError" in text
    assert "MineForCausalLM, of mine_tables:MINE\n  also called OursForCausalLM\n" in text
    assert text.endswith("oracles: none\n")
    result = CliRunner().invoke(main, ["architectures", "--architecture", "mine_tables:LOST"])
    assert (result.exit_code, "has no attribute 'LOST'" in result.stderr) == (2, True)
    sys.modules.pop("mine_tables")
