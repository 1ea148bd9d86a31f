"""A process that writes is lost in every way: the dump says so, leaves a record of it, and the next one is whole."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.errors import BadInputError, PinnedMemoryError, WriterDiedError
from shardmerge.common.places import MANIFEST
from shardmerge.phase1_dump import prepare
from shardmerge.phase1_dump.background import shared_memory, writer_process
from shardmerge.phase1_dump.background.messages import LENGTH, Memory
from shardmerge.phase1_dump.background.writer_process import WriterProcess
from shardmerge.phase1_dump.dump_in_background import background_of
from tests.phase1_dump.background.beside import FAILED, begin, child, patience, stopped, writer, written
from tests.phase1_dump.dumped import dumped

# stand in for the writer: real processes at the other end of the connection, which do something else
CLOSES_AND_STAYS = """import socket, time
connection = socket.socket(fileno={file})
connection.shutdown(socket.SHUT_WR)
time.sleep(600) # {parent} {path!r}"""
ANSWERS_NONSENSE = """import socket, time
connection = socket.socket(fileno={file})
connection.sendall((3).to_bytes(8, "little") + b"abc")
time.sleep(600) # {parent} {path!r}"""


class TopK(enum.IntEnum):
    """An option of a training script, which no other process can import."""

    TWO = 2


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Every test has a writer of its own."""
    background_of(os.getpid()).finish()
    yield
    background_of(os.getpid()).finish()


def send_nonsense(to: WriterProcess) -> None:
    to.channel.socket.sendall(LENGTH.pack(3) + b"abc")


def send_memory_that_cannot_be_mapped(to: WriterProcess) -> None:
    with open(os.devnull, "rb") as empty:
        to.send(Memory(), empty.fileno())


def is_memory_taken() -> bool:
    """Whether this process maps memory of dumps. Whatever knows it may be kept, as the error of a dump is."""
    return "memfd:shardmerge" in Path("/proc/self/maps").read_text()


def record(out: Path) -> dict[str, object]:
    failure = json.loads((out / FAILED).read_text())["failure"]
    assert isinstance(failure, dict)
    return failure


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(send_nonsense, "UnpicklingError"), (send_memory_that_cannot_be_mapped, "in received")],
    ids=["nonsense", "memory that cannot be mapped"],
)
def test_a_writer_that_cannot_take_a_message_ends_and_says_why(
    spoil: Callable[[WriterProcess], None],
    said: str,
    model: GPTModel,
    reference: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It is its listening thread that fails, which alone knows what the parent says and whether it runs."""
    prepare(1 << 20)
    with patience():
        with stopped():
            spoil(writer())
            dumping = begin(model, tmp_path, reference)
        with pytest.raises(WriterDiedError, match="ended with exit code 1, and said why on stderr"):
            dumping.wait()
    assert said in capfd.readouterr().err
    assert os.listdir(tmp_path) == [FAILED]
    assert (record(tmp_path)["error"], record(tmp_path)["status"]) == ("WriterDiedError", 1)
    assert written(begin(model, tmp_path, reference)).rank == 0


def test_a_setting_of_a_class_of_the_training_script_is_dumped_as_a_number(
    model: GPTModel, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = sys.modules["__main__"]
    monkeypatch.setattr(TopK, "__module__", "__main__")
    monkeypatch.setattr(script, "TopK", TopK, raising=False)
    model.config.moe_router_topk = TopK(model.config.moe_router_topk)
    expected = dumped(model, tmp_path / "there", reference)
    prepare(1 << 20)
    with patience():
        found = written(begin(model, tmp_path / "here", reference))
    assert found == expected
    assert type((found.facts.settings or {})["experts_per_token"]) is int


def test_a_setting_that_is_no_json_is_named_before_anything_is_written(
    model: GPTModel, reference: Path, tmp_path: Path
) -> None:
    model.config.softmax_type = enum.Enum("Softmax", "VANILLA").VANILLA  # type: ignore[attr-defined]
    with pytest.raises(BadInputError, match="for the setting attention_sink, which JSON does not hold"):
        begin(model, tmp_path, reference)
    assert os.listdir(tmp_path) == [FAILED]


@pytest.mark.parametrize("on_error", ["raise", "record"])
def test_a_writer_that_is_killed_before_it_made_the_folder(
    on_error: str, model: GPTModel, reference: Path, tmp_path: Path
) -> None:
    prepare(1 << 20)
    with stopped():
        dumping = begin(model, tmp_path / "out", reference, on_error=on_error)
        assert not (tmp_path / "out").exists()
        writer().process.kill()
        for _ in range(2):
            if on_error == "record":
                assert dumping.wait() is None
            else:
                with pytest.raises(WriterDiedError, match="was killed by signal 9"):
                    dumping.wait()
    assert os.listdir(tmp_path / "out") == [FAILED]
    assert record(tmp_path / "out")["error"] == "WriterDiedError"
    assert written(begin(model, tmp_path / "out", reference)).rank == 0


def test_what_a_killed_writer_left_that_cannot_be_looked_at_is_a_note_of_the_error(
    model: GPTModel, reference: Path, tmp_path: Path
) -> None:
    prepare(1 << 20)
    with stopped():
        dumping = begin(model, tmp_path / "out", reference)
        (tmp_path / "out").touch()
        writer().process.kill()
        with pytest.raises(WriterDiedError) as caught:
            dumping.wait()
    looked_at, recorded = caught.value.__notes__
    assert looked_at.startswith("What it left could not be looked at: [Errno 20] Not a directory")
    assert f"{FAILED} could not be written" in recorded
    assert written(begin(model, tmp_path / "next", reference)).rank == 0


def test_a_folder_whose_name_no_record_can_hold(model: GPTModel, reference: Path, tmp_path: Path) -> None:
    prepare(1 << 20)
    with stopped():
        dumping = begin(model, tmp_path / os.fsdecode(b"\xff"), reference)
        writer().process.kill()
        with pytest.raises(WriterDiedError) as caught:
            dumping.wait()
    assert f"{FAILED} could not be written: 'utf-8' codec" in caught.value.__notes__[0]
    assert written(begin(model, tmp_path / "next", reference)).rank == 0


def test_a_rank_that_is_damaged_when_its_writer_is_killed(
    model: GPTModel, reference: Path, tmp_path: Path
) -> None:
    prepare(1 << 20)
    with stopped():
        dumping = begin(model, tmp_path, reference)
        (tmp_path / "rank-00000").mkdir()
        (tmp_path / "rank-00000" / MANIFEST).touch()
        writer().process.kill()
        with pytest.raises(WriterDiedError) as caught:
            dumping.wait()
    assert MANIFEST in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("program", "note"),
    [(CLOSES_AND_STAYS, None), (ANSWERS_NONSENSE, "Its answer could not be read: UnpicklingError")],
    ids=["closes its connection", "answers nonsense"],
)
def test_a_writer_that_is_lost_but_runs_is_ended_and_not_kept(
    program: str,
    note: str | None,
    model: GPTModel,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that was killed does for a moment: its connection is closed, and it has not ended."""
    monkeypatch.setattr(writer_process, "PROGRAM", program)
    monkeypatch.setattr(writer_process, "ENDS_WITHIN_SECONDS", 0.1)
    prepare(1 << 20)
    monkeypatch.undo()
    lost = writer()
    monkeypatch.setattr(writer_process, "ENDS_WITHIN_SECONDS", 0.1)
    dumping = begin(model, tmp_path, reference)
    try:
        with pytest.raises(WriterDiedError) as caught:
            dumping.wait()
        assert not lost.runs()
    finally:
        lost.process.kill()
    assert [one.partition("(")[0] for one in getattr(caught.value, "__notes__", [])] == (
        [note] if note else []
    )
    prepare(1 << 20)
    assert child() != lost.process.pid
    assert written(begin(model, tmp_path, reference)).rank == 0


def test_a_job_that_cannot_be_sent_is_raised_and_the_next_dump_is_whole(
    model: GPTModel, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child knows of no job then, and would never answer that it has given up."""
    from shardmerge.phase1_dump.sources import live_model

    monkeypatch.setattr(live_model, "unknown_fields", lambda _: (lambda: None,))
    prepare(1 << 20)
    with patience(), pytest.raises(Exception, match=r"[Pp]ickle"):
        begin(model, tmp_path, reference)
    monkeypatch.undo()
    assert written(begin(model, tmp_path, reference)).rank == 0


def test_memory_that_cannot_be_pinned_is_given_back(
    model: GPTModel, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every time, and also while somebody keeps the error."""

    def refuse() -> None:
        raise RuntimeError("CUDA error: out of memory")

    background = background_of(os.getpid())
    background.release()
    monkeypatch.setattr(torch.cuda, "cudart", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kept = []
    for _ in range(2):
        with pytest.raises(
            PinnedMemoryError, match=r"0\.00 GB .* pin them: CUDA error: out of memory\."
        ) as caught:
            prepare(1 << 20)
        kept.append(caught.value)
        assert (background.shared, background.pinned) == (None, None)
        assert not is_memory_taken()
    assert kept[0].wanted == 2 << 20
    monkeypatch.undo()
    assert written(begin(model, tmp_path, reference)).rank == 0


def test_memory_that_is_too_little_half_way_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    background = background_of(os.getpid())
    background.release()
    monkeypatch.setattr(shared_memory, "STEP_BYTES", 1 << 20)
    left = iter([1 << 40, 1 << 40, 0])
    monkeypatch.setattr(shared_memory, "available_bytes", lambda: next(left, 0))
    with pytest.raises(Exception, match="of host memory are wanted") as caught:
        prepare(4 << 20)
    assert not is_memory_taken(), caught.value
