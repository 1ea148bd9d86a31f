"""--graft: what training never held comes from the reference, byte for byte, and never silently."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

from shardmerge.common.errors import (
    BadInputError,
    CorruptFileError,
    MismatchError,
    MissingRankError,
    MissingTensorError,
)
from shardmerge.phase2_merge import diff, inspect, metadata, verify
from tests.dumps.dumps import Topology, dense_config, load, moe_config, save
from tests.dumps.worlds import MakeWorld, World

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def tower() -> Tensors:
    """A vision tower: shapes and dtypes of its own."""
    numbers = np.random.default_rng(7)
    of = {
        "model.visual.patch_embed.proj.weight": ("F32", (5, 3, 2, 2)),
        "model.visual.blocks.0.norm1.weight": ("BF16", (6,)),
        "model.visual.layers.1.attn.qkv.weight": ("BF16", (18, 6)),
    }
    sizes = {"F32": 4, "BF16": 2}
    return {
        name: (dtype, shape, numbers.bytes(int(np.prod(shape)) * sizes[dtype]))
        for name, (dtype, shape) in of.items()
    }


def with_tower(one: World, *, own_file: bool) -> Tensors:
    """Give the reference the model's weights and a tower, in files of their own or in one."""
    one.write()
    visual = tower()
    text = {
        name: (dtype, shape, bytes(len(data))) for name, (dtype, shape, data) in one.model.tensors.items()
    }
    files = (
        {"visual.safetensors": visual, "text.safetensors": text}
        if own_file
        else {"all.safetensors": text | visual}
    )
    for name, tensors in files.items():
        save(one.reference / name, tensors)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (one.reference / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return visual


@pytest.mark.parametrize("own_file", [True, False])
@pytest.mark.parametrize("how", [{}, {"layout": "canonical"}, {"max_shard_bytes": 500}, {"verify": "size"}])
def test_a_tower_is_taken_from_the_reference(world: MakeWorld, own_file: bool, how: dict[str, Any]) -> None:
    one = world(Topology(tp=2, ep=2), moe_config())
    visual = with_tower(one, own_file=own_file)
    found = one.merge(grafts=["model.visual.*"], **how)
    assert load(one.out) == one.model.tensors | visual
    assert found.check.grafted == tuple(sorted(visual))
    assert found.check.grafted_bytes == sum(len(data) for _, _, data in visual.values())
    assert "Taken from the reference, 468 B: 3 tensors" in found.text()
    adopts = own_file and "layout" not in how
    links = {path.stat().st_ino for path in one.out.glob("*.safetensors")}
    assert ((one.reference / "visual.safetensors").exists() and _inode(one) in links) == adopts
    assert verify(one.out).checksums_compared == len(one.model.tensors) + 3


def _inode(one: World) -> int:
    return (one.reference / "visual.safetensors").stat().st_ino


def test_without_a_graft_the_tower_is_missing(world: MakeWorld) -> None:
    one = world()
    with_tower(one, own_file=True)
    with pytest.raises(Exception, match=r"model\.visual") as found:
        one.merge()
    assert found.value.exit_code == 3  # type: ignore[attr-defined]


def test_a_part_of_the_tower_leaves_the_rest_missing(world: MakeWorld) -> None:
    one = world()
    with_tower(one, own_file=True)
    with pytest.raises(MissingTensorError) as found:
        one.merge(grafts=["model.visual.blocks.*", "model.visual.layers.*"])
    assert found.value.tensor == "model.visual.patch_embed.proj.weight"


def test_a_tensor_of_the_table_may_be_grafted(world: MakeWorld) -> None:
    """A head that training never held: it must have the shape that config.json gives it."""
    one = world()
    del one.cuts["lm_head.weight"]
    with_tower(one, own_file=True)
    one.merge(grafts=["lm_head.weight", "model.visual.*"])
    dtype, shape, data = one.model.tensors["lm_head.weight"]
    assert load(one.out)["lm_head.weight"] == (dtype, shape, bytes(len(data)))


def test_a_grafted_tensor_of_the_wrong_shape_is_refused(world: MakeWorld) -> None:
    one = world()
    del one.cuts["lm_head.weight"]
    one.write()
    save(one.reference / "model.safetensors", {"lm_head.weight": ("BF16", (4, 8), bytes(64))})
    with pytest.raises(MismatchError) as found:
        one.merge(grafts=["lm_head.weight"])
    assert (found.value.tensor, found.value.got, found.value.expected) == (
        "lm_head.weight",
        "[4, 8]",
        "[24, 8]",
    )


@pytest.mark.parametrize("weights", [True, False])
def test_a_pattern_that_names_nothing_is_refused(world: MakeWorld, weights: bool) -> None:
    one = world().write(weights=weights)
    with pytest.raises(BadInputError, match=r"model\.visual\.\*.*(holds no weights|holds 25 tensors)"):
        one.merge(grafts=["model.visual.*"])
    assert not one.out.exists()


def test_a_tensor_that_the_dump_holds_is_not_grafted(world: MakeWorld) -> None:
    one = world()
    with_tower(one, own_file=True)
    with pytest.raises(BadInputError, match=r"takes model\.norm\.weight .* narrow the pattern"):
        one.merge(grafts=["model.norm.weight", "model.visual.*"])


def test_a_damaged_file_of_the_reference_is_refused(world: MakeWorld) -> None:
    one = world()
    with_tower(one, own_file=True)
    path = one.reference / "visual.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=r"visual\.safetensors"):
        one.merge(grafts=["model.visual.*"])


def test_metadata_of_a_grafted_output_can_be_corrected(world: MakeWorld) -> None:
    one = world(Topology(), dense_config())
    with_tower(one, own_file=False)
    one.merge(grafts=["model.visual.*"], max_shard_bytes=500)
    before = load(one.out)
    assert metadata(one.out, corrections=["config.rope_theta=5"]).changed
    assert load(one.out) == before
    assert one.merge(grafts=["model.visual.*"], max_shard_bytes=500).rewritten is not None


def test_another_reference_tower_is_another_output(world: MakeWorld) -> None:
    one = world()
    visual = with_tower(one, own_file=True)
    one.merge(grafts=["model.visual.*"], layout="canonical")
    changed = {name: (dtype, shape, data[::-1]) for name, (dtype, shape, data) in visual.items()}
    save(one.reference / "visual.safetensors", changed)
    with pytest.raises(Exception, match="merged from another dump") as found:
        one.merge(grafts=["model.visual.*"], layout="canonical")
    assert found.value.exit_code == 6  # type: ignore[attr-defined]


def test_inspect_and_diff_know_grafted_outputs(world: MakeWorld) -> None:
    one = world()
    with_tower(one, own_file=True)
    one.merge(grafts=["model.visual.*"])
    assert "28 tensors" in inspect(one.out).text()
    assert (diff(one.out, one.out).equal, diff(one.out, one.out).differing) == (28, ())
    assert one.check(grafts=["model.visual.*"]).grafted == tuple(sorted(tower()))


def test_a_missing_rank_is_told_beside_a_graft(world: MakeWorld) -> None:
    one = world(Topology(tp=2, ep=2), moe_config())
    with_tower(one, own_file=True)
    shutil.rmtree(one.rank(3))
    with pytest.raises(MissingRankError) as found:
        one.merge(grafts=["model.visual.*"])
    assert found.value.rank == 3
    assert "visual" not in found.value.debt
