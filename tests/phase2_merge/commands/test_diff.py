"""`diff`: which tensors differ between dumps and outputs, by recorded checksums."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardmerge.common.command.byte_count import show
from shardmerge.common.command.group import main
from shardmerge.common.errors import BadInputError
from shardmerge.phase2_merge import diff, merge
from tests.dumps import dumps
from tests.dumps.dumps import Cut, Topology, moe_config
from tests.dumps.worlds import MakeWorld, World

CHANGED = ("model.layers.1.mlp.experts.2.up_proj.weight", "model.norm.weight")


def other(one: World, folder: Path, topology: Topology) -> Path:
    """The same model after a step: two tensors have one byte changed."""
    for name in CHANGED:
        dtype, shape, data = one.model.tensors[name]
        one.model.tensors[name] = (dtype, shape, bytes([data[0] ^ 1]) + data[1:])
    return dumps.write_dump(folder, one.model, dumps.cuts_of(one.model, topology), topology)


def test_two_dumps_name_the_tensors_that_changed_and_their_layers(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2, ep=2), moe_config()).write()
    found = diff(one.dump, other(one, tmp_path / "later", Topology(tp=2, ep=2)))
    assert found.differing == CHANGED
    assert found.equal == len(one.model.tensors) - 2
    assert found.by_layer == {"1": 1, "none": 1}
    assert (found.retyped, found.partial, found.only_a, found.only_b, found.read_bytes) == ((), (), (), (), 0)


def test_a_dump_is_equal_to_itself(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    found = diff(one.dump, one.dump)
    assert (found.equal, found.differing) == (len(one.model.tensors), ())


@pytest.mark.parametrize("later", [Topology(), Topology(tp=4), Topology(tp=4, ep=2)], ids=str)
def test_other_cuts_of_the_same_tensors_are_put_together_and_compared(
    world: MakeWorld, tmp_path: Path, later: Topology
) -> None:
    """The bytes of what is cut otherwise are read, on the side that is cut."""
    one = world(Topology(tp=2), moe_config()).write()
    found = diff(one.dump, other(one, tmp_path / "later", later))
    assert found.differing == CHANGED
    assert found.equal == len(one.model.tensors) - 2
    assert found.read_bytes > 0


def test_a_dump_with_cuts_its_output_and_a_plain_copy_are_the_same(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2, ep=2), moe_config()).write()
    one.merge()
    plain = tmp_path / "plain"
    shutil.copytree(one.out, plain, ignore=shutil.ignore_patterns(".shardmerge"))
    for a, b in itertools.permutations((one.dump, one.out, plain), 2):
        found = diff(a, b)
        assert (found.equal, found.differing, found.partial) == (len(one.model.tensors), (), ())
    size = show(2 * sum(len(data) for _, _, data in one.model.tensors.values()))
    assert diff(plain, plain).scope() == ([f"{size} that were read"], [])
    checked, unchecked = diff(one.dump, one.dump).scope()
    assert checked == [f"recorded checksums of {len(one.model.tensors)} tensors"]
    assert unchecked == [
        "whether recorded checksums are those of the bytes that are there now (check, verify)"
    ]
    assert f"NOT checked: {unchecked[0]}.\n" in diff(one.dump, one.dump).text() + "\n"
    spoiled = min(plain.glob("*.safetensors"))
    data = bytearray(spoiled.read_bytes())
    data[-1] ^= 1
    spoiled.write_bytes(data)
    for a in (one.dump, one.out):
        assert len(diff(a, plain).differing) == 1


def test_half_of_a_tensor_is_not_compared(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2)).write()
    one.merge()
    shutil.rmtree(one.rank(1))
    found = diff(one.dump, one.out)
    cut = {name for name, pieces in one.cuts.items() if len(pieces) == 2}
    assert set(found.partial) == cut
    assert "In part on one side, not compared: " in found.text()


def test_a_tensor_with_a_gap_and_an_overlap_of_the_same_size_is_not_compared(
    world: MakeWorld, tmp_path: Path
) -> None:
    """The gap would count as zeros, which the tensor holds."""
    name = "model.layers.0.mlp.gate_proj.weight"
    one = world(Topology(tp=2))
    dtype, shape, data = one.model.tensors[name]
    one.model.tensors[name] = (dtype, shape, bytes(len(data)))
    first = one.cuts[name][0]
    one.cuts[name][1] = Cut(1, first.offset, first.shape)
    one.write(weights=True)
    assert diff(one.dump, one.reference).partial == (name,)


def test_the_exit_code_says_what_git_says_if_it_is_asked(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(ep=2), moe_config()).write()
    same, later = str(one.dump), str(other(one, tmp_path / "later", Topology(ep=2)))
    for arguments, code in (([same, same], 0), ([same, later], 1)):
        assert CliRunner().invoke(main, ["diff", *arguments, "--exit-code"]).exit_code == code
        found = CliRunner().invoke(main, ["diff", *arguments, "--exit-code", "--json"])
        facts = json.loads(found.stdout)
        assert (facts["exit_code"], facts["ok"], found.stderr) == (code, not code, "")
        assert "error" not in facts


def test_outputs_are_compared_whatever_the_cuts_of_their_dumps_were(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2), moe_config()).write()
    one.merge()
    later = other(one, tmp_path / "later", Topology(ep=2))
    merge([later], tmp_path / "later-out", hf_reference=one.reference, workers=1)
    found = diff(one.out, tmp_path / "later-out")
    assert found.differing == CHANGED
    assert found.equal == len(one.model.tensors) - 2


def test_what_only_one_side_has_and_what_changed_its_dtype_is_named(world: MakeWorld, tmp_path: Path) -> None:
    one = world().write()
    dtype, shape, data = one.model.tensors["model.norm.weight"]
    one.model.tensors["model.norm.weight"] = ("F16", shape, data)
    one.model.tensors["extra.weight"] = (dtype, shape, data)
    del one.model.tensors["lm_head.weight"]
    later = dumps.write_dump(tmp_path / "b", one.model, dumps.cuts_of(one.model, Topology()), Topology())
    found = diff(one.dump, later)
    assert (found.retyped, found.only_a, found.only_b) == (
        ("model.norm.weight",), ("lm_head.weight",), ("extra.weight",),
    )  # fmt: skip


def test_a_directory_without_weights_is_refused(world: MakeWorld) -> None:
    one = world().write()
    with pytest.raises(BadInputError, match="holds no rank of a dump, and neither"):
        diff(one.dump, one.reference)


def test_the_command_tells_names_and_layers(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(ep=2), moe_config()).write()
    later = other(one, tmp_path / "later", Topology(ep=2))
    shown = CliRunner().invoke(main, ["diff", str(one.dump), str(later)])
    assert shown.exit_code == 0, shown.output
    assert "up_proj.weight of expert 2 of layer 1" in shown.output
    assert "Differing tensors by layer: 1: 1, none: 1." in shown.output
    facts = json.loads(CliRunner().invoke(main, ["diff", str(one.dump), str(later), "--json"]).stdout)
    assert facts["differing"] == list(CHANGED)
