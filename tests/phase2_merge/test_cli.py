"""The commands as a shell sees them: exit codes, what goes to stdout, interrupts, what is imported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from shardmerge.common.command.group import main
from shardmerge.phase2_merge.commands import merge as merge_dump
from tests.bench.watching import children
from tests.dumps import dumps
from tests.dumps.dumps import Topology
from tests.dumps.worlds import MakeWorld, World

RUN = [sys.executable, "-c", "from shardmerge.common.command.group import main; main(prog_name='shardmerge')"]
SLOW = """
import os, sys, time
from shardmerge.phase2_merge.shards import adopt
link = os.link
def slow(*given):
    link(*given)
    print("linked", flush=True)
    time.sleep(60)
os.link = slow
from shardmerge.common.command.group import main
main(prog_name="shardmerge")
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def merge_arguments(one: World, *more: object) -> list[object]:
    return ["merge", one.dump, one.out, "--hf-reference", one.reference, "--workers", 1, *more]


def test_merge_then_verify_exit_with_0(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    merged = run(*merge_arguments(one))
    assert (merged.exit_code, merged.stderr) == (0, "")
    assert "Whole: Qwen3ForCausalLM, run run-1, step 100, 2 ranks." in merged.stdout
    assert f"Published {one.out}: 2 shards, 1 adopted (1 by hard link)" in merged.stdout
    assert run("verify", one.out).exit_code == 0
    assert dumps.load(one.out) == one.model.tensors


def test_check_as_json_holds_only_data(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    found = json.loads(run("check", one.dump, "--hf-reference", one.reference, "--json").stdout)
    assert (found["num_tensors"], found["world_size"], found["verification"]) == (25, 2, "full")
    assert found["total_bytes"] == sum(len(data) for _, _, data in one.model.tensors.values())


def test_a_refusal_goes_to_stderr_and_as_json_to_stdout_and_report(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2))
    del one.cuts["lm_head.weight"][1]
    one.write()
    found = run("check", one.dump, "--hf-reference", one.reference, "--json", "--report", tmp_path / "r.json")
    assert found.exit_code == 3
    assert "Error: lm_head.weight [24, 8] is not whole: [12:24, 0:8] missing" in found.stderr
    assert json.loads(found.stdout) == json.loads((tmp_path / "r.json").read_bytes())
    assert json.loads(found.stdout)["error"] == "UncoveredTensorError"


def test_a_report_holds_every_problem(world: MakeWorld, tmp_path: Path) -> None:
    one = world()
    one.cuts = {"lm_head.weight": one.cuts["lm_head.weight"]}
    one.write()
    found = run(*merge_arguments(one, "--report", tmp_path / "r.json"))
    assert found.exit_code == 3
    assert found.stderr.startswith("Error: 24 problems found:\n24 x missing tensor:\n")
    assert found.stderr.endswith("\n  ... and 14 more\n(--report FILE holds all)\n")
    assert found.stderr.count(" is in no manifest") == 10
    report = json.loads((tmp_path / "r.json").read_bytes())
    assert (report["counts"], len(report["problems"])) == ({"MissingTensorError": 24}, 24)


def test_a_report_that_cannot_be_written_is_said_before_the_work(world: MakeWorld, tmp_path: Path) -> None:
    one = world().write()
    found = run(*merge_arguments(one, "--report", tmp_path / "no" / "r.json"))
    assert found.exit_code == 2
    assert not one.out.exists()


@pytest.mark.parametrize(("size", "code"), [("5GB", 0), ("1 KiB", 0), ("five", 2), ("0", 2), ("5", 2)])
def test_sizes_are_read_as_people_write_them(world: MakeWorld, size: str, code: int) -> None:
    assert run(*merge_arguments(world().write(), "--max-shard-size", size)).exit_code == code


def test_an_existing_output_exits_with_6(world: MakeWorld) -> None:
    one = world().write()
    (one.out / "mine").mkdir(parents=True)
    assert run(*merge_arguments(one)).exit_code == 6


def test_a_defect_exits_with_1_and_shows_its_traceback(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(merge_dump, "plan_shards", broken)
    found = run(*merge_arguments(world().write()))
    assert found.exit_code == 1
    assert "ZeroDivisionError: oops" in found.stderr
    assert "This is a defect of shardmerge" in found.stderr


@pytest.mark.parametrize("name", ["check", "merge", "metadata", "verify"])
def test_help_of_every_command_has_an_example(name: str) -> None:
    text = run(name, "--help").stdout
    assert f"Example:\n    shardmerge {name} " in text


def test_help_of_the_group_lists_all_commands_without_importing_them() -> None:
    code = (
        "import sys; from shardmerge.common.command.group import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted(m for m in sys.modules if 'phase' in m or m in ('pyarrow', 'numpy')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.rstrip().endswith("[]")
    assert all(f"\n  {name} " in found.stdout for name in ("dump", "check", "merge", "verify"))


def imported(code: str, *libraries: str) -> list[str]:
    """Which of these libraries a fresh process has imported after running `code`."""
    code += f"\nimport sys; print(*(m for m in {libraries!r} if m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()[-1].split()


def test_phase_two_imports_neither_torch_nor_megatron() -> None:
    code = "import shardmerge.phase2_merge.cli; from shardmerge.phase2_merge import check, merge, verify"
    assert imported(code, "torch", "megatron", "transformer_engine", "transformers", "pyarrow") == ["pyarrow"]


def test_workers_import_neither_arrow_nor_the_ledger() -> None:
    code = "import shardmerge.phase2_merge.assembly.workers"
    unwanted = ("pyarrow", "shardmerge.phase2_merge.ledger", "torch", "click")
    assert imported(code, *unwanted, "numpy") == ["numpy"]


def test_the_names_of_the_api_are_functions_and_nothing_else_is_there() -> None:
    import shardmerge.phase2_merge as api

    assert all(callable(getattr(api, name)) for name in api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'mrege'"):
        api.mrege  # noqa: B018


def start(code: str, one: World) -> subprocess.Popen[str]:
    arguments = [str(argument) for argument in merge_arguments(one)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("sent", "code", "last"),
    [(signal.SIGINT, 130, "Interrupted.\n"), (signal.SIGTERM, 143, "Ended by SIGTERM.\n")],
)
def test_an_interrupted_merge_publishes_nothing_says_so_and_is_finished_by_the_next(
    world: MakeWorld, sent: signal.Signals, code: int, last: str
) -> None:
    one = world().write()
    process = start(SLOW, one)
    assert process.stdout is not None
    assert process.stdout.readline() == "linked\n"
    process.send_signal(sent)
    _, talk = process.communicate(timeout=30)
    assert process.returncode == code
    assert f"Nothing was published. What was written stays in {one.out}.partial" in talk
    assert talk.endswith(last)
    assert {path.name for path in one.folder.iterdir()} == {"dump", "reference", "out.partial"}
    assert run(*merge_arguments(one)).exit_code == 0
    assert dumps.load(one.out) == one.model.tensors


def test_what_a_killed_merge_left_is_told_and_replaced(world: MakeWorld) -> None:
    one = world().write()
    process = start(SLOW, one)
    assert process.stdout is not None
    assert process.stdout.readline() == "linked\n"
    locked = run(*merge_arguments(one))
    assert locked.exit_code == 6
    assert f"is being written by a merge (process {process.pid} on " in locked.stderr
    process.kill()
    process.communicate()
    (one.folder / "out.partial" / "model-00001-of-00009.safetensors").write_text("")
    found = run(*merge_arguments(one))
    assert found.exit_code == 0
    assert f"was left by a merge (process {process.pid} on " in found.stderr
    assert {path.name for path in one.out.iterdir()} == {
        "model.safetensors", "config.json", "tokenizer.json", ".shardmerge",
    }  # fmt: skip


POOLED = """
import os, sys, threading, time, multiprocessing
from shardmerge.phase2_merge import merge
from shardmerge.phase2_merge.shards import adopted_bytes
dump, out, reference = sys.argv[1:]
adopt = adopted_bytes.adopt

def block(*given):
    threading.Thread(target=tell).start()
    return adopt(*given)

def tell():
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)

if __name__ == "__main__":
    adopted_bytes.adopt = block
    merge([dump], out, hf_reference=reference, workers=2, max_shard_bytes=500, talk=sys.stderr)
"""


# Every process that is started imports this first. Workers wait before they read, while GATE is there.
GATED = """
import multiprocessing, os, time
read = os.preadv

def wait_and_read(*given):
    while multiprocessing.parent_process() and os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    return read(*given)

os.preadv = wait_and_read
"""


@contextmanager
def blocked_pool(one: World) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A merge, in a group of its own, whose two workers wait until `gate(one)` is gone; and their ids."""
    gate(one).write_text("")
    site = one.folder.parent / f"{one.folder.name}-site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(GATED)
    more = {"GATE": str(gate(one)), "PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', site)}"}
    script = one.folder.parent / f"{one.folder.name}-pooled.py"
    script.write_text(POOLED)
    arguments = [sys.executable, str(script), str(one.dump), str(one.out), str(one.reference)]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | more,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, [int(pid) for pid in process.stdout.readline().split()]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def gate(one: World) -> Path:
    return one.folder.parent / f"{one.folder.name}-gate"


def test_ctrl_c_ends_the_workers_too(world: MakeWorld) -> None:
    """A shell sends it to the whole group of processes."""
    one = world(Topology(tp=2)).write()
    with blocked_pool(one) as (process, workers):
        assert len(workers) == 2
        assert all(blocks_interrupts(pid) for pid in workers)  # from their first instruction on
        os.killpg(process.pid, signal.SIGINT)
        _, talk = process.communicate(timeout=30)
    assert "Nothing was published" in talk
    assert talk.count("Traceback") == 1  # the parent's: workers say nothing
    assert not any(alive(pid) for pid in workers)
    assert {path.name for path in one.folder.iterdir()} == {"dump", "reference", "out.partial"}


def test_a_temporary_folder_too_deep_for_a_socket_does_not_matter(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2)).write()
    deep = tmp_path / ("x" * 110)
    deep.mkdir()
    given = map(str, merge_arguments(one, "--workers", 2, "--max-shard-size", "500B"))
    found = subprocess.run(
        [*RUN, *given], env=os.environ | {"TMPDIR": str(deep)}, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert dumps.load(one.out) == one.model.tensors


def test_workers_and_their_server_end_when_the_merge_is_killed(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    with blocked_pool(one) as (process, workers):
        servers = [pid for pid in children(process.pid) if is_server(pid)]
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while any(map(alive, [*workers, *servers])):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(workers) == 2
    assert len(servers) == 1


def workers_of(pid: int) -> list[int]:
    """Workers of a process, which its server forked."""
    return [worker for server in children(pid) if is_server(server) for worker in children(server)]


def is_server(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return b"multiprocessing.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def test_a_killed_worker_is_survived(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    with blocked_pool(one) as (process, workers):
        os.kill(workers[0], signal.SIGKILL)
        gate(one).unlink()
        _, talk = process.communicate(timeout=60)
    assert process.returncode == 0, talk
    assert "A worker was killed (model-00002-of-" in talk
    split = {path.name: path.read_bytes() for path in one.out.glob("*.safetensors")}
    shutil.rmtree(one.out)
    one.merge(max_shard_bytes=500)
    assert split == {name: (one.out / name).read_bytes() for name in split}
    assert len(split) > 2
    assert not any(alive(pid) for pid in workers)


def test_workers_that_are_killed_again_and_again_end_the_merge_and_name_their_shards(
    world: MakeWorld,
) -> None:
    one = world(Topology(tp=2)).write()
    killed = set()
    with blocked_pool(one) as (process, _):
        while process.poll() is None:
            for pid in workers_of(process.pid):
                with suppress(ProcessLookupError):  # the pool may have ended it since they were counted
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.05)
        _, talk = process.communicate(timeout=30)
    assert "WorkerDiedError: A worker process was killed while it wrote model-00002-of-" in talk
    assert len(killed) >= 3
    assert not any(alive(pid) for pid in killed)
    assert {path.name for path in one.folder.iterdir()} == {"dump", "reference", "out.partial"}


def blocks_interrupts(pid: int) -> bool:
    """From the mask of blocked signals that the kernel shows; signal n is bit n - 1."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return bool(int(status["SigBlk"], 16) >> (signal.SIGINT - 1) & 1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_command_whose_library_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: object) -> click.Command:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("shardmerge.common.command.group.load", missing)
    found = run("dump", "--help")
    assert found.exit_code == 2
    assert (
        "shardmerge dump needs torch, which is not installed. pip install 'shardmerge[dump]'." in found.stderr
    )


def test_metadata_and_a_second_merge_exit_with_0_and_touch_no_shard(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    assert run(*merge_arguments(one)).exit_code == 0
    before = [path.stat().st_mtime_ns for path in sorted(one.out.glob("*.safetensors"))]
    found = run("metadata", one.out, "--set", "config.rope_theta=1000000")
    assert (found.exit_code, found.stderr) == (0, "")
    assert "2 shards with 25 tensors were not touched" in found.stdout
    assert "Corrected: config.rope_theta is 1000000.0, was 10000.0." in found.stdout
    assert json.loads((one.out / "config.json").read_bytes())["rope_theta"] == 1000000
    again = run(*merge_arguments(one))
    assert again.exit_code == 0
    assert "no shard was touched" in again.stdout
    assert run("metadata", one.out, "--set", "rope_theta=1").exit_code == 2
    assert [path.stat().st_mtime_ns for path in sorted(one.out.glob("*.safetensors"))] == before
