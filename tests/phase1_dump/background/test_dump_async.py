"""A dump beside training is the dump that `dump` makes, of the values at the call, or it says why there is none."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.errors import (
    BadInputError,
    HostMemoryError,
    OutputExistsError,
    StillDumpingError,
    WriterDiedError,
)
from shardmerge.phase1_dump import prepare
from shardmerge.phase1_dump.background import shared_memory
from shardmerge.phase1_dump.background.writer_process import WriterProcess
from shardmerge.phase1_dump.dump_in_background import background_of
from tests.phase1_dump.background.beside import FAILED, begin, child, patience, written
from tests.phase1_dump.dumped import dumped
from tests.phase1_dump.fragments.test_writer import largest_file
from tests.phase1_dump.silence import silence
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.quantizing import QWEN3_MOE, quantize, recipe
from tests.worlds.topology import SINGLE, Topology


def spoil(model: GPTModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)


@pytest.mark.parametrize("host_bytes", [None, 100_000, 5_001, 1])
def test_it_is_the_dump_of_the_values_at_the_call(
    host_bytes: int | None, model: GPTModel, reference: Path, tmp_path: Path
) -> None:
    """Also where the memory holds a fraction of the rank, and no block ends where it does.

    A byte alone could never be freed: a page is taken then.
    """
    expected = dumped(model, tmp_path / "there", reference, max_fragment_bytes=200_000)
    prepare(1)
    with patience():
        dumping = begin(
            model, tmp_path / "here", reference, max_fragment_bytes=200_000, host_bytes=host_bytes
        )
        spoil(model)
        assert written(dumping) == expected
    assert dumping.done()
    files = sorted(path.name for path in (tmp_path / "there" / "rank-00000").iterdir())
    assert len(files) > 4
    for name in files:
        if name != "manifest.json":
            there, here = (tmp_path / folder / "rank-00000" / name for folder in ("there", "here"))
            assert there.read_bytes() == here.read_bytes()


@pytest.mark.parametrize("rank", [0, 3])
def test_what_other_ranks_write_is_hashed_too(rank: int, reference: Path, tmp_path: Path) -> None:
    topology = Topology(tp=2, pp=2, dp=2, ep=2)
    with fake_world(topology, rank):
        chunks = build_model(by_name("qwen3_moe"), topology)
        expected = dumped(chunks, tmp_path / "there", reference, check_replicas=True)
        with silence():
            dumping = begin(chunks, tmp_path / "here", reference, check_replicas=True)
        assert written(dumping) == expected


@pytest.mark.parametrize("name", ["FP8", "NVFP4"])
def test_a_quantized_model_is_packed_at_the_call(name: str, tmp_path: Path) -> None:
    from tests.worlds.checkpoints import write_hf_checkpoint

    reference = write_hf_checkpoint(QWEN3_MOE, tmp_path / "hf")
    with fake_world(SINGLE, 0):
        chunks = quantize(build_model(QWEN3_MOE, SINGLE), QWEN3_MOE, SINGLE, 0, recipe(name))
        expected = dumped(chunks, tmp_path / "there", reference)
        dumping = begin(chunks, tmp_path / "here", reference)
        spoil(chunks[0])
        assert written(dumping) == expected


def test_numbers_that_are_not_finite_are_counted_at_the_call(
    model: GPTModel, reference: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.decoder.layers[0].self_attention.linear_proj.weight[0, :3] = torch.nan
        model.decoder.final_layernorm.weight.zero_()
    expected = dumped(model, tmp_path / "there", reference)
    dumping = begin(model, tmp_path / "here", reference)
    spoil(model)
    found = written(dumping)
    assert found.health == expected.health
    assert [row[1:] for row in found.health.nonfinite or ()] == [[3, 0]]
    assert len(found.health.all_zero or ()) == 1


def test_the_memory_and_the_process_are_those_of_the_dump_before(
    model: GPTModel, reference: Path, tmp_path: Path
) -> None:
    prepare(1 << 20)
    before, shared = child(), background_of(os.getpid()).shared
    for number in range(2):
        dumping = begin(model, tmp_path / str(number), reference)
        assert dumping.seconds_preparing < 0.05 < 0.05 + dumping.seconds_stalled
        dumping.wait()
    assert (child(), background_of(os.getpid()).shared) == (before, shared)
    prepare(3 << 20)
    assert child() != before  # it would hold the smaller memory
    assert written(begin(model, tmp_path / "larger", reference)) == dumped(model, tmp_path / "all", reference)


def test_the_process_that_writes_has_no_torch(model: GPTModel, reference: Path, tmp_path: Path) -> None:
    begin(model, tmp_path, reference).wait()
    maps = Path(f"/proc/{child()}/maps").read_text()
    assert "shardmerge" in maps  # the shared memory
    assert "torch" not in maps
    assert "numpy" not in maps


def test_a_second_dump_waits_for_the_first_or_is_refused(
    model: GPTModel, reference: Path, tmp_path: Path
) -> None:
    prepare(1 << 20)
    os.kill(child(), signal.SIGSTOP)
    try:
        first = begin(model, tmp_path / "first", reference)
        assert not first.done()
        with pytest.raises(StillDumpingError, match=r"Rank 0 is still being written to .*first"):
            begin(model, tmp_path / "second", reference, if_busy="raise")
        assert not (tmp_path / "second").exists()
    finally:
        os.kill(child(), signal.SIGCONT)
    second = begin(model, tmp_path / "second", reference)
    assert first.done()
    assert written(first) == written(second)
    assert first.done()


def test_too_little_memory_is_said_before_anything_is_copied(
    model: GPTModel, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HostMemoryError, match=r"1125899\.91 GB of host memory are wanted"):
        prepare(1 << 50)
    held = background_of(os.getpid()).shared
    monkeypatch.setattr(shared_memory, "available_bytes", lambda: 600 << 20)
    background_of(os.getpid()).release()
    monkeypatch.setattr(shared_memory, "RESERVE_BYTES", 600 << 20)
    with pytest.raises(HostMemoryError, match=r"only 0\.63 GB can be had"):
        begin(model, tmp_path / "out", reference)
    record = json.loads((tmp_path / "out" / FAILED).read_text())
    assert record["failure"]["error"] == "HostMemoryError"
    assert os.listdir(tmp_path / "out") == [FAILED]
    monkeypatch.undo()
    assert written(begin(model, tmp_path / "out", reference)).rank == 0
    assert background_of(os.getpid()).shared is not held


def test_a_limit_of_memory_that_is_no_number_of_bytes_is_refused(
    model: GPTModel, reference: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match="host_bytes is 0"):
        begin(model, tmp_path, reference, host_bytes=0)


def test_a_rank_that_is_there_is_refused_at_once(model: GPTModel, reference: Path, tmp_path: Path) -> None:
    begin(model, tmp_path, reference).wait()
    with pytest.raises(OutputExistsError):
        begin(model, tmp_path, reference)
    assert begin(model, tmp_path, reference, on_error="record").wait() is None
    assert begin(model, tmp_path, reference, on_error="record").done()


@pytest.mark.parametrize("host_bytes", [None, 4_000])
def test_a_write_that_the_kernel_refuses_is_raised_at_wait(
    host_bytes: int | None, model: GPTModel, reference: Path, tmp_path: Path
) -> None:
    background = background_of(os.getpid())
    prepare(1 << 20)
    background.finish()
    with largest_file(60_000):
        background.prepare(1)  # a new process, which inherits the limit
    dumping = begin(model, tmp_path, reference, host_bytes=host_bytes)
    with pytest.raises(OSError, match="too large") as caught:
        dumping.wait()
    assert "whole-00001" in caught.value.filename
    assert dumping.done()
    assert os.listdir(tmp_path) == [FAILED]
    assert json.loads((tmp_path / FAILED).read_text())["failure"]["error"] == "OSError"
    assert begin(model, tmp_path, reference, host_bytes=host_bytes, on_error="record").wait() is None
    background.finish()


@pytest.mark.parametrize("host_bytes", [None, 4_000])
def test_a_writer_that_is_killed_is_told_and_the_next_dump_has_another(
    host_bytes: int | None,
    model: GPTModel,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(1 << 20)
    os.kill(child(), signal.SIGSTOP)
    killed = child()
    if host_bytes is None:
        dumping = begin(model, tmp_path, reference)
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(WriterDiedError, match=r"rank 0 to .* was killed"):
            dumping.wait()
    else:
        os.kill(killed, signal.SIGKILL)
        time.sleep(0.1)
        monkeypatch.setattr(WriterProcess, "runs", lambda _: True)  # it dies after this was asked
        with pytest.raises(WriterDiedError):
            begin(model, tmp_path, reference, host_bytes=host_bytes)
    assert os.listdir(tmp_path) == [FAILED]
    monkeypatch.undo()
    assert written(begin(model, tmp_path, reference)).rank == 0
    assert os.listdir(tmp_path) == ["rank-00000"]
    assert child() != killed


def test_a_copy_that_fails_leaves_nothing_and_the_next_dump_is_whole(
    model: GPTModel, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shardmerge.phase1_dump.sources.host_memory import copying_out

    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(copying_out, "bring_to_host", refuse)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        begin(model, tmp_path, reference)
    assert os.listdir(tmp_path) == [FAILED]
    monkeypatch.undo()
    assert written(begin(model, tmp_path, reference)).rank == 0
