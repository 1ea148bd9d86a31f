"""Metadata written again: the same bytes as a fresh merge, shards untouched, what does not fit refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.errors import (
    BadInputError,
    CorruptFileError,
    MismatchError,
    MissingTensorError,
    OutputExistsError,
    ProblemsFoundError,
    UnexpectedTensorError,
)
from shardmerge.phase2_merge import merge, metadata
from tests.dumps.dumps import VOCAB, Topology, dense_config, facts_of, moe_config, tree
from tests.dumps.worlds import MakeWorld, World

INDEX = "model.safetensors.index.json"


def untouched(out: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, time of the last change of the bytes, and size of every shard."""
    return {
        path.name: ((stat := path.stat()).st_ino, stat.st_mtime_ns, stat.st_size)
        for path in out.glob("*.safetensors")
    }


def published(world: MakeWorld) -> World:
    one = world(Topology(tp=2, ep=2), moe_config()).write()
    one.merge(max_shard_bytes=700)
    return one


def config_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "config.json").read_bytes())
    return found


def change(reference: Path, **values: Any) -> None:
    config = json.loads((reference / "config.json").read_bytes())
    (reference / "config.json").write_text(json.dumps(config | values))


def test_the_same_reference_changes_nothing(world: MakeWorld) -> None:
    one = published(world)
    before, shards = tree(one.out), untouched(one.out)
    shutil.rmtree(one.dump)
    assert metadata(one.out, hf_reference=one.reference).changed == ()
    assert metadata(one.out).changed == ()
    assert (tree(one.out), untouched(one.out)) == (before, shards)


def test_a_lost_index_and_config_come_back_from_the_records(world: MakeWorld) -> None:
    one = published(world)
    before = tree(one.out)
    (one.out / INDEX).unlink()
    (one.out / "config.json").write_text(json.dumps(one.model.config | {"torch_dtype": "float16"}))
    assert set(metadata(one.out, hf_reference=one.reference).changed) == {INDEX, "config.json"}
    assert tree(one.out) == before


def test_a_corrected_reference_gives_what_a_fresh_merge_gives(world: MakeWorld, tmp_path: Path) -> None:
    one = published(world)
    shards = untouched(one.out)
    change(one.reference, rope_theta=5e6)
    (one.reference / "tokenizer.json").rename(one.reference / "vocab.json")
    report = metadata(one.out, hf_reference=one.reference)
    assert report.changed == ("vocab.json", "config.json", ".shardmerge/report.json")
    assert report.removed == ("tokenizer.json",)
    said = report.text().partition(" in ")[0]
    assert said == "Rewrote vocab.json, config.json, .shardmerge/report.json and removed tokenizer.json"
    assert config_of(one.out)["rope_theta"] == 5e6
    merge([one.dump], tmp_path / "new", hf_reference=one.reference, workers=1, max_shard_bytes=700)
    assert tree(one.out) == tree(tmp_path / "new")
    assert untouched(one.out) == shards


def test_merge_into_its_own_output_writes_metadata_only(world: MakeWorld, tmp_path: Path) -> None:
    one = published(world)
    shards = untouched(one.out)
    given: dict[str, Any] = {"corrections": ["config.rope_theta=7"], "max_shard_bytes": 700}
    report = one.merge(**given)
    assert report.rewritten == ("config.json", ".shardmerge/report.json")
    assert "no shard was touched" in report.text()
    assert "Every byte was read" not in report.text()
    merge([one.dump], tmp_path / "new", hf_reference=one.reference, workers=1, **given)
    assert tree(one.out) == tree(tmp_path / "new")
    assert untouched(one.out) == shards


@pytest.mark.parametrize("how", ["other dump", "other shards"])
def test_merge_into_any_other_output_is_refused_and_changes_nothing(world: MakeWorld, how: str) -> None:
    one = published(world)
    before = tree(one.out)
    if how == "other dump":
        shutil.rmtree(one.dump)
        one.write(step=200)
    with pytest.raises(OutputExistsError, match="another dump" if how == "other dump" else "other shards"):
        one.merge(max_shard_bytes=700 if how == "other dump" else 900)
    assert tree(one.out) == before


def test_a_file_of_the_user_stays(world: MakeWorld) -> None:
    one = published(world)
    (one.out / "README.md").write_text("mine")
    change(one.reference, rope_theta=5e6)
    metadata(one.out, hf_reference=one.reference)
    assert (one.out / "README.md").read_text() == "mine"


def test_a_correction_is_recorded_and_stays_without_a_reference(world: MakeWorld) -> None:
    one = published(world)
    metadata(one.out, corrections=["config.rope_theta=5"])
    metadata(one.out, corrections=["config.rms_norm_eps=0.5"])
    metadata(one.out, corrections=["config.rope_theta=6"])
    told = json.loads((one.out / ".shardmerge" / "report.json").read_bytes())["check"]["corrections"]
    assert told == {
        "config.rope_theta": {"was": 10000.0, "now": 6},
        "config.rms_norm_eps": {"was": 1e-06, "now": 0.5},
    }
    assert (config_of(one.out)["rope_theta"], config_of(one.out)["rms_norm_eps"]) == (6, 0.5)
    metadata(one.out, hf_reference=one.reference)
    assert config_of(one.out)["rope_theta"] == 10000.0


def test_a_correction_has_the_last_word_on_the_dtype(world: MakeWorld) -> None:
    one = published(world)
    metadata(one.out, hf_reference=one.reference, corrections=["config.torch_dtype=float16"])
    assert (config_of(one.out)["torch_dtype"], config_of(one.out)["dtype"]) == ("float16", "float16")


def test_a_dump_that_said_the_wrong_vocabulary_size_is_corrected_and_not_edited(world: MakeWorld) -> None:
    said = facts_of(dense_config())
    said["dimensions"]["vocab"] = VOCAB + 1
    one = world(Topology(tp=2)).write(facts=said)
    manifests = [one.rank(rank).joinpath("manifest.json").read_bytes() for rank in range(2)]
    with pytest.raises(MismatchError, match=r"config.json: vocab is 24, expected 25, as dumped"):
        one.merge()
    report = one.merge(corrections=[f"facts.dimensions.vocab={VOCAB}"])
    assert report.check.corrections == {"facts.dimensions.vocab": {"was": VOCAB + 1, "now": VOCAB}}
    assert "Corrected: facts.dimensions.vocab is 24, was 25." in report.text()
    assert [one.rank(rank).joinpath("manifest.json").read_bytes() for rank in range(2)] == manifests
    assert metadata(one.out, hf_reference=one.reference).corrections == report.check.corrections
    assert one.check(corrections=[f"facts.dimensions.vocab={VOCAB}"]).corrections == report.check.corrections


@pytest.mark.parametrize(
    ("correction", "kind"),
    [
        ("config.vocab_size=25", MismatchError),
        ("config.num_hidden_layers=3", MissingTensorError),
        ("config.num_hidden_layers=1", UnexpectedTensorError),
        ('config.architectures=["Qwen3ForCausalLM"]', MismatchError),
        ("facts.no_such=1", BadInputError),
        ("facts.dtype=5", BadInputError),
        ("quantization.exclude_modules=[]", BadInputError),
    ],
)
def test_what_does_not_fit_the_tensors_is_refused_and_nothing_changes(
    world: MakeWorld, correction: str, kind: type[Exception]
) -> None:
    one = published(world)
    before = tree(one.out)
    with pytest.raises((kind, ProblemsFoundError)) as error:
        metadata(one.out, corrections=[correction])
    found = getattr(error.value, "problems", (error.value,))
    assert {type(problem) for problem in found} - {MismatchError} <= {kind}
    assert any(isinstance(problem, kind) for problem in found)
    assert tree(one.out) == before


def test_a_directory_that_shardmerge_did_not_write_is_refused(world: MakeWorld) -> None:
    one = world().write()
    with pytest.raises(BadInputError, match=r"holds no .shardmerge/ledger.parquet"):
        metadata(one.reference)


@pytest.mark.parametrize("name", [7, "../mine.safetensors", "mine"])
def test_a_plan_that_calls_something_else_a_shard_is_told(name: Any, world: MakeWorld) -> None:
    one = published(world)
    path = one.out / ".shardmerge" / "plan.json"
    plan = json.loads(path.read_bytes())
    plan["assembled"][0]["shard"] = name
    path.write_text(json.dumps(plan))
    index = (one.out / INDEX).read_bytes()
    with pytest.raises(CorruptFileError, match="the plan calls a shard"):
        metadata(one.out)
    assert (one.out / INDEX).read_bytes() == index


def test_a_report_whose_sidecars_lie_elsewhere_removes_nothing(world: MakeWorld) -> None:
    one = published(world)
    mine = one.folder / "mine"
    mine.write_text("keep me")
    path = one.out / ".shardmerge" / "report.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"sidecars": ["../mine"]}))
    with pytest.raises(CorruptFileError, match="no list of sidecars"):
        metadata(one.out, hf_reference=one.reference)
    assert mine.read_text() == "keep me"


def test_a_report_whose_sidecars_a_merge_never_copied_removes_nothing(world: MakeWorld) -> None:
    one = published(world)
    (one.out / "README.md").write_text("mine")
    path = one.out / ".shardmerge" / "report.json"
    names = ["README.md", "config.json", ".shardmerge/ledger.parquet", "tokenizer.json"]
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"sidecars": names}))
    (one.reference / "tokenizer.json").unlink()
    report = metadata(one.out, hf_reference=one.reference)
    assert (report.changed, report.removed) == ((".shardmerge/report.json",), ("tokenizer.json",))
    assert (one.out / "README.md").read_text() == "mine"
