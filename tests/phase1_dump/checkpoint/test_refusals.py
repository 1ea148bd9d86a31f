"""Checkpoints that cannot be read from disk: each is refused by name, and told what can be done with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from shardmerge.common.errors import (
    BadInputError,
    OutputExistsError,
    ShardmergeError,
    UnfinishedCheckpointError,
    UnsupportedCheckpointError,
)
from tests.phase1_dump.checkpoint.conftest import Saved

NORM = "decoder.layers.1.self_attention.q_layernorm.weight"
KEYS = {
    "decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight": "a LoRA adapter",
    "decoder.layers.0.self_attention.linear_qkv.lora_a.weight": "a LoRA adapter",
    "rm_head.weight": "a head for rewards",
    "_teacher_model.decoder.final_layernorm.weight": "distillation",
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_are_of_something_else(saved: Saved, tmp_path: Path, key: str) -> None:
    def add(metadata: Any) -> None:
        held = metadata.state_dict_metadata
        held[key] = held[NORM]

    saved.edit(add)
    with pytest.raises(UnsupportedCheckpointError, match=KEYS[key]) as caught:
        saved.dump(tmp_path / "dump")
    assert caught.value.exit_code == 5
    assert key in str(caught.value)
    assert "--model-provider" in str(caught.value)


def test_a_dump_into_the_checkpoint_itself(saved: Saved) -> None:
    before = {path.name for path in saved.path.iterdir()}
    with pytest.raises(OutputExistsError, match=r"it holds \.metadata, so it is a model or a checkpoint"):
        saved.dump(saved.path)
    assert {path.name for path in saved.path.iterdir()} == before


def test_no_workers(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="workers is 0"):
        saved.dump(tmp_path / "dump", workers=0)


def test_quantizers_that_only_a_folder_shows(saved: Saved, tmp_path: Path) -> None:
    (saved.path / "modelopt_state").mkdir()
    with pytest.raises(UnsupportedCheckpointError, match="saved with Model-Optimizer, and no _extra_state"):
        saved.dump(tmp_path / "dump")


@pytest.mark.parametrize("backend", ["zarr", "fsdp_dtensor", None])
def test_other_formats(saved: Saved, tmp_path: Path, backend: str | None) -> None:
    (saved.path / "metadata.json").write_text(json.dumps({"sharded_backend": backend}))
    with pytest.raises(UnsupportedCheckpointError, match="not torch_dist") as caught:
        saved.dump(tmp_path / "dump")
    assert caught.value.exit_code == 5


def test_what_torch_alone_saved(saved: Saved, tmp_path: Path) -> None:
    """As Megatron-LM saves fsdp_dtensor: nested, by torch's own writer, without megatron-core's file."""
    state = {"model": {"module.embedding.word_embeddings.weight": torch.ones(3, 2)}, "optimizer": {}}
    with pytest.warns(UserWarning, match="single process"):
        save(state, checkpoint_id=str(tmp_path / "fsdp"), no_dist=True)
    with pytest.raises(UnsupportedCheckpointError, match="fsdp_dtensor") as caught:
        Saved(tmp_path / "fsdp", saved.reference).dump(tmp_path / "dump")
    assert caught.value.exit_code == 5


def test_the_legacy_format(tmp_path: Path, original: Saved) -> None:
    (tmp_path / "iter_0000007" / "mp_rank_00").mkdir(parents=True)
    with pytest.raises(UnsupportedCheckpointError, match="legacy format"):
        Saved(tmp_path / "iter_0000007", original.reference).dump(tmp_path / "dump")


@pytest.mark.parametrize("name", ["metadata.json", ".metadata"])
def test_a_checkpoint_that_is_being_saved(saved: Saved, tmp_path: Path, name: str) -> None:
    (saved.path / name).unlink()
    with pytest.raises(UnfinishedCheckpointError, match=name) as caught:
        saved.dump(tmp_path / "dump")
    assert caught.value.exit_code == 3


def release(saved: Saved) -> None:
    saved.path.rename(saved.path.parent / "release")
    (saved.path.parent / "latest_checkpointed_iteration.txt").write_text("release\n")


def nemo(saved: Saved) -> None:
    (saved.path.parent / "weights").mkdir()
    for path in list(saved.path.iterdir()):
        path.rename(saved.path.parent / "weights" / path.name)


@pytest.mark.parametrize("arrange", [release, nemo])
def test_folders_as_they_occur(saved: Saved, tmp_path: Path, arrange: Callable[[Saved], None]) -> None:
    arrange(saved)
    Saved(tmp_path, saved.reference).dump(tmp_path / "dump", dry_run=True)


def test_several_iterations_and_nothing_that_says_which(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "latest_train_state.pt").write_bytes(b"a pickle, which is never read")
    with pytest.raises(BadInputError, match="holds 1 iterations"):
        Saved(tmp_path, saved.reference).dump(tmp_path / "dump")


@pytest.mark.parametrize("said", ["", "../elsewhere", "-1", "8", "x" * 60])
def test_a_tracker_that_makes_no_sense(saved: Saved, tmp_path: Path, said: str) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(said)
    with pytest.raises(ShardmergeError, match=r"latest_checkpointed_iteration\.txt"):
        Saved(tmp_path, saved.reference).dump(tmp_path / "dump")
