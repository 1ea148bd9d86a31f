"""What a command says when what is around it is not as it should be: paths, sizes, room, streams that take nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shardmerge.common.command.group import main
from shardmerge.common.errors import NoRoomError, OutputExistsError
from shardmerge.phase2_merge import merge
from tests.dumps import dumps
from tests.dumps.dumps import Topology
from tests.dumps.worlds import MakeWorld, World

PROGRAM = [sys.executable, "-m", "shardmerge"]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def shell(command: str, one: World, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line in a shell, in the folder of a world; `shardmerge` is the program."""
    program = " ".join(PROGRAM)
    return subprocess.run(
        ["bash", "-c", command.replace("shardmerge", program)],
        cwd=one.folder, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


# ---- what was given ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "", "--hf-reference", "reference"], "the path is empty, perhaps because a variable is not set"),
        (["merge", "", "out", "--hf-reference", "reference"], "the path is empty"),
        (["merge", "dump", "", "--hf-reference", "reference"], "the path is empty"),
        (["check", "dump", "--hf-reference", ""], "the path is empty"),
        (["check", "dump", "--hf-reference", "reference", "--report", ""], "'--report': the path is empty, perhaps"),
        (["inspect", "dump", "--html", ""], "'--html': the path is empty, perhaps"),
        (["merge", "dump", "out", "--hf-reference", "reference", "--scheduler", ""], "--scheduler is empty, perhaps"),
        (["check", "nothing", "--hf-reference", "reference"], "nothing does not exist"),
        (["check", "dump", "--hf-reference", "nothing"], "nothing does not exist"),
        (["verify", "nothing"], "nothing does not exist"),
        (["inspect", "nothing"], "nothing does not exist"),
        (["metadata", "nothing"], "nothing does not exist"),
        (["diff", "dump", "nothing"], "nothing does not exist"),
        (["check", "dump", "empty", "--hf-reference", "reference"], "empty holds no rank of a dump"),
        (["merge", "dump", "out", "--hf-reference", "reference", "--max-shard-size", "5"], "'5' has no unit"),
        (["merge", "dump", "out", "--hf-reference", "reference", "--min-shard-size", "5"], "'5' has no unit"),
        (["merge", "dump", "dump/out", "--hf-reference", "reference"], "dump/out lies inside the DUMP dump"),
        (["merge", "dump", "dump", "--hf-reference", "reference"], "dump is the DUMP"),
        (["merge", "dump", ".", "--hf-reference", "reference"], "the DUMP dump lies inside OUT"),
        (["merge", "dump", "dump/out", "--hf-reference", "reference", "--part", "1/2"], "lies inside the DUMP dump"),
        (["merge", "dump", "afile/out", "--hf-reference", "reference"], "afile is not a directory"),
        (["merge", "dump", "afile/out", "--hf-reference", "reference", "--dry-run"], "afile is not a directory"),
        (["merge", "dump", "afile/out", "--hf-reference", "reference", "--part", "1/2"], "afile/out cannot be written"),
        (["merge", "dump", "out", "--hf-reference", "reference", "--min-shard-size", "10GB"], "the largest 5.0 GB"),
        (["verify", "dump"], "dump is a dump, which readers do not load. Prove it with shardmerge check."),
        (["inspect", "dump", "--html", "nothing/page.html"], "Invalid value for --html: nothing is not a directory."),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    one = world().write()
    (one.folder / "empty").mkdir()
    (one.folder / "afile").write_text("")
    monkeypatch.chdir(one.folder)
    found = run(*arguments)
    assert (found.exit_code, says in found.stderr) == (2, True), found.stderr
    assert {path.name for path in one.folder.iterdir()} == {"dump", "reference", "empty", "afile"}
    assert {path.name for path in one.dump.iterdir()} == {"rank-00000"}


@pytest.mark.parametrize("report", ["page", "./page", "folder/../page", "link"])
def test_a_file_that_two_options_name_is_refused_before_it_is_written(world: MakeWorld, report: str) -> None:
    one = world().write()
    (one.folder / "folder").mkdir()
    (one.folder / "link").symlink_to("page")
    for there in (False, True):
        found = shell(f"shardmerge inspect dump --html page --report {report}", one)
        assert (found.returncode, found.stdout) == (2, "")
        assert f"Invalid value for --report: {Path(report)} is what '--html' names, too." in found.stderr
        assert (one.folder / "page").exists() is there
        (one.folder / "page").write_text("mine")
    assert (one.folder / "page").read_text() == "mine"


def test_a_dump_whose_ranks_all_failed_is_a_dump(world: MakeWorld) -> None:
    """A disk of one node, on which nothing but the record of a failure is left."""
    one = world(Topology(tp=2)).write()
    other = one.folder / "node-1"
    other.mkdir()
    shutil.rmtree(one.rank(1))
    (other / "rank-00001.failed.json").write_text(json.dumps({"failure": {"message": "its disk broke."}}))
    found = run("check", one.dump, other, "--hf-reference", one.reference)
    assert found.exit_code == 3
    assert "it recorded a failure: its disk broke. Dump this run again" in found.stderr


def test_ranks_that_are_given_in_place_of_their_dump_name_the_dump(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    for given in ([one.rank(0), one.rank(1)], [one.dump, one.rank(1)]):
        found = run("check", *given, "--hf-reference", one.reference)
        rank = next(path for path in given if path != one.dump)
        assert (found.exit_code, found.stderr) == (
            2,
            f"Error: {rank} is one rank, not a dump. Give {one.dump}.\n",
        )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_called_that(world: MakeWorld, name: str) -> None:
    one = world().write()
    (one.reference / name).write_text(POINTER)
    found = run("merge", one.dump, one.out, "--hf-reference", one.reference)
    assert found.exit_code == 4
    assert f"{one.reference / name} is damaged: it is a pointer of Git LFS" in found.stderr
    assert "git lfs pull" in found.stderr
    assert not one.out.exists()


def test_one_dump_needs_no_list(world: MakeWorld) -> None:
    one = world().write()
    merge(str(one.dump), one.out, hf_reference=one.reference, workers=1)
    assert dumps.load(one.out) == one.model.tensors


# ---- OUT -----------------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_taken_with_its_owner_and_mode(world: MakeWorld) -> None:
    one = world().write()
    one.out.mkdir(mode=0o750)
    one.out.chmod(0o2770)
    one.merge()
    assert dumps.load(one.out) == one.model.tensors
    assert one.out.stat().st_mode & 0o7777 == 0o2770
    assert {path.name for path in one.folder.iterdir()} == {"dump", "reference", "out"}


def test_parts_take_an_empty_folder_too_and_say_nothing_of_processes_that_ended(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    one.out.mkdir()
    given = ["merge", one.dump, one.out, "--hf-reference", one.reference, "--workers", 1]
    for how in (["--part", "1/2"], ["--part", "2/2"], ["--finalize"]):
        found = run(*given, *how)
        assert (found.exit_code, found.stderr) == (0, "")
    assert dumps.load(one.out) == one.model.tensors


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_not_an_empty_folder_is_not_taken(world: MakeWorld, kind: str) -> None:
    one = world().write()
    (one.folder / "elsewhere").mkdir()
    if kind == "link":
        one.out.symlink_to("elsewhere")
    else:
        one.out.mkdir()
        (one.out / "mine").write_text("")
    with pytest.raises(OutputExistsError):
        one.merge()
    assert [path.name for path in one.out.iterdir()] == (["mine"] if kind == "folder" else [])


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes no files, with an empty folder and a published output."""
    folder = tmp_path / "read-only"
    (folder / "empty").mkdir(parents=True)
    commands: tuple[list[str | Path], ...] = (
        ["mount", "--bind", folder, folder],
        ["mount", "-o", "remount,ro,bind", folder],
    )
    try:
        for command in commands:
            if subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("needs the right to mount")
        yield folder
    finally:
        subprocess.run(["umount", folder], capture_output=True, check=False)


@pytest.mark.parametrize("out", ["out", "empty"])
@pytest.mark.parametrize("how", [[], ["--dry-run"], ["--part", "1/1"]], ids=str)
def test_a_read_only_place_is_refused_before_the_dump_is_read(
    world: MakeWorld, read_only: Path, out: str, how: list[str]
) -> None:
    one = world().write()
    (one.rank(0) / "manifest.json").write_text("damaged")
    found = run("merge", one.dump, read_only / out, "--hf-reference", one.reference, *how)
    assert found.exit_code == 2
    assert found.stderr.startswith(
        f"Error: {read_only / out} cannot be written: {read_only} is read-only, or "
    )


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_mount_point_is_refused_because_nothing_can_be_renamed_to_it(world: MakeWorld, small: Path) -> None:
    one = world().write()
    with pytest.raises(OutputExistsError, match="is a mount point"):
        merge(one.dump, small, hf_reference=one.reference, workers=1)


def test_room_is_looked_for_before_anything_is_written(world: MakeWorld, small: Path) -> None:
    one = world(Topology(tp=2)).write()
    (small / "others").write_bytes(bytes(256 << 10))
    size = sum(len(data) for _, _, data in one.model.tensors.values())
    for dry_run in (False, True):
        with pytest.raises(NoRoomError) as refused:
            merge(one.dump, small / "out", hf_reference=one.reference, workers=1, dry_run=dry_run)
        assert refused.value.needed_bytes == size > refused.value.free_bytes
        assert f"{one.dump} and {small} are different file systems" in refused.value.message()
        assert [path.name for path in small.iterdir()] == ["others"]
    with pytest.raises(NoRoomError):
        run_part(one, small / "out")


def run_part(one: World, out: Path) -> None:
    from shardmerge.phase2_merge import merge_part

    merge_part(one.dump, out, "1/1", hf_reference=one.reference, workers=1)


def test_a_dry_run_tells_what_will_be_linked_and_what_copied(world: MakeWorld, small: Path) -> None:
    one = world(Topology(tp=2)).write()
    whole = sum(len(data) for name, (_, _, data) in one.model.tensors.items() if "norm" in name)
    size = sum(len(data) for _, _, data in one.model.tensors.values())
    for out, copied in ((one.out, 0), (small / "out", whole)):
        told = json.loads(
            run("merge", one.dump, out, "--hf-reference", one.reference, "--dry-run", "--json").stdout
        )
        assert sum(told["space"]["copied_bytes"].values()) == copied == told["copied_bytes"]
        assert told["space"]["linked_bytes"] == whole - copied
        assert told["space"]["needed_bytes"] == size - whole + copied
        assert not out.exists()
        small_or_not = merge(one.dump, out, hf_reference=one.reference, workers=1)
        assert small_or_not.copied_bytes == copied
        assert small_or_not.assembled_bytes == size - whole


def test_shards_of_an_earlier_attempt_need_no_room_again(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    given: dict[str, Any] = {"hf_reference": one.reference, "workers": 1, "max_shard_bytes": 500}
    before = merge(one.dump, one.out, dry_run=True, **given).space
    run_part_of(one, "1/2")
    after = merge(one.dump, one.out, dry_run=True, **given).space
    assert before is not None
    assert after is not None
    assert 0 <= after.needed_bytes < before.needed_bytes


def run_part_of(one: World, part: str) -> None:
    from shardmerge.phase2_merge import merge_part

    merge_part(one.dump, one.out, part, hf_reference=one.reference, workers=1, max_shard_bytes=500)


# ---- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("shardmerge check dump --hf-reference reference > /dev/full", 1, "No space left on device: 'stdout'"),
        ("shardmerge check dump --hf-reference reference --json > /dev/full", 1, "No space left on device: 'stdout'"),
        ("shardmerge check dump --hf-reference reference --report /dev/full", 1, "No space left on device: '/dev"),
        ("shardmerge check dump --hf-reference reference | true; exit ${PIPESTATUS[0]}", 1, "Broken pipe: 'stdout'"),
        ("shardmerge check dump --hf-reference reference >&-", 1, "Bad file descriptor: 'stdout'"),
        ("shardmerge check nothing --hf-reference reference 2> /dev/full", 2, ""),
        ("shardmerge check dump --hf-reference reference --report /proc/x.json", 1, "directory: '/proc/x.json'. Ev"),
        ("shardmerge inspect dump --html /proc/page.html", 1, "directory: '/proc/page.html'. Everything"),
        ("shardmerge --help > /dev/full", 1, "Error: [Errno 28] No space left on device"),
        ("shardmerge --version > /dev/full", 1, "Error: [Errno 28] No space left on device"),
        ("shardmerge merge --help > /dev/full", 1, "Error: [Errno 28] No space left on device"),
        ("shardmerge.phase1_dump --help > /dev/full", 1, "Error: [Errno 28] No space left on device"),
        ("shardmerge merge --no-such-option 2> /dev/full", 1, ""),
    ],
)  # fmt: skip
def test_what_takes_no_output_is_an_error_and_no_traceback(
    world: MakeWorld, command: str, code: int, says: str
) -> None:
    found = shell(command, world().write())
    assert found.returncode == code
    assert says in found.stderr
    assert "Traceback" not in found.stderr
    assert "Exception ignored" not in found.stderr


def test_files_that_are_asked_for_may_have_names_of_any_bytes(world: MakeWorld) -> None:
    one = world().write()
    page, report = (one.folder / os.fsdecode(name) for name in (b"pa\xffge.html", b"re\xffport.json"))
    found = shell(r"shardmerge inspect dump --html $'pa\xffge.html' --report $'re\xffport.json' --json", one)
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(report.read_bytes()) == json.loads(found.stdout)
    assert page.read_text().startswith("<!doctype html>")


def test_a_merge_whose_log_is_on_a_full_disk_publishes(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    (one.folder / "out.partial").mkdir()
    found = shell("shardmerge merge dump out --hf-reference reference --workers 1 2> /dev/full", one)
    assert found.returncode == 0
    assert dumps.load(one.out) == one.model.tensors


def test_a_dry_run_says_what_will_be_linked_and_takes_no_seconds_to_publish(world: MakeWorld) -> None:
    one = world().write()
    told = run("merge", one.dump, one.out, "--hf-reference", one.reference, "--dry-run").stdout
    size = sum(len(data) for _, _, data in one.model.tensors.values())
    assert f"Would publish {one.out}: 1 shard, 1 adopted.\n" in told
    assert f"{size / 1000:.1f} KB will be linked, not copied.\n" in told


def test_quiet_prints_errors_only(world: MakeWorld) -> None:
    one = world().write()
    assert run("check", one.dump, "--hf-reference", one.reference, "--quiet").output == ""
    refused = run("check", one.folder, "--hf-reference", one.reference, "-q")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    ("name", "value", "coloured"),
    [("NO_COLOR", "1", False), ("NO_COLOR", "", True), ("TERM", "dumb", False), ("TERM", "xterm", True)],
)
def test_colours_go_where_they_are_wanted(world: MakeWorld, name: str, value: str, coloured: bool) -> None:
    """script(1) is a terminal."""
    environment = {"NO_COLOR": "", "TERM": "xterm"} | {name: value}
    found = shell("script -qec 'shardmerge inspect dump' /dev/null", world().write(), **environment)
    assert found.returncode == 0
    assert ("\x1b[32m#" in found.stdout) is coloured
    assert "#" in found.stdout


def test_ctrl_c_while_a_command_is_imported_ends_it_as_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shardmerge.common.command.group.load", interrupted)
    found = run("check", "dump")
    assert (found.exit_code, found.output) == (130, "Interrupted.\n")


def test_a_script_may_call_merge_at_its_top_level(world: MakeWorld) -> None:
    """Workers do not run the script again, and its main module is as it was."""
    one = world(Topology(tp=2)).write()
    script = one.folder / "top.py"
    script.write_text(
        "from shardmerge.phase2_merge import merge\n"
        "merge('dump', 'out', hf_reference='reference', workers=2, max_shard_bytes=500)\n"
        "print('once', __file__, __spec__)\n"
    )
    found = shell(f"{sys.executable} top.py", one)
    assert (found.stdout, found.stderr) == (f"once {script} None\n", "")
    assert dumps.load(one.out) == one.model.tensors


@pytest.mark.parametrize(
    ("words", "cursor", "completed"),
    [
        ("shardmerge me", "1", "plain,merge\nplain,metadata\n"),
        ("shardmerge merge --lay", "2", "plain,--layout\n"),
        ("shardmerge merge du", "2", "dir,du\n"),
    ],
)
def test_a_shell_completes_commands_options_and_folders(
    world: MakeWorld, words: str, cursor: str, completed: str
) -> None:
    """As click documents it: https://click.palletsprojects.com/en/stable/shell-completion/"""
    environment = {"_SHARDMERGE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": cursor}
    assert shell("shardmerge", world().write(), **environment).stdout == completed
