"""A dump becomes a checkpoint: the same bytes, adopted or assembled, whatever the topology and the order of listing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardmerge.common.errors import BadInputError, CorruptFileError
from shardmerge.phase2_merge import merge
from tests.dumps import dumps
from tests.dumps.dumps import Cut, Topology, dense_config, load, moe_config, tree
from tests.dumps.worlds import MakeWorld

TOPOLOGIES = [Topology(), Topology(tp=2), Topology(tp=4), Topology(pp=2), Topology(ep=4), Topology(2, 2, 2)]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: f"tp{t.tp}ep{t.ep}pp{t.pp}")
def test_every_byte_comes_back_at_every_topology(world: MakeWorld, topology: Topology) -> None:
    one = world(topology, moe_config()).write()
    one.merge(max_shard_bytes=700)
    assert load(one.out) == one.model.tensors


def test_the_real_pool_of_processes_gives_the_same_bytes(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2), moe_config()).write()
    one.merge(max_shard_bytes=700)
    merge([one.dump], tmp_path / "pooled", hf_reference=one.reference, workers=2, max_shard_bytes=700)
    assert tree(tmp_path / "pooled") == tree(one.out)


def test_an_injected_executor_is_used_and_left_running(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    with ThreadPoolExecutor(2) as executor:
        one.merge(executor=executor, max_shard_bytes=300)
        assert executor.submit(int, 1).result() == 1
    assert load(one.out) == one.model.tensors


def test_entire_tensors_are_adopted_and_not_one_byte_is_copied(world: MakeWorld) -> None:
    one = world(Topology(pp=2, ep=2), moe_config()).write()
    report = one.merge()
    assert (report.assembled_bytes, report.adopted_by) == (0, {"hard link": 4})
    shards = sorted(one.out.glob("*.safetensors"))
    for rank, shard in enumerate(shards):  # in the order of ranks
        assert shard.samefile(one.rank(rank) / "whole-00001.safetensors")
    assert [shard.name for shard in shards][-1] == "model-00004-of-00004.safetensors"


def test_experts_are_adopted_although_tensor_parallel_ranks_cut_the_rest(world: MakeWorld) -> None:
    one = world(Topology(tp=2), moe_config())
    for name, (_, shape, _) in one.model.tensors.items():
        if ".experts." in name:
            one.cuts[name] = [Cut(1, (0, 0), shape)]
    report = one.write().merge()
    experts = sum(len(data) for name, (_, _, data) in one.model.tensors.items() if ".experts." in name)
    assert report.adopted_bytes >= experts
    assert (one.out / "model-00002-of-00003.safetensors").samefile(one.rank(1) / "whole-00001.safetensors")
    assert load(one.out) == one.model.tensors


def test_a_refused_hard_link_becomes_a_copy(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    one = world(Topology(pp=2)).write()
    assert one.merge().adopted_by == {"copy": 2}
    copied, source = one.out / "model-00001-of-00002.safetensors", one.rank(0) / "whole-00001.safetensors"
    assert copied.read_bytes() == source.read_bytes()
    assert not copied.samefile(source)


def test_a_link_that_fails_for_want_of_space_is_no_reason_to_copy(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    one = world().write()
    with pytest.raises(OSError, match="No space left"):
        one.merge()
    assert not one.out.exists()


def test_one_shard_is_called_model_safetensors_and_needs_no_index(world: MakeWorld) -> None:
    one = world().write()
    one.merge()
    assert {path.name for path in one.out.iterdir()} == {
        "model.safetensors", "config.json", "tokenizer.json", ".shardmerge",
    }  # fmt: skip


def test_the_index_says_where_every_tensor_is(world: MakeWorld) -> None:
    one = world(Topology(tp=2), dense_config(1)).write()
    one.merge()
    text = (one.out / "model.safetensors.index.json").read_text()
    index = json.loads(text)
    parameters = sum(int(np.prod(shape)) for _, shape, _ in one.model.tensors.values())
    assert index["metadata"] == {"total_parameters": parameters, "total_size": 2 * parameters}
    assert list(index["weight_map"]) == sorted(one.model.tensors)
    assert index["weight_map"]["model.norm.weight"] == "model-00001-of-00002.safetensors"
    assert index["weight_map"]["lm_head.weight"] == "model-00002-of-00002.safetensors"
    assert text.startswith('{\n  "metadata": {\n    "total_parameters"')


def test_assembled_shards_respect_the_maximum_and_a_larger_tensor_stands_alone(world: MakeWorld) -> None:
    one = world(Topology(tp=2), dense_config(1)).write()
    one.merge(max_shard_bytes=200)
    sizes = {}
    for path in one.out.glob("*.safetensors"):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        del header["__metadata__"]
        sizes[path.name] = (len(header), max(entry["data_offsets"][1] for entry in header.values()))
    assert all(size <= 200 or count == 1 for name, (count, size) in sizes.items() if "00001-of" not in name)
    assert (1, 384) in sizes.values()  # the embedding: 24 x 8 x 2 bytes


def test_shards_have_the_metadata_that_readers_ask_for(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    one.merge()
    for path in one.out.glob("*.safetensors"):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert header["__metadata__"] == {"format": "pt"}


def test_the_order_of_listing_changes_no_byte(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(2, 2, 2), moe_config()).write()
    first, second = tmp_path / "first", tmp_path / "second"
    for rank in range(8):
        shutil.copytree(one.rank(rank), (first if rank % 3 else second) / f"rank-{rank:05d}")
    one.merge()
    for number, listing in enumerate([[first, second], [second, first]]):
        merge(listing, tmp_path / str(number), hf_reference=one.reference, workers=1)
        assert tree(tmp_path / str(number)) == tree(one.out)


def test_published_files_name_no_host_time_or_place(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2)).write()
    one.merge()
    moved = tmp_path / "elsewhere"
    shutil.copytree(one.dump, moved)
    merge([moved], tmp_path / "later", hf_reference=one.reference, workers=1)
    assert tree(tmp_path / "later") == tree(one.out)
    assert list((one.out / ".shardmerge" / "owners").iterdir()) == []
    for name, data in tree(one.out).items():
        assert str(tmp_path).encode() not in data, name


def test_a_rank_found_twice_counts_once(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2)).write()
    shutil.copytree(one.rank(1), tmp_path / "again" / "rank-00001")
    merge([one.dump, tmp_path / "again"], one.out, hf_reference=one.reference, workers=1)
    assert load(one.out) == one.model.tensors


def test_the_same_rectangle_twice_with_the_same_bytes_is_a_warning(world: MakeWorld) -> None:
    one = world(Topology(tp=2))
    one.add(1, "model.norm.weight", (0,), (8,))
    one.add(0, "lm_head.weight", (12, 0), (12, 8))
    report = one.write().merge()
    assert report.check.warnings == (
        (
            "written twice with the same bytes, by ranks 0 and 1: 2 tensors, lm_head.weight, model.norm.weight, "
            "the first lm_head.weight"
        ),
    )
    assert load(one.out) == one.model.tensors  # and no file holds a tensor twice


def test_config_is_the_references_with_the_dtype_of_the_dump(world: MakeWorld) -> None:
    config = dense_config(
        1,
        zzz=[1, {"a": None}],
        torch_dtype="float32",
        quantization_config={"quant_method": "fp8"},
        name="mod\u00e8le",
    )
    one = world(config=config).write()
    one.merge()
    got = json.loads((one.out / "config.json").read_bytes())
    expected = {key: value for key, value in config.items() if key != "quantization_config"}
    expected |= {"torch_dtype": "bfloat16", "dtype": "bfloat16"}
    assert got == expected
    assert list(got) == [key for key in config if key != "quantization_config"] + ["dtype"]


def test_a_config_may_hold_infinity_as_mamba_configs_do(world: MakeWorld) -> None:
    one = world(config=dense_config(1, time_step_limit=[0.0, float("inf")])).write()
    one.merge()
    assert '"time_step_limit": [\n    0.0,\n    Infinity\n  ]' in (one.out / "config.json").read_text()


def test_ranks_that_hold_nothing_or_only_vectors_are_ranks(world: MakeWorld) -> None:
    one = world(Topology(tp=3), dense_config(1))
    one.cuts = {
        name: [Cut(1 if len(s) == 1 else 0, (0,) * len(s), s)]
        for name, (_, s, _) in one.model.tensors.items()
    }
    report = one.write().merge()
    assert (report.check.world_size, report.adopted_shards) == (3, 2)
    assert load(one.out) == one.model.tensors


def test_sidecars_are_copied_and_nothing_of_another_checkpoint(world: MakeWorld) -> None:
    config = dense_config(
        1, auto_map={"AutoModel": "modeling_tiny.Tiny", "AutoConfig": "other/repo--far.Config"}
    )
    one = world(config=config).write()
    wanted = {
        "chat_template.jinja": "{{x}}",
        "generation_config.json": "{}",
        "preprocessor_config.json": '{"auto_map": {"AutoProcessor": "processing_tiny.P"}}',
        "processing_tiny.py": "",
        "modeling_tiny.py": "from .configuration_tiny import C\nfrom .missing import X\nimport os",
        "configuration_tiny.py": "",
        "tokenizer.model": "m",
    }
    unwanted = ["hf_quant_config.json", "consolidated.json", "evil.py", "README.md", "far.py"]
    for name in unwanted:
        (one.reference / name).write_text("no")
    (one.dump / "rank-00000" / "modeling_tiny.py").write_text("from a dump")
    for name, text in wanted.items():
        (one.reference / name).write_text(text)
    one.merge()
    ours = {"config.json", "tokenizer.json", "model.safetensors", ".shardmerge"}
    assert {path.name for path in one.out.iterdir()} == {*wanted, *ours}
    assert {name: (one.out / name).read_text() for name in wanted} == wanted


def test_dry_run_shows_the_plan_and_writes_nothing(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    report = one.merge(dry_run=True, max_shard_bytes=400)
    assert "Would publish" in report.text()
    assert "model-00002-of-" in report.text()
    assert "Bytes were NOT read" in report.text()
    assert {path.name for path in one.folder.iterdir()} == {"dump", "reference"}


def test_verify_size_reads_no_byte_and_says_so(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    spoil_a_byte(one.rank(0) / "split-00001.safetensors")
    report = one.merge(verify="size")
    assert "Bytes were NOT read" in report.text()
    assert report.check.verification == "size"


def spoil_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["split-00001.safetensors", "whole-00001.safetensors"])
def test_a_flipped_bit_publishes_nothing(world: MakeWorld, name: str) -> None:
    one = world(Topology(tp=2)).write()
    spoil_a_byte(one.rank(0) / name)
    talk = StringIO()
    with pytest.raises(CorruptFileError) as error:
        one.merge(talk=talk)
    assert error.value.path == str(one.rank(0) / name)
    assert error.value.rank == 0
    assert {path.name for path in one.folder.iterdir()} == {"dump", "reference", "out.partial"}
    assert f"Nothing was published. What was written stays in {one.out}.partial" in talk.getvalue()


def test_an_unknown_allowance_is_refused(world: MakeWorld) -> None:
    with pytest.raises(BadInputError, match="infinity"):
        world().write().merge(allow=["infinity"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_cut_over_any_ranks_merges_to_the_original(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    model = dumps.model_of(dense_config(1), seed=data.draw(st.integers(0, 99)))
    world_size = data.draw(st.integers(1, 4))
    cuts = {}
    for name, (_, shape, _) in model.tensors.items():
        edges = [sorted(data.draw(st.sets(st.integers(1, size), max_size=2))) for size in shape]
        cuts[name] = [
            Cut(data.draw(st.integers(0, world_size - 1)), *cell) for cell in dumps.grid(shape, edges)
        ]
    dumps.write_dump(
        folder / "dump", model, cuts, Topology(tp=world_size), split_files=data.draw(st.integers(1, 3))
    )
    dumps.write_reference(folder / "reference", model, weights=True)
    size = data.draw(st.sampled_from([100, 1000, 10**9]))
    out = folder / "out"
    merge(
        [folder / "dump"],
        out,
        hf_reference=folder / "reference",
        workers=1,
        max_shard_bytes=size,
        staging_bytes=150,
    )
    assert load(out) == model.tensors


def test_what_the_dump_left_out_is_told_with_its_count(world: MakeWorld) -> None:
    padding = "rows 24 to 128 of output_layer.weight: vocabulary padding"
    drops = {0: {padding: 1, "a buffer": 2}, 1: {padding: 1}}
    one = world(Topology(tp=2)).write(drops=drops.__getitem__)
    found = one.merge()
    assert found.check.drops == {padding: 2, "a buffer": 2}
    assert f"Left out by the dump: {padding} (2 times)." in found.text()
