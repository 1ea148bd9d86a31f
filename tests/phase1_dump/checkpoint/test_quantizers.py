"""Quantizers in a checkpoint that cannot be read whole: each is refused by name, and no pickle is executed."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.errors import (
    BadChunkError,
    CorruptFileError,
    ExpertSpellingError,
    MissingChunksError,
    ShardmergeError,
    UnsupportedCheckpointError,
    UnsupportedParameterError,
)
from tests.phase1_dump.checkpoint.conftest import Saved
from tests.phase1_dump.checkpoint.quantized import (
    STATES,
    Case,
    edit,
    metadata_of,
    packed,
    put,
    put_state,
    save_quantized,
    state_of,
)
from tests.phase1_dump.checkpoint.test_same_as_live import reference_of
from tests.phase1_dump.torch_dist.hostile import HOSTILE, Runs
from tests.worlds.gloo import GlooRanks
from tests.worlds.quantizing import QWEN3_MOE, QWEN3_MOE_IN_BLOCKS, compress
from tests.worlds.topology import SINGLE

SMALL = replace(QWEN3_MOE, layers=2)
QKV = "decoder.layers.1.self_attention.linear_qkv"
FC1 = "decoder.layers.0.mlp.experts.experts.3.linear_fc1"
STATE = f"{QKV}._extra_state/shard_0_1"
RANGE = f"{QKV}.weight_quantizer._amax"


@pytest.fixture(scope="session")
def saved_quantized(ranks: GlooRanks, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A checkpoint of FP8, which nobody changes."""
    folder = tmp_path_factory.mktemp("quantized")
    reference = reference_of(SMALL, folder)
    ranks.run(save_quantized, SINGLE, Case(SMALL, "FP8", SINGLE), folder)
    return Saved(folder / "iter_0000007", reference)


@pytest.fixture
def quantized(saved_quantized: Saved, tmp_path: Path) -> Saved:
    """A copy of it."""
    shutil.copytree(saved_quantized.path, tmp_path / saved_quantized.path.name)
    return Saved(tmp_path / saved_quantized.path.name, saved_quantized.reference)


def refusal(saved: Saved, out: Path, **options: Any) -> ShardmergeError:
    """What a dump raises, before it writes anything."""
    with pytest.raises(ShardmergeError) as caught:
        saved.dump(out, **options)
    assert not out.exists()
    return caught.value


def changed(saved: Saved, change: Callable[[dict[str, Any]], object], key: str = STATE) -> None:
    """Change what the quantizers of a module say."""
    state = copy.deepcopy(state_of(saved.path, key))
    change(state)
    put_state(saved.path, key, state)


def weights(state: dict[str, Any]) -> dict[str, Any]:
    """What is said of the quantizer of a weight."""
    found: dict[str, Any] = state[STATES]["weight_quantizer"]
    return found


def test_it_is_dumped_unless_it_is_spoiled(quantized: Saved, tmp_path: Path) -> None:
    put_state(quantized.path, STATE, state_of(quantized.path, STATE))
    assert quantized.dump(tmp_path / "dump").num_shares > 1


SAID: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another type": (lambda state: weights(state).update(_lookup_table=[1, 2]), "it has _lookup_table"),
    "static blocks": (
        lambda state: weights(state).update(_is_static_block_scale_quantizer=True),
        "it has _is_static_block_scale_quantizer",
    ),
    "no numbers": (lambda state: weights(state).pop("_num_bits"), "does not say its _num_bits"),
    "strange numbers": (lambda state: weights(state).update(_num_bits="four"), "does not say its _num_bits"),
    "not whether it is on": (lambda state: weights(state).pop("_disabled"), "does not say its _disabled"),
    "more than a range": (
        lambda state: weights(state)["_pytorch_state_metadata"]["buffers"].update(_pre_quant_scale={}),
        "weight_quantizer keeps more than its range",
    ),
    "no tensors": (
        lambda state: weights(state).pop("_pytorch_state_metadata"),
        "weight_quantizer keeps more than its range",
    ),
    "a quantizer of something else": (
        lambda state: state[STATES].update(softmax_quantizer=copy.deepcopy(weights(state))),
        "the range of softmax_quantizer is missing",
    ),
    "two in turn": (
        lambda state: state[STATES].update(
            {f"weight_quantizer.{n}": copy.deepcopy(weights(state)) for n in (0, 1)} | {"weight_quantizer": {}}
        ),
        "keeps more than its range",
    ),
    "compressed": (
        lambda state: state.update(modelopt_q_tensor_state={"metadata": {"shape": torch.Size([2])}}),
        "its weight is compressed: dump the model before mtq.compress",
    ),
    "no list": (lambda state: state.update({STATES: [1]}), "does not list quantizers"),
    "nothing of quantizers": (lambda state: state.pop(STATES), f"no _extra_state says what {QKV}"),
}  # fmt: skip


@pytest.mark.parametrize("what", SAID)
def test_a_state_that_is_not_a_plain_quantizer(what: str, quantized: Saved, tmp_path: Path) -> None:
    change, reason = SAID[what]
    changed(quantized, change)

    error = refusal(quantized, tmp_path / "dump")
    assert error.exit_code == 5
    assert reason in str(error)
    assert QKV in str(error)
    assert "--model-provider" in str(error)


def test_several_quantizers_of_one_weight(quantized: Saved, tmp_path: Path) -> None:
    def two(state: dict[str, Any]) -> None:
        own = state[STATES].pop("weight_quantizer")
        state[STATES] |= {f"weight_quantizer.{n}": copy.deepcopy(own) for n in (0, 1)}

    changed(quantized, two)
    assert "several quantizers of one weight follow each other" in str(refusal(quantized, tmp_path / "dump"))


def drop(saved: Saved, *keys: str) -> None:
    """Let `.metadata` not mention keys."""

    def change(metadata: Any) -> None:
        for key in keys:
            del metadata.state_dict_metadata[key]
        held = metadata.storage_data
        for index in [one for one in held if one.fqn in keys]:
            del held[index]

    edit(saved.path, change)


def test_a_range_that_is_missing(quantized: Saved, tmp_path: Path) -> None:
    drop(quantized, RANGE)
    assert "the range of weight_quantizer is missing" in str(refusal(quantized, tmp_path / "dump"))


def test_a_state_that_is_missing(quantized: Saved, tmp_path: Path) -> None:
    drop(quantized, STATE)
    assert f"no _extra_state says what {QKV}" in str(refusal(quantized, tmp_path / "dump"))


def test_a_state_and_its_ranges_that_are_missing(quantized: Saved, tmp_path: Path) -> None:
    """Nothing is left of the quantizers but those of the other layers: the weight would be written as it is."""
    drop(quantized, STATE, RANGE, RANGE.replace("weight_q", "input_q"))
    assert "its _extra_state is missing, and others of its kind have one" in str(
        refusal(quantized, tmp_path / "dump")
    )


def test_a_state_without_a_place(quantized: Saved, tmp_path: Path) -> None:
    edit(quantized.path, lambda metadata: metadata.storage_data.pop(next(
        one for one in metadata.storage_data if one.fqn == STATE)))  # fmt: skip
    assert isinstance(refusal(quantized, tmp_path / "dump"), MissingChunksError)


def test_quantizers_of_a_weight_that_is_not_there(quantized: Saved, tmp_path: Path) -> None:
    def rename(metadata: Any) -> None:
        for held in (metadata.state_dict_metadata, metadata.storage_data):
            for key in [one for one in held if QKV + "." in (one if isinstance(one, str) else one.fqn)]:
                value = held.pop(key)
                if isinstance(key, str):
                    held[key.replace(QKV, f"{QKV}_more")] = value
                else:
                    object.__setattr__(key, "fqn", key.fqn.replace(QKV, f"{QKV}_more"))
                    held[key] = value

    edit(quantized.path, rename)
    assert f"{QKV}_more" in str(refusal(quantized, tmp_path / "dump"))


def test_states_in_parts(quantized: Saved, tmp_path: Path) -> None:
    other = STATE.replace("shard_0_1", "shard_0_2")

    def rename(metadata: Any) -> None:
        metadata.state_dict_metadata[other] = metadata.state_dict_metadata.pop(STATE)
        index = next(one for one in metadata.storage_data if one.fqn == STATE)
        info = metadata.storage_data.pop(index)
        object.__setattr__(index, "fqn", other)
        metadata.storage_data[index] = info

    edit(quantized.path, rename)
    assert f"{other} is one of several" in str(refusal(quantized, tmp_path / "dump"))


def test_quantizers_that_only_states_show(quantized: Saved, tmp_path: Path) -> None:
    """Without ranges and without modelopt's folder: the weights would be written as they are."""
    shutil.rmtree(quantized.path / "modelopt_state")
    drop(quantized, *[key for key in metadata_of(quantized.path).state_dict_metadata if "_amax" in key])
    assert "is missing" in str(refusal(quantized, tmp_path / "dump"))


def test_a_flipped_byte_in_a_state_and_in_a_range(quantized: Saved, tmp_path: Path) -> None:
    for key in (STATE, RANGE):
        _, path, begin, length = quantized.place(key)
        whole = path.read_bytes()
        spoiled = bytearray(whole)
        spoiled[begin + numbers_in(whole[begin : begin + length])] ^= 1
        path.write_bytes(spoiled)
        with pytest.raises(BadChunkError, match="CRC-32") as caught:
            quantized.dump(tmp_path / f"dump-{key.rpartition('.')[2][:5]}")
        assert (caught.value.exit_code, caught.value.parameter) == (4, key)
        path.write_bytes(whole)


def numbers_in(archive: bytes) -> int:
    """Where the numbers of an archive begin: behind the header of their file, its name and its padding."""
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        at = files.getinfo("archive/data/0").header_offset
    name_bytes, extra_bytes = struct.unpack_from("<2H", archive, at + 26)
    return int(at + 30 + name_bytes + extra_bytes)


def test_a_state_that_is_cut(quantized: Saved, tmp_path: Path) -> None:
    put(quantized.path, STATE, b"PK\x03\x04")
    error = refusal(quantized, tmp_path / "dump")
    assert "cannot be read: it is shorter than an archive" in str(error)


def test_a_range_of_several_numbers(quantized: Saved, tmp_path: Path) -> None:
    norm = f"{QKV}.layer_norm_weight"

    def swap(metadata: Any) -> None:
        held = metadata.state_dict_metadata
        held[RANGE] = held[norm]
        places = {one.fqn: one for one in metadata.storage_data}
        metadata.storage_data[places[RANGE]] = metadata.storage_data[places[norm]]

    edit(quantized.path, swap)
    with pytest.raises(UnsupportedCheckpointError, match="its range has the shape"):
        quantized.dump(tmp_path / "dump")


def test_packed_experts_of_a_quantized_model(quantized: Saved, tmp_path: Path) -> None:
    with pytest.raises((ExpertSpellingError, UnsupportedParameterError, ShardmergeError), match="packed"):
        quantized.dump(tmp_path / "dump", experts="packed")


# ---- hostile pickles ----------------------------------------------------------------------------------------------

ONLY_PLAIN_REFUSES = {
    "a class of torch": pickle.dumps(torch.nn.Identity, 2),
    "a function of torch": b"\x80\x02ctorch.serialization\n_get_layout\nX\x01\x00\x00\x00a\x85R.",
    "a slice": pickle.dumps(slice(1), 2),
    "an io.BytesIO": pickle.dumps(Runs(io.BytesIO), 2),
    "a name of modelopt": b"\x80\x02cmodelopt.torch.quantization.nn\nTensorQuantizer\n)R.",
}
PERSISTENT = "a persistent id"  # which archives of torch have


def archive_of(described: bytes) -> bytes:
    """An archive as torch.save writes it, with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", described)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(16))
    return buffer.getvalue()


@pytest.mark.parametrize("inside", [False, True], ids=["the outer pickle", "the inner one"])
@pytest.mark.parametrize("what", [*HOSTILE, *ONLY_PLAIN_REFUSES])
def test_hostile_states_are_refused_and_not_executed(
    what: str, inside: bool, quantized: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    archive = archive_of((HOSTILE | ONLY_PLAIN_REFUSES)[what])
    if inside:
        buffer = io.BytesIO()
        torch.save([torch.frombuffer(bytearray(archive), dtype=torch.uint8)], buffer)
        archive = buffer.getvalue()
    put(quantized.path, STATE, archive)

    error = refusal(quantized, tmp_path / "dump")
    assert isinstance(error, (CorruptFileError, UnsupportedCheckpointError))
    assert list((tmp_path / "here").iterdir()) == []


FORGED = {
    "numbers that are not there": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
    b"ByteStorage\nX\x01\x00\x00\x001X\x03\x00\x00\x00cpuK\x10tQK\x00K\x10\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR.",
    "a storage of a strange kind": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
    b"X\x0c\x00\x00\x00storage odd X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQK\x00K\x10\x85K\x01\x85\x89NtR.",
    "a storage that is a list": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((]]K\x10tK\x00K\x10\x85K\x01\x85\x89NtR.",
    "more than there are": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
    b"ByteStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQK\x00K\x11\x85K\x01\x85\x89NtR.",
}


@pytest.mark.parametrize("what", FORGED)
def test_tensors_that_cannot_be(what: str, quantized: Saved, tmp_path: Path) -> None:
    put(quantized.path, STATE, archive_of(FORGED[what]))
    error = refusal(quantized, tmp_path / "dump")
    assert isinstance(error, (CorruptFileError, UnsupportedCheckpointError))


def test_what_is_refused_is_named(quantized: Saved, tmp_path: Path) -> None:
    put_state(quantized.path, STATE, {STATES: {"weight_quantizer": slice(1)}})
    error = refusal(quantized, tmp_path / "dump")
    assert isinstance(error, UnsupportedCheckpointError)
    assert f"{STATE} in __9_9.distcp names" in str(error)
    assert "slice" in str(error)


def test_tensors_beside_quantizers_are_inert(quantized: Saved, tmp_path: Path) -> None:
    """As Transformer Engine's own state is, which modelopt puts into the same dict."""
    changed(quantized, lambda state: state.update(extra_state=packed({"a": 1})))
    assert quantized.dump(tmp_path / "dump").num_shares > 1


# ---- formats that are not packed ----------------------------------------------------------------------------------


def shrink(chunks: list[GPTModel]) -> None:
    """Let modelopt pack every weight in place."""
    compress(chunks)


FORMATS: dict[str, tuple[Any, str, Any, str]] = {
    "INT8": (SMALL, "INT8_DEFAULT_CFG", None, "quantized as int8_sq of modelopt, which shardmerge does not write"),
    "MXFP4": (SMALL, "MXFP4_DEFAULT_CFG", None, "quantized as mxfp4 of modelopt, which shardmerge does not write"),
    "W4A8": (SMALL, "W4A8_AWQ_BETA_CFG", None, "slice, and quantizers are read from plain values"),
    "per channel": (SMALL, "FP8_PER_CHANNEL_PER_TOKEN_CFG", None, "quantized as fp8_pc_pt of modelopt"),
    "blocks": (QWEN3_MOE_IN_BLOCKS, "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", None, "ranges of blocks as if every"),
    "compressed": (SMALL, "FP8_DEFAULT_CFG", shrink, "FP8QTensor, and quantizers are read from plain values"),
}  # fmt: skip


@pytest.mark.sampled
@pytest.mark.parametrize("name", FORMATS)
def test_formats_that_are_not_packed_from_disk(name: str, ranks: GlooRanks, tmp_path: Path) -> None:
    family, preset, spoil, reason = FORMATS[name]
    reference = reference_of(family, tmp_path)
    case = Case(family, "FP8", SINGLE, spoil=spoil, preset=getattr(mtq, preset))
    ranks.run(save_quantized, SINGLE, case, tmp_path)

    error = refusal(Saved(tmp_path / "iter_0000007", reference), tmp_path / "dump")
    assert error.exit_code == 5
    assert reason in str(error)
