"""A config.json that says nothing of the step that its model was trained with, as Qwen3-Next's: nothing goes unseen.

Beside published files it promises what these hold; by itself it promises none. Whatever disagrees is refused with three
choices, and each of them is taken here. Numbers are compared with Megatron-Bridge's records.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shardmerge.common.errors import MtpMismatchError, ProblemsFoundError
from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import merge, verify
from tests.oracles import records
from tests.worlds.checkpoints import read_hf_tensors
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family
from tests.worlds.filling import fill
from tests.worlds.mtp import QWEN3_5_MOE_VL_MTP, QWEN3_NEXT_MTP, write_checkpoint
from tests.worlds.topology import SINGLE

KEYS = {  # of config.json, by hand
    QWEN3_NEXT_MTP.name: "num_nextn_predict_layers",
    QWEN3_5_MOE_VL_MTP.name: "text_config.mtp_num_hidden_layers",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A family, a reference with weights and a silent config.json, one without weights, and the key that is absent."""

    family: Family
    published: Path
    bare: Path
    key: str

    @property
    def beside(self) -> dict[str, Any]:
        """What a merge without weights of a vision tower is told."""
        return {"workers": 1} | ({"allow": ["vision"]} if self.family.is_composite else {})

    def dump(self, out: Path, reference: Path, *, trained: bool = True, **options: Any) -> Path:
        """Dump one rank of the model, with its step or without; return the dump."""
        family = self.family if trained else replace(self.family, mtp=None)
        with fake_world(SINGLE, 0):
            chunks = build_model(family, SINGLE)
            fill(chunks, family, SINGLE, 0)
            dump(chunks, out, hf_reference=reference, run_id="silent", step=1, **options)
        return out

    def is_as_recorded(self, out: Path, *, mtp: bool = True) -> bool:
        """Whether an output's language model is what Megatron-Bridge exports, with its step or without."""
        record = records.read(self.family)
        record["tensors"] = {
            name: told for name, told in record["tensors"].items() if mtp or not is_step(name)
        }
        ours = {name: tensor for name, tensor in read_hf_tensors(out).items() if "visual." not in name}
        return records.differing(ours, record) == []

    def said(self, out: Path) -> Any:
        """What config.json of an output says of the step, None for nothing."""
        found: Any = json.loads((out / "config.json").read_text())
        for part in self.key.split("."):
            found = found.get(part) if found else None
        return found


def is_step(name: str) -> bool:
    return name.startswith("mtp.")


@pytest.fixture(scope="module", params=KEYS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family = next(one for one in (QWEN3_NEXT_MTP, QWEN3_5_MOE_VL_MTP) if one.name == request.param)
    folder = tmp_path_factory.mktemp(family.name)
    published, bare = write_checkpoint(family, folder / "published"), folder / "bare"
    config = json.loads((published / "config.json").read_text())
    own = config["text_config"] if family.is_composite else config
    own.pop(KEYS[family.name].split(".")[-1], None)
    (published / "config.json").write_text(json.dumps(config))
    bare.mkdir()
    shutil.copy(published / "config.json", bare)
    return Case(family, published, bare, KEYS[family.name])


def test_beside_files_that_hold_a_step_it_is_published_and_config_json_stays_as_it_was(
    case: Case, tmp_path: Path
) -> None:
    given: dict[str, Any] = (
        {"workers": 1, "grafts": ["vision"]} if case.family.is_composite else {"workers": 1}
    )
    dumped = case.dump(tmp_path / "dump", case.published)
    merge([dumped], tmp_path / "out", hf_reference=case.published, **given)
    assert case.is_as_recorded(tmp_path / "out")
    assert case.said(tmp_path / "out") is None
    assert verify(tmp_path / "out").warnings == ()


def test_a_dump_with_a_step_beside_nothing_but_the_config_names_the_three_choices(
    case: Case, tmp_path: Path
) -> None:
    """And each of them, taken, gives what it says."""
    with pytest.raises(ProblemsFoundError) as error:
        case.dump(tmp_path / "refused", case.bare)
    choices = (
        f"Choose: a reference whose config.json promises it ({case.key}); --drop-mtp, to leave it out; or --drop-mtp "
        "here and --graft mtp in the merge, to take it from the reference."
    )
    assert choices in str(error.value)

    dropped = case.dump(tmp_path / "dropped", case.bare, drop_mtp=True)
    merge([dropped], tmp_path / "without", hf_reference=case.bare, drop_mtp=True, **case.beside)
    assert case.is_as_recorded(tmp_path / "without", mtp=False)
    assert case.said(tmp_path / "without") == 0

    grafts = ["mtp", "vision"] if case.family.is_composite else ["mtp"]
    merge([dropped], tmp_path / "grafted", hf_reference=case.published, grafts=grafts, workers=1)
    there, wanted = read_hf_tensors(tmp_path / "grafted"), read_hf_tensors(case.published)
    assert {name for name in there if is_step(name)} == {name for name in wanted if is_step(name)}
    assert all(torch.equal(there[name], wanted[name]) for name in there if is_step(name))

    (said := tmp_path / "said").mkdir()
    config = json.loads((case.bare / "config.json").read_text())
    (config["text_config"] if case.family.is_composite else config)[case.key.split(".")[-1]] = 1
    (said / "config.json").write_text(json.dumps(config))
    merge([case.dump(tmp_path / "dump", said)], tmp_path / "out", hf_reference=said, **case.beside)
    assert case.is_as_recorded(tmp_path / "out")


def test_a_merge_of_a_step_beside_nothing_but_the_config_names_the_three_choices(
    case: Case, tmp_path: Path
) -> None:
    """What it tells to set is the key that this architecture reads: taken at its word, the step is published."""
    dumped = case.dump(tmp_path / "dump", case.published)
    with pytest.raises(
        MtpMismatchError, match=r"The dump holds .*promises none\. Choose: .*--graft mtp"
    ) as error:
        merge([dumped], tmp_path / "refused", hf_reference=case.bare, **case.beside)
    assert "or --drop-mtp to publish none" in str(error.value)
    (correction,) = re.findall(r"--set-new (\S+=1)\)", str(error.value))
    assert correction == f"config.{case.key}=1"
    out = tmp_path / "out"
    merge([dumped], out, hf_reference=case.bare, new_corrections=[correction], **case.beside)
    assert (case.is_as_recorded(out), case.said(out)) == (True, 1)
    merge([dumped], tmp_path / "without", hf_reference=case.bare, drop_mtp=True, **case.beside)
    assert case.is_as_recorded(tmp_path / "without", mtp=False)
    assert case.said(tmp_path / "without") == 0


def test_files_that_hold_a_step_promise_it_where_none_was_trained(case: Case, tmp_path: Path) -> None:
    """Reached by a graft, or by leaving it out; never without a word."""
    given: dict[str, Any] = {"workers": 1, "hf_reference": case.published}
    tower = ["vision"] if case.family.is_composite else []
    dumped = case.dump(tmp_path / "dump", case.published, trained=False)
    with pytest.raises(
        MtpMismatchError, match=r"nobody holds any of it\. Choose: dump .*--graft mtp.*--drop-mtp"
    ):
        merge([dumped], tmp_path / "refused", grafts=tower, **given)
    merge([dumped], tmp_path / "grafted", grafts=[*tower, "mtp"], **given)
    there, wanted = read_hf_tensors(tmp_path / "grafted"), read_hf_tensors(case.published)
    assert there.keys() == wanted.keys()
    assert all(torch.equal(there[name], wanted[name]) for name in there if is_step(name))
    merge([dumped], tmp_path / "without", grafts=tower, drop_mtp=True, **given)
    assert case.is_as_recorded(tmp_path / "without", mtp=False)
    assert case.said(tmp_path / "without") == 0
