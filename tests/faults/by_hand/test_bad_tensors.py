"""One fault a test: tensors that are missing, doubled, misplaced or of another kind. What the error names."""

from __future__ import annotations

import json
import shutil

from shardmerge.common import errors as tree
from tests.dumps import dumps
from tests.dumps.dumps import Cut, Topology, moe_config
from tests.dumps.refusals import edit, problems, refusal
from tests.dumps.worlds import MakeWorld

Q = "model.layers.0.self_attn.q_proj.weight"


# ---- tensors --------------------------------------------------------------------------------------------------


def test_a_missing_tensor_says_who_requires_it(world: MakeWorld) -> None:
    one = world()
    del one.cuts[Q]
    error = refusal(one.write(), tree.MissingTensorError, 3)
    assert (error.tensor, error.shape) == (Q, (16, 8))
    assert error.required_by == "config.json with the table of Qwen3ForCausalLM"


def test_a_tensor_that_only_the_reference_lists(world: MakeWorld) -> None:
    one = world()
    dumps.write_reference(one.reference, one.model)
    extra = {"model.rotary.inv_freq": ("F32", (4,), bytes(16))}
    dumps.save(one.reference / "model.safetensors", one.model.tensors | extra)
    error = refusal(one.write(), tree.MissingTensorError, 3)
    assert (error.tensor, error.required_by) == ("model.rotary.inv_freq", "the reference checkpoint")


def test_a_missing_middle_piece_names_place_and_ranks(world: MakeWorld) -> None:
    one = world(Topology(tp=4))
    del one.cuts[Q][1]
    error = refusal(one.write(), tree.UncoveredTensorError, 3)
    assert (error.tensor, error.missing) == (Q, "[4:8, 0:8]")
    assert error.ranks == (0, 2, 3)


def test_a_missing_last_piece_is_not_a_smaller_tensor(world: MakeWorld) -> None:
    one = world(Topology(tp=4))
    del one.cuts[Q][3]
    error = refusal(one.write(), tree.UncoveredTensorError, 3)
    assert (error.tensor, error.missing, error.global_shape) == (Q, "[12:16, 0:8]", (16, 8))


def test_an_overlapping_piece_names_both_ranks(world: MakeWorld) -> None:
    one = world(Topology(tp=4))
    one.cuts[Q][2] = Cut(2, (6, 0), (6, 8))
    error = refusal(one.write(), tree.OverlapError, 4)
    assert (error.tensor, error.ranks) == (Q, (1, 2))
    assert error.rectangles == "[4:8, 0:8] and [6:12, 0:8]"


def test_the_same_place_twice_with_different_bytes_is_an_overlap(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    other = dumps.model_of(one.model.config, seed=1)
    one.cuts["model.norm.weight"] = [Cut(1, (0,), (8,))]
    shutil.rmtree(one.rank(1))
    cuts = [(name, cut) for name, of in one.cuts.items() for cut in of if cut.rank == 1]
    other.tensors = one.model.tensors | {"model.norm.weight": other.tensors["model.norm.weight"]}
    dumps.write_rank(one.rank(1), other, cuts, 1, one.topology, (), 1, {})
    error = refusal(one, tree.OverlapError, 4)
    assert (error.tensor, error.ranks) == ("model.norm.weight", (0, 1))


def test_local_expert_ids_instead_of_global_ones(world: MakeWorld) -> None:
    """Both ep ranks call their experts 0 and 1: the first two clash, the last two are missing."""
    one = world(Topology(ep=2), moe_config(1))
    for name in [n for n in one.cuts if ".experts.2." in n or ".experts.3." in n]:
        twin = name.replace(".experts.2.", ".experts.0.").replace(".experts.3.", ".experts.1.")
        one.cuts[twin] += [Cut(1, cut.offset, cut.shape) for cut in one.cuts.pop(name)]
    for name in [n for n in one.cuts if ".experts." in n]:
        one.cuts[name][1] = Cut(1, (0, 0), (one.cuts[name][0].shape[0] - 1, one.cuts[name][0].shape[1]))
    found = problems(one.write(), 4)
    assert {type(error) for error in found} == {tree.OverlapError, tree.MissingTensorError}
    overlaps = {error.tensor for error in found if isinstance(error, tree.OverlapError)}
    missing = {error.tensor for error in found if isinstance(error, tree.MissingTensorError)}
    assert all(".experts.0." in name or ".experts.1." in name for name in overlaps)
    assert all(".experts.2." in name or ".experts.3." in name for name in missing)
    assert (len(overlaps), len(missing)) == (6, 6)


def test_a_wrong_dtype_names_the_rank(world: MakeWorld) -> None:
    one = world(Topology(pp=2))
    one.model.tensors["model.norm.weight"] = ("F32", (8,), bytes(32))
    error = refusal(one.write(), tree.MismatchError, 4)
    assert (error.tensor, error.what, error.got, error.expected, error.ranks) == (
        "model.norm.weight", "dtype", "F32", "BF16", (1,),
    )  # fmt: skip


def test_the_references_dtype_counts_more_than_the_models(world: MakeWorld) -> None:
    one = world()
    one.model.tensors["model.norm.weight"] = ("F32", (8,), bytes(range(32)))
    one.write(weights=True).merge()
    assert dumps.load(one.out) == one.model.tensors


def test_two_dtypes_within_one_tensor(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    path = one.rank(1) / "manifest.json"
    value = json.loads(path.read_bytes())
    at = [i for i, name in enumerate(value["columns"]["name"]) if value["names"][name] == Q]
    value["dtypes"].append("F16")
    value["columns"]["dtype"][at[0]] = 1
    edit(path, dtypes=value["dtypes"], columns=value["columns"])
    mixed = refusal(one, tree.MismatchError, 4)
    assert (mixed.tensor, mixed.got, mixed.expected, mixed.ranks) == (Q, "F16", "BF16", (1,))


def test_vocabulary_padding_left_in(world: MakeWorld) -> None:
    one = world()
    one.model.tensors["lm_head.weight"] = ("BF16", (32, 8), bytes(512))
    one.cuts["lm_head.weight"] = [Cut(0, (0, 0), (32, 8))]
    error = refusal(one.write(), tree.MismatchError, 4)
    assert (error.tensor, error.what, error.got, error.expected) == (
        "lm_head.weight", "global_shape", "[32, 8]", "[24, 8]",
    )  # fmt: skip


def test_a_tensor_of_another_number_of_dimensions(world: MakeWorld) -> None:
    one = world()
    one.model.tensors["model.norm.weight"] = ("BF16", (8, 1), bytes(16))
    one.cuts["model.norm.weight"] = [Cut(0, (0, 0), (8, 1))]
    assert refusal(one.write(), tree.MismatchError, 4).got == "[8, 1]"


def test_a_rectangle_outside_its_tensor(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    path = one.rank(1) / "manifest.json"
    value = json.loads(path.read_bytes())
    at = next(i for i, name in enumerate(value["columns"]["name"]) if value["names"][name] == Q)
    value["columns"]["global_offset"][0][at] = 9
    edit(path, columns=value["columns"])
    error = refusal(one, tree.MismatchError, 4)
    assert (error.tensor, error.got, error.expected) == (Q, "[9:17, 0:8]", "one inside [16, 8]")


def test_a_rectangle_of_the_wrong_size_in_its_file(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    path = one.rank(1) / "manifest.json"
    value = json.loads(path.read_bytes())
    value["columns"]["end"][0] += 1 << 61
    edit(path, columns=value["columns"])
    assert "place in its file" in next(e for e in problems(one, 4) if isinstance(e, tree.MismatchError)).what


def test_an_unexpected_tensor_names_its_ranks(world: MakeWorld) -> None:
    one = world(Topology(tp=2))
    one.model.tensors["model.layers.2.mlp.up_proj.weight"] = ("BF16", (2, 2), bytes(8))
    one.cuts["model.layers.2.mlp.up_proj.weight"] = [Cut(1, (0, 0), (2, 2))]
    error = refusal(one.write(), tree.UnexpectedTensorError, 4)
    assert (error.tensor, error.ranks) == ("model.layers.2.mlp.up_proj.weight", (1,))


def test_several_problems_are_told_together_with_the_highest_exit_code(world: MakeWorld) -> None:
    one = world(Topology(tp=4))
    del one.cuts[Q][3]
    one.cuts["lm_head.weight"][2] = Cut(2, (11, 0), (7, 8))
    found = problems(one.write(), 4)
    assert {type(error) for error in found} == {tree.OverlapError, tree.UncoveredTensorError}
