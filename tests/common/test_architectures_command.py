"""The command `architectures`: every table, in words and as JSON, tables that packages bring, and who has none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardmerge.common.architectures import ARCHITECTURES, TABLES
from shardmerge.common.architectures.keys import is_routed_expert
from shardmerge.common.architectures.without_table import WITHOUT_TABLE
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
    assert glm["oracles"] == ["Megatron-Bridge", "mcore-bridge", "transformers"]
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
    mine = text.index("MineForCausalLM, of mine_tables:MINE")
    assert text[mine:].splitlines()[3:5] == ["  oracles: none", ", ".join(WITHOUT_TABLE[0].names)]
    result = CliRunner().invoke(main, ["architectures", "--architecture", "mine_tables:LOST"])
    assert (result.exit_code, "has no attribute 'LOST'" in result.stderr) == (2, True)
    sys.modules.pop("mine_tables")


# of each published model that is asked for most, as config.json of its repository names it
REFUSED = {
    "stepfun-ai/Step-3.5-Flash": "Step3p5ForCausalLM",
    "XiaomiMiMo/MiMo-V2-Flash": "MiMoV2FlashForCausalLM",
    "google/gemma-4-31B-it": "Gemma4ForConditionalGeneration",
    "deepseek-ai/DeepSeek-V4-Flash": "DeepseekV4ForCausalLM",
    "moonshotai/Kimi-K3": "KimiK3ForConditionalGeneration",
    "MiniMaxAI/MiniMax-M3": "MiniMaxM3SparseForConditionalGeneration",
}


def without_table(*arguments: str) -> dict[str, str]:
    """Name -> reason, as the command lists them."""
    result = CliRunner().invoke(main, ["architectures", "--json", *arguments])
    told = json.loads(result.stdout)["without_table"]
    return {name: one["reason"] for one in told for name in one["names"]}


def test_published_architectures_without_a_table_are_listed_with_the_reason() -> None:
    told = without_table()
    assert {*REFUSED.values()} <= {*told}
    assert told["KimiK3ForConditionalGeneration"] == "megatron-core 0.19 has no Kimi Delta Attention."
    text = CliRunner().invoke(main, ["architectures"]).stdout
    listed = ("KimiK3ForConditionalGeneration, KimiLinearForCausalLM", "  no table: ")
    assert "\n".join(listed) + told["KimiK3ForConditionalGeneration"] in text


def test_no_architecture_is_both_in_the_registry_and_listed_as_without_a_table() -> None:
    names = [name for one in WITHOUT_TABLE for name in one.names]
    assert (len(names), {*names} & {*ARCHITECTURES}) == (len({*names}), set())
    assert all(one.models and one.reason.endswith(".") for one in WITHOUT_TABLE)


@pytest.mark.parametrize("model", REFUSED)
def test_a_model_without_a_table_is_refused_by_name_with_the_reason_and_what_to_do(
    model: str, tmp_path: Path
) -> None:
    """Before anything is read but config.json, with exit code 5."""
    name = REFUSED[model]
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    arguments = ["check", str(tmp_path / "dump"), "--hf-reference", str(tmp_path), "--json"]
    (tmp_path / "dump").mkdir()
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 5, result.output
    assert f"No table for architecture {name}. {without_table()[name]} Supported: " in result.stderr
    assert "docs/contribute/architecture.md says how to write one, which --architecture" in result.stderr


def test_one_that_has_a_table_of_the_callers_own_is_not_listed_as_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other name of its family still is."""
    own = TABLE.replace("MineForCausalLM", "KimiK3ForConditionalGeneration").replace("MINE", "K3")
    (tmp_path / "k3_tables.py").write_text(own)
    monkeypatch.syspath_prepend(str(tmp_path))
    told = without_table("--architecture", "k3_tables:K3")
    assert "KimiK3ForConditionalGeneration" not in told
    assert "KimiLinearForCausalLM" in told
    sys.modules.pop("k3_tables")
