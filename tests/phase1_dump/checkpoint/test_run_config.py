"""What training recorded beside a checkpoint as plain YAML is compared with config.json, and nothing is constructed.

Its files are those that Megatron-Bridge writes of models that it makes of config.json (`tests.oracles.run_configs`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardmerge.common import manifest
from shardmerge.common.architectures import blueprint
from shardmerge.common.architectures.settings.vocabulary import agree
from shardmerge.common.errors import CorruptFileError, ShardmergeError, UnsupportedCheckpointError
from shardmerge.phase1_dump.settings.recorded import recorded_settings
from shardmerge.phase2_merge import check
from tests.phase1_dump.checkpoint.conftest import Saved
from tests.worlds.families import by_name
from tests.worlds.mtp import write_bare

RECORDS = Path(__file__).parents[2] / "oracles" / "records" / "run_configs"
NAME = "run_config.yaml"


def record(saved: Saved, **changes: object) -> None:
    """Put the file beside the checkpoint, with other values of some fields of the model."""
    said = yaml.safe_load((RECORDS / "qwen3_moe.yaml").read_text())
    said["model"] |= changes
    (saved.path / NAME).write_text(yaml.safe_dump(said))


def settings(dump: Path) -> dict[str, Any] | None:
    """What the manifests of a dump say."""
    return manifest.read(dump / "rank-00000" / "manifest.json").facts.settings


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDS.glob("*.yaml")))
def test_what_is_recorded_is_what_the_table_reads_in_config_json(name: str, tmp_path: Path) -> None:
    told = recorded_settings(yaml.safe_load((RECORDS / f"{name}.yaml").read_text())["model"])
    said = blueprint(json.loads((write_bare(by_name(name), tmp_path) / "config.json").read_text())).settings()

    both = told.keys() & said.keys()
    assert len(both) > 30
    assert not {one: (told[one], said[one].value) for one in both if not agree(told[one], said[one].value)}


def test_a_config_json_that_is_what_was_recorded_is_accepted(saved: Saved, tmp_path: Path) -> None:
    record(saved)
    dumped = saved.dump(tmp_path / "dump")

    told = settings(tmp_path / "dump")
    assert told is not None
    assert (told["head_dim"], told["experts_per_token"], told["activation"], told["norm"]) == (
        12,
        2,
        "silu",
        "RMSNorm",
    )
    assert dumped.scope()[1] == []
    assert "Settings of the model that run_config.yaml records (activation," in dumped.text()
    check([tmp_path / "dump"], hf_reference=saved.reference)


@pytest.mark.parametrize(
    ("field", "value", "setting"),
    [
        ("rotary_base", 123456.0, "rope_theta"),
        ("layernorm_epsilon", 3e-4, "rms_norm_eps"),
        ("moe_router_topk", 3, "num_experts_per_tok"),
        ("moe_router_pre_softmax", True, "norm_topk_prob"),
        ("activation_func", {"_target_": "torch.nn.functional.relu", "_call_": False}, "hidden_act"),
        ("share_embeddings_and_output_weights", True, "tie_word_embeddings"),
    ],
)  # fmt: skip
def test_a_config_json_that_says_something_else_is_refused_by_its_key(
    saved: Saved, tmp_path: Path, field: str, value: object, setting: str
) -> None:
    record(saved, **{field: value})
    saved.dump(tmp_path / "dump", max_share_bytes=None)

    with pytest.raises(ShardmergeError, match=setting):
        check([tmp_path / "dump"], hf_reference=saved.reference)


def test_norms_that_are_stored_otherwise_than_readers_take_them_are_refused(
    saved: Saved, tmp_path: Path
) -> None:
    """The merge could only warn of it."""
    record(saved, layernorm_zero_centered_gamma=True)

    with pytest.raises(UnsupportedCheckpointError, match=r"stored minus one .* take them as they are"):
        saved.dump(tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


def test_shares_are_of_one_run_config(saved: Saved, tmp_path: Path) -> None:
    record(saved)
    saved.dump(tmp_path / "dump")
    shutil.rmtree(tmp_path / "dump" / "rank-00001")
    record(saved, rotary_base=3.0)

    with pytest.raises(ShardmergeError, match="written again"):
        saved.dump(tmp_path / "dump")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: !!python/object/apply:os.system ['touch HACKED']", "is not plain YAML"),
        ("model: {a: [b", "is not plain YAML"),
        ("[" * 5000, "is not plain YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nmodel: *b", "has no section model"),
        ("- 1", "has no section model"),
    ],
)
def test_what_is_not_plain_is_not_constructed_and_told(
    saved: Saved, tmp_path: Path, text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (saved.path / NAME).write_text(text)
    dumped = saved.dump(tmp_path / "dump")

    assert says in dumped.text()
    assert settings(tmp_path / "dump") is None
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize(
    "changes", [{"kv_channels": "x"}, {"kv_channels": 0}, {"layernorm_epsilon": "tiny"}, {"window_size": 5}]
)
def test_values_that_no_config_has_are_refused(
    saved: Saved, tmp_path: Path, changes: dict[str, object]
) -> None:
    record(saved, **changes)

    with pytest.raises(CorruptFileError, match="has values that no config has"):
        saved.dump(tmp_path / "dump")


def test_a_file_that_is_too_large_is_refused(saved: Saved, tmp_path: Path) -> None:
    (saved.path / NAME).write_text("#" * (1 << 20) + "\nmodel: {}\n")

    with pytest.raises(CorruptFileError):
        saved.dump(tmp_path / "dump")


def test_without_it_nothing_is_compared_and_that_is_told(saved: Saved, tmp_path: Path) -> None:
    dumped = saved.dump(tmp_path / "dump")

    assert settings(tmp_path / "dump") is None
    assert dumped.scope()[1] == [dumped.compared]
    assert "stand in a pickle, if at all (common.pt)" in dumped.text()


MODELOPT = Path(__file__).parent / "saved_by_older" / "modelopt-0.41.0.yaml"


def record_of_modelopt(saved: Saved, **changes: object) -> None:
    """Put the file that Model-Optimizer 0.41 wrote of this model beside the checkpoint, with other values."""
    said = yaml.safe_load(MODELOPT.read_text()) | changes
    (saved.path / "modelopt_run_config.yaml").write_text(yaml.dump(said))


def test_what_modelopt_recorded_is_compared_too(saved: Saved, tmp_path: Path) -> None:
    record_of_modelopt(saved)
    dumped = saved.dump(tmp_path / "dump")

    told = settings(tmp_path / "dump")
    assert told is not None
    assert (told["head_dim"], told["experts_per_token"], told["activation"], told["norm_eps"]) == (
        12,
        2,
        "silu",
        1e-6,
    )
    assert "rope_frequencies" not in told  # the base is not a field of TransformerConfig
    assert "that modelopt_run_config.yaml records (activation," in dumped.text()
    check([tmp_path / "dump"], hf_reference=saved.reference)

    record_of_modelopt(saved, layernorm_epsilon="0.0003")
    saved.dump(tmp_path / "wrong", max_share_bytes=None)
    with pytest.raises(ShardmergeError, match="rms_norm_eps"):
        check([tmp_path / "wrong"], hf_reference=saved.reference)
    record_of_modelopt(saved, layernorm_zero_centered_gamma=True)
    with pytest.raises(
        UnsupportedCheckpointError, match=r"modelopt_run_config\.yaml says .* stored minus one"
    ):
        saved.dump(tmp_path / "refused")


def test_what_bridge_recorded_goes_before_what_modelopt_did(saved: Saved, tmp_path: Path) -> None:
    record(saved)
    record_of_modelopt(saved, layernorm_epsilon="0.0003")

    assert "rope_frequencies" in (saved.dump(tmp_path / "dump", dry_run=True).settings or {})


@pytest.mark.parametrize(
    "text", ["(" * 9999, "__import__('os').system('touch HACKED')", "<function x at 0x1>" * 2]
)
def test_a_text_that_is_not_plain_stays_a_text(
    saved: Saved, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record_of_modelopt(saved, activation_func=text)

    told = saved.dump(tmp_path / "dump", dry_run=True).settings
    assert told is not None
    assert told.get("activation") != "silu"
    assert not (tmp_path / "HACKED").exists()


def test_what_nemo_recorded_is_not_compared_and_that_is_told(saved: Saved, tmp_path: Path) -> None:
    """Its fields are those that were given: a head's width may be null there, and is not in the model."""
    nemo = tmp_path / "nemo"
    (nemo / "context").mkdir(parents=True)
    (nemo / "context" / "model.yaml").write_text("config: {kv_channels: null}\n")
    saved.path.rename(nemo / "weights")

    dumped = Saved(nemo, saved.reference).dump(tmp_path / "dump", dry_run=True)
    assert "they stand in context/model.yaml" in dumped.text()
