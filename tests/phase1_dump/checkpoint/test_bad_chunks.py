"""One fault a test in the chunks of a checkpoint: it is named with its file and tensor, and no share holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from shardmerge.common.errors import (
    BadChunkError,
    ChangedCheckpointError,
    CorruptFileError,
    MismatchError,
    MissingChunksError,
    ShardmergeError,
    UnclaimedParameterError,
    UnfinishedCheckpointError,
)
from shardmerge.phase1_dump.checkpoint.plan import Options, plan_of
from shardmerge.phase1_dump.shares.take import take
from tests.phase1_dump.checkpoint.conftest import SHARE_BYTES, Saved

QKV = "decoder.layers.1.self_attention.linear_qkv.weight"
FC1 = "decoder.layers.2.mlp.experts.experts.linear_fc1.weight"
EMBEDDING = "embedding.word_embeddings.weight"


def spoil(path: Path, at: int, bits: int = 1) -> None:
    """Flip bits of one byte."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bits]))


@pytest.mark.parametrize("key", [QKV, FC1, EMBEDDING])
def test_a_flipped_byte_names_the_tensor_and_the_file(saved: Saved, tmp_path: Path, key: str) -> None:
    _, path, begin, length = saved.place(key)
    spoil(path, begin + length // 2)

    with pytest.raises(BadChunkError) as caught:
        saved.dump(tmp_path / "dump")
    assert (caught.value.exit_code, caught.value.parameter, caught.value.path) == (4, key, path.name)
    complete = list((tmp_path / "dump").glob("rank-*/manifest.json"))
    failed = list((tmp_path / "dump").glob("rank-*.failed.json"))
    assert len(failed) == 1
    assert len(complete) == saved.dump(tmp_path / "other", dry_run=True).num_shares - 1


def test_a_flipped_byte_in_padding_that_is_left_out_is_found_too(saved: Saved, tmp_path: Path) -> None:
    _, path, begin, length = saved.place(EMBEDDING, 1)
    spoil(path, begin + length - 2000)  # of the last rows, which no word has

    with pytest.raises(BadChunkError, match=r"embedding\.word_embeddings\.weight in __.*CRC-32"):
        saved.dump(tmp_path / "dump")


def test_a_file_that_is_cut(saved: Saved, tmp_path: Path) -> None:
    _, path, begin, length = saved.place(QKV)
    os.truncate(path, begin + length - 1)

    with pytest.raises(BadChunkError, match="the file ends before it does"):
        saved.dump(tmp_path / "dump", max_share_bytes=10**9)


def test_a_file_that_is_missing(saved: Saved, tmp_path: Path) -> None:
    _, path, _, _ = saved.place(QKV)
    path.unlink()

    said = f"1 file that .metadata names cannot be found: {path.name}"
    with pytest.raises(UnfinishedCheckpointError, match=said) as caught:
        saved.dump(tmp_path / "dump")
    assert caught.value.exit_code == 3


def test_a_chunk_without_a_place_in_a_file(saved: Saved, tmp_path: Path) -> None:
    index, *_ = saved.place(QKV)
    saved.edit(lambda metadata: metadata.storage_data.pop(index))

    with pytest.raises(MissingChunksError, match=r"linear_qkv\.weight .*no place in a file"):
        saved.dump(tmp_path / "dump")


def test_a_chunk_that_is_missing(saved: Saved, tmp_path: Path) -> None:
    saved.edit(lambda metadata: metadata.state_dict_metadata[FC1].chunks.pop(5))

    with pytest.raises(MissingChunksError, match=r"linear_fc1\.weight.*none holds its element \[2, 40, 0\]"):
        saved.dump(tmp_path / "dump")


def test_a_chunk_that_stands_twice(saved: Saved, tmp_path: Path) -> None:
    def double(metadata: Any) -> None:
        chunks = metadata.state_dict_metadata[QKV].chunks
        chunks.append(chunks[0])

    saved.edit(double)
    with pytest.raises(BadChunkError, match=r"2 chunks hold its element \[0, 0\]"):
        saved.dump(tmp_path / "dump")


def test_an_entry_that_stands_twice(saved: Saved, tmp_path: Path) -> None:
    index, *_ = saved.place(QKV)

    def double(metadata: Any) -> None:
        twin = MetadataIndex(QKV, torch.Size([1, 1]))
        metadata.storage_data[twin] = metadata.storage_data[index]
        object.__setattr__(twin, "offset", index.offset)

    saved.edit(double)
    with pytest.raises(BadChunkError, match="it stands there twice"):
        saved.dump(tmp_path / "dump")


def test_chunks_that_overlap_and_leave_a_gap(saved: Saved, tmp_path: Path) -> None:
    def shift(metadata: Any) -> None:
        chunk = metadata.state_dict_metadata[QKV].chunks[1]
        chunk.offsets = torch.Size([71, 0])

    saved.edit(shift)
    with pytest.raises(ShardmergeError, match=r"2 chunks hold its element \[71, 0\]") as caught:
        saved.dump(tmp_path / "dump")
    assert caught.value.exit_code == 4


def test_a_chunk_beyond_its_tensor(saved: Saved, tmp_path: Path) -> None:
    def enlarge(metadata: Any) -> None:
        metadata.state_dict_metadata[QKV].chunks[1].sizes = torch.Size([73, 72])

    saved.edit(enlarge)
    with pytest.raises(BadChunkError, match="leaves its shape"):
        saved.dump(tmp_path / "dump")


def test_two_chunks_that_changed_places(saved: Saved, tmp_path: Path) -> None:
    """Their archives are sound, but hold another shape."""
    one, other = saved.place(QKV)[0], saved.place(FC1)[0]

    def swap(metadata: Any) -> None:
        held = metadata.storage_data
        held[one], held[other] = held[other], held[one]

    saved.edit(swap)
    with pytest.raises(ShardmergeError, match="it holds BF16") as caught:
        saved.dump(tmp_path / "dump")
    assert caught.value.exit_code == 4


def test_a_name_that_leaves_the_folder(saved: Saved, tmp_path: Path) -> None:
    index, path, *_ = saved.place(QKV)

    def elsewhere(metadata: Any) -> None:
        metadata.storage_data[index].relative_path = f"../{path.parent.name}/{path.name}"

    saved.edit(elsewhere)
    with pytest.raises(CorruptFileError, match="is not the name of a file"):
        saved.dump(tmp_path / "dump")


def test_chunks_without_a_checksum_are_told(saved: Saved, tmp_path: Path) -> None:
    index, path, begin, length = saved.place(QKV)
    data = bytearray(path.read_bytes())
    archive = data[begin : begin + length]
    at = archive.rindex(b"PK\x01\x02", 0, archive.rindex(b"data/0"))
    data[begin + at + 16 : begin + at + 20] = bytes(4)
    path.write_bytes(data)

    dumped = saved.dump(tmp_path / "dump")
    assert dumped.unchecked == (QKV,)
    assert "not checked: 1 tensor with chunks without CRC-32" in dumped.text()
    assert index.fqn == QKV


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_file_that_is_written_to_meanwhile(saved: Saved, tmp_path: Path, name: str) -> None:
    plan = plan_of(saved.path, saved.reference, Options(max_share_bytes=SHARE_BYTES))

    def touch(_num_bytes: int) -> None:
        os.utime(saved.path / name)

    taken = take(plan, tmp_path / "dump", "run", advance=touch)
    assert taken.problems
    assert {type(problem) for problem in taken.problems.values()} == {ChangedCheckpointError}
    with pytest.raises(ChangedCheckpointError, match=f"{name} was written to, or replaced"):
        plan.folder.require_unchanged(plan.states)


def test_a_parameter_that_no_row_claims(saved: Saved, tmp_path: Path) -> None:
    def rename(metadata: Any) -> None:
        held = metadata.state_dict_metadata
        held["decoder.layers.1.self_attention.strange"] = held.pop(QKV)

    saved.edit(rename)
    with pytest.raises((UnclaimedParameterError, MissingChunksError), match="strange"):
        saved.dump(tmp_path / "dump")


def test_another_reference_is_refused_before_anything_is_written(saved: Saved, tmp_path: Path) -> None:
    text = (saved.reference / "config.json").read_text().replace('"hidden_size": 72', '"hidden_size": 80')
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(text)

    with pytest.raises(MismatchError):
        saved.dump(tmp_path / "dump", hf_reference=tmp_path / "hf")
    assert not (tmp_path / "dump").exists()


def test_a_tensor_of_more_experts_than_the_model_has(saved: Saved, tmp_path: Path) -> None:
    """However many it claims: they are not counted one by one."""

    def enlarge(metadata: Any) -> None:
        tensor = metadata.state_dict_metadata[FC1]
        tensor.size = torch.Size([1 << 40, 80, 72])
        tensor.chunks[:] = tensor.chunks[:1]
        tensor.chunks[0].sizes = tensor.size

    saved.edit(enlarge)
    with pytest.raises(MismatchError, match=r"\[1099511627776\]"):
        saved.dump(tmp_path / "dump")
