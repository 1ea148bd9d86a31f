"""What config.json switches off is no tensor of the checkpoint, whatever a reference with weights holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.errors import UnexpectedTensorError
from shardmerge.phase2_merge import merge, verify
from tests.dumps import dumps
from tests.dumps.worlds import MakeWorld, World
from tests.worlds.checkpoints import read_hf_tensors

HEAD = "lm_head.weight"


def says(folder: Path, **more: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | more))


def silent(one: World) -> World:
    """A dump that does not tell what its model computes with, beside a reference with all weights."""
    facts = dumps.facts_of(one.model.config)
    return one.write(
        weights=True, facts=lambda _: {key: value for key, value in facts.items() if key != "settings"}
    )


def test_a_head_of_its_own_is_refused_beside_tied_embeddings(world: MakeWorld, tmp_path: Path) -> None:
    one = silent(world())
    one.check()  # as it is, it is whole
    says(one.reference, tie_word_embeddings=True)
    with pytest.raises(UnexpectedTensorError, match=HEAD):
        one.check()
    with pytest.raises(UnexpectedTensorError, match=HEAD):
        merge([one.dump], tmp_path / "out", hf_reference=one.reference, workers=1, allow=["config"])
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_head_is_whole_though_its_reference_holds_one(world: MakeWorld) -> None:
    one = world()
    del one.cuts[HEAD]
    silent(one)
    says(one.reference, tie_word_embeddings=True)
    one.merge()
    assert verify(one.out).warnings == ()
    assert HEAD not in read_hf_tensors(one.out)


def test_an_output_that_is_tied_afterwards_is_not_sound(world: MakeWorld) -> None:
    one = silent(world())
    one.merge()
    says(one.out, tie_word_embeddings=True)
    with pytest.raises(UnexpectedTensorError, match=HEAD):
        verify(one.out)
