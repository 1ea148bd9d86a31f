"""Shares are taken by any number of processes, once each; a process that is killed costs the share it was writing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardmerge.common import durable
from shardmerge.common.command.group import main
from shardmerge.common.errors import MissingSharesError, NoRoomError, OutputExistsError
from shardmerge.common.processes import memory
from shardmerge.phase1_dump.checkpoint.plan import Options, plan_of
from shardmerge.phase1_dump.shares.take import CACHED, take
from shardmerge.phase2_merge import check
from tests.phase1_dump.checkpoint.conftest import SHARE_BYTES, Saved

ROOT = Path(__file__).parents[3]
KILLED = """
import os, signal, sys
from pathlib import Path
from shardmerge.phase1_dump.checkpoint.plan import Options, plan_of
from shardmerge.phase1_dump.shares.take import take
checkpoint, reference, out = map(Path, sys.argv[1:4])
calls = []
def advance(num_bytes):
    calls.append(num_bytes)
    if len(list(out.glob("rank-*"))) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
take(plan_of(checkpoint, reference, Options(max_share_bytes=int(sys.argv[4]))), out, "run", advance=advance)
"""
WITHOUT = """
import sys
from pathlib import Path
for name in ("torch", "megatron", "transformer_engine", "modelopt", "pyarrow"):
    sys.modules[name] = None
from shardmerge.common.command.group import main
main(sys.argv[1:])
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip


def whole(dump: Path, saved: Saved) -> None:
    """Prove that the dump is whole; every byte has its checksum."""
    check([dump], hf_reference=saved.reference)


def test_several_processes_write_each_share_once(saved: Saved, tmp_path: Path) -> None:
    dumped = saved.dump(tmp_path / "dump", workers=3)

    assert dumped.written == tuple(range(dumped.num_shares))
    assert dumped.num_shares > 5
    whole(tmp_path / "dump", saved)
    assert {path.name for path in (tmp_path / "dump").iterdir()} == {
        f"rank-{share:05d}" for share in range(dumped.num_shares)
    }


def test_the_bytes_are_the_same_whoever_writes(saved: Saved, tmp_path: Path) -> None:
    saved.dump(tmp_path / "a", workers=2)
    saved.dump(tmp_path / "b", process=3, processes=4)

    def held(dump: Path) -> dict[str, bytes]:
        files = (path for path in dump.rglob("*") if path.is_file())
        return {str(path.relative_to(dump)): path.read_bytes() for path in files}

    assert held(tmp_path / "a") == held(tmp_path / "b")


def test_a_killed_process_costs_one_share(saved: Saved, tmp_path: Path) -> None:
    killed = python(KILLED, saved.path, saved.reference, tmp_path / "dump", SHARE_BYTES)
    assert killed.returncode == -9, killed.stderr
    assert len(list((tmp_path / "dump").glob("rank-*/manifest.json"))) == 2
    assert len(list((tmp_path / "dump").glob(".rank-*.partial"))) == 1

    dumped = saved.dump(tmp_path / "dump")
    assert len(dumped.written) == dumped.num_shares - 2
    whole(tmp_path / "dump", saved)


def test_shares_that_somebody_else_keeps_are_named_with_their_files(saved: Saved, tmp_path: Path) -> None:
    """Somebody on another host began one and nobody knows whether it runs."""
    out = tmp_path / "dump"
    attempt = out / ".rank-00002.0123456789abcdef.partial"
    (attempt / "rank-00002").mkdir(parents=True)
    owner = {
        "token": "0123456789abcdef", "host": "elsewhere", "machine": "m", "boot": "b", "namespace": "n",
        "process": 1, "started": 1, "since": "now", "task": "the dump of rank 2", "subject": "",
    }  # fmt: skip
    (attempt / "owner.json").write_text(json.dumps(owner))

    with pytest.raises(MissingSharesError, match=r"need the files __\d_\d\.distcp") as caught:
        saved.dump(out, patience=0.0)
    assert (caught.value.shares, caught.value.exit_code) == ((2,), 3)


def test_another_dump_is_not_mixed_with_this_one(saved: Saved, tmp_path: Path) -> None:
    saved.dump(tmp_path / "dump")

    with pytest.raises(OutputExistsError, match="of another reference or other options"):
        saved.dump(tmp_path / "dump", max_share_bytes=2 * SHARE_BYTES)
    with pytest.raises(OutputExistsError, match="of run run"):
        saved.dump(tmp_path / "dump", run_id="another")


def test_the_command_needs_no_torch(saved: Saved, tmp_path: Path) -> None:
    options = ("--checkpoint", saved.path, "--hf-reference", saved.reference, "--run-id", "run", "--json")
    done = python(WITHOUT, "dump", *options, "--out", tmp_path / "dump")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written_shares"] == [0]
    whole(tmp_path / "dump", saved)


@pytest.mark.parametrize("command", ["dump", "dry run", "export"])
def test_a_place_that_takes_no_files_is_refused_at_once(saved: Saved, tmp_path: Path, command: str) -> None:
    """Nobody is waited for: a file where the dump should be was taken for another process that is faster."""
    given = ["--checkpoint", saved.path, "--hf-reference", saved.reference]
    dump = ["dump", *given, "--run-id", "run", *(["--dry-run"] if command == "dry run" else [])]
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below"):
        words = ["export", place / "out", *given] if command == "export" else [*dump, "--out", place]
        found = CliRunner().invoke(main, [str(word) for word in words])
        assert found.exit_code == 2
        assert f"cannot be written: {tmp_path / 'file'} is not a directory" in found.stderr


def test_a_share_that_others_always_have_is_waited_for_and_no_longer(saved: Saved, tmp_path: Path) -> None:
    plan = plan_of(saved.path, saved.reference, Options(max_share_bytes=SHARE_BYTES))
    (tmp_path / "file").write_text("")  # it appeared after the place was looked at
    taken = take(plan, tmp_path / "file", "run", advance=lambda _: None, patience=0.2)
    assert (taken.shares, taken.problems) == ([], {})


def test_a_dump_larger_than_memory_passes_the_page_cache_and_has_the_same_bytes(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(saved.path, saved.reference, Options(max_share_bytes=SHARE_BYTES))
    total, asked, real = sum(share.num_bytes for share in plan.shares), list[bool](), durable.Uncached.write

    def write(end: durable.Uncached, data: memoryview) -> None:
        asked.append(True)
        real(end, data)

    monkeypatch.setattr(durable.Uncached, "write", write)
    found = []
    for available in (CACHED * total, CACHED * total - 1):
        monkeypatch.setattr(memory, "available_bytes", lambda available=available: available)
        out = tmp_path / str(available)
        take(plan, out, "run", advance=lambda _: None)
        found.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.safetensors")})
        assert bool(asked) == (available < CACHED * total)
    assert found[0] == found[1]


def test_room_is_looked_for_before_anything_is_written(saved: Saved, tmp_path: Path) -> None:
    """With the exit code of a merge that has none."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(NoRoomError, match="nothing was written") as refused:
            saved.dump(small / "new" / "dump")
        assert (refused.value.exit_code, refused.value.path) == (6, str(small))
        assert refused.value.free_bytes <= 256 << 10 < 758_000 < refused.value.needed_bytes
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_dry_run_names_files_and_writes_nothing(saved: Saved, tmp_path: Path) -> None:
    options = ["--checkpoint", str(saved.path), "--hf-reference", str(saved.reference), "--run-id", "run"]
    shown = CliRunner().invoke(main, ["dump", *options, "--out", str(tmp_path / "dump"), "--dry-run"])

    assert shown.exit_code == 0
    assert "39 tensors become 758.1 KB in 1 share\n" in shown.output
    assert "from __0_0.distcp, " in shown.output
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize(
    "strange", ["--step=3", "--dequantize", "--check-replicas", "--max-fragment-size=1GB"]
)
def test_options_of_a_model_are_refused(saved: Saved, tmp_path: Path, strange: str) -> None:
    options = ["--checkpoint", str(saved.path), "--hf-reference", str(saved.reference), "--run-id", "run"]
    shown = CliRunner().invoke(main, ["dump", *options, "--out", str(tmp_path / "dump"), strange])

    assert shown.exit_code == 2
    assert f"{strange.partition('=')[0]} is for --model-provider alone" in shown.output


def test_options_of_a_checkpoint_are_refused_by_their_names(saved: Saved, tmp_path: Path) -> None:
    options = [
        "--model-provider",
        "a:b",
        "--hf-reference",
        str(saved.reference),
        "--run-id",
        "run",
        "--step",
        "3",
    ]
    strange = ["--max-share-size", "1GB", "--workers", "2"]
    shown = CliRunner().invoke(main, ["dump", *options, "--out", str(tmp_path / "dump"), *strange])

    assert shown.exit_code == 2
    assert "--max-share-size, --workers is for --checkpoint alone" in shown.output
