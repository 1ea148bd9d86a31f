"""A `model_type` of another model, or none: readers choose the model by it, so that nobody may publish it unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.errors import ModelTypeError
from shardmerge.phase2_merge import metadata, verify
from tests.dumps.dumps import Topology
from tests.dumps.worlds import MakeWorld


def said(folder: Path, model_type: str | None) -> None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config.pop("model_type")
    (folder / "config.json").write_text(
        json.dumps(config | ({"model_type": model_type} if model_type else {}))
    )


@pytest.mark.parametrize(
    ("model_type", "what"), [("llama", '"llama", by which readers choose'), (None, "has no model_type")]
)
def test_a_reference_of_another_model_type_is_refused_and_may_be_allowed(
    model_type: str | None, what: str, world: MakeWorld
) -> None:
    one = world(Topology(tp=2)).write()
    out = one.out
    said(one.reference, model_type)
    for command in (one.check, one.merge):
        with pytest.raises(ModelTypeError, match=what):
            command()
    assert not out.exists()
    one.merge(allow=["config"])
    (warning,) = verify(out).warnings
    assert "model_type" in warning
    assert "(allowed)" in warning


def test_an_output_whose_model_type_is_edited_is_refused_until_it_is_corrected(
    world: MakeWorld,
) -> None:
    one = world(Topology(tp=2)).write()
    out = one.out
    one.merge()
    right = json.loads((out / "config.json").read_text())["model_type"]
    with pytest.raises(ModelTypeError):
        metadata(out, corrections=["config.model_type=llama"])
    said(out, "llama")
    with pytest.raises(ModelTypeError, match=rf"--set config.model_type={right}"):
        verify(out)
    metadata(out, corrections=[f"config.model_type={right}"])
    assert verify(out).warnings == ()
