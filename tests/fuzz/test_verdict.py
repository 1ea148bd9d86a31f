"""The measure of fuzzing finds what it is for, and its mutations, recipes and campaigns do what they say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random

import click
import pytest

from shardmerge.common.errors import BadInputError, OutputLockedError, ShardmergeError

from . import campaign, corpus, file_mutations, json_mutations, parquet_recipes
from .campaign import Campaign, Done, Run, Watch
from .printed import as_command
from .sound import Files
from .verdict import NotAllowedError, Read, judge

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    """What a command found out."""

    held: dict[str, float]

    def facts(self) -> dict[str, float]:
        return self.held

    def text(self) -> str:
        return "sound"


def test_an_error_of_the_tree_and_one_of_the_system_are_no_findings() -> None:
    assert judge(_raising(BadInputError("a", "b")), b"") is None
    assert judge(_raising(OutputLockedError("out", "somebody")), b"") is None
    assert judge(_raising(FileNotFoundError(2, "no such file")), b"") is None
    assert judge(_raising(KeyError("a")), b"", (LookupError,)) is None


@pytest.mark.parametrize(
    "error", [KeyError("a"), MemoryError(), RecursionError(), OSError("without a number")]
)
def test_any_other_exception_is_a_finding(error: Exception) -> None:
    finding = judge(_raising(error), b"")
    assert finding is not None
    assert finding.key.startswith(type(error).__name__)


@pytest.mark.parametrize("strange", ["\x1b[2J", "\r", "\x9b31m", "\u202e"])
def test_a_command_that_prints_what_a_terminal_obeys_is_a_finding(strange: str) -> None:
    def end() -> Outcome:
        click.echo(f"a name with {strange}")
        return Outcome({})

    finding = judge(lambda _: as_command(end), b"")
    assert finding is not None
    assert finding.key.startswith("a terminal gets")


def test_an_outcome_that_cannot_be_printed_is_a_finding() -> None:
    assert judge(lambda _: Outcome({"rate": 0.5}), b"") is None
    finding = judge(lambda _: Outcome({"rate": float("nan")}), b"")
    assert finding is not None
    assert finding.key.startswith("ValueError")


def test_memory_out_of_proportion_is_a_finding() -> None:
    finding = judge(lambda _: len(b"\x01" * (200 << 20)), b"ten bytes")
    assert finding is not None
    assert finding.key == "memory"


def test_an_answer_that_takes_long_every_time_is_a_finding() -> None:
    finding = judge(lambda _: _work(1.2), b"")
    assert finding is not None
    assert finding.key == "slow"


def test_an_answer_that_takes_long_once_is_none() -> None:
    times = iter((1.2, 0.0))
    assert judge(lambda _: _work(next(times)), b"") is None


def test_a_command_that_looks_and_writes_is_caught_and_everything_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    files = Files(tmp_path)
    with pytest.raises(NotAllowedError, match="beside a"):
        _change_two_others(files)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b"}
    with files.holding("new", b"other"):
        assert (tmp_path / "new").read_bytes() == b"other"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_digest_fits_again_after_a_mutation() -> None:
    from shardmerge.common import manifest

    text = json.dumps(
        {"format": manifest.FORMAT, "schema_version": 1, "rank": 3, "xxh3_128": "0" * 32}
    ).encode()
    fits = file_mutations.repaired_manifest(text)
    assert manifest.parsed(fits, Path("manifest.json"))["rank"] == 3


def test_mutations_of_json_are_json_and_differ() -> None:
    text = b'{"a":[1,2,{"b":"c"}],"d":null}'
    changed = {json_mutations.mutated(text, Random(number)) for number in range(300)}
    assert len(changed) > 200
    assert all(json.loads(each) is not Ellipsis for each in changed)


def test_a_header_of_another_length_still_describes_its_file() -> None:
    header = b'{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}'
    assert file_mutations.with_header(header, None) == len(header).to_bytes(8, "little") + header + bytes(5)


def test_a_recipe_gives_the_file_that_it_describes(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    recipe = {
        "columns": [["n", "int32", [1, 2]], ["h", "fixed_size_binary[16]", ["00" * 16, "ff" * 16]]],
        "metadata": {"k": "v"},
        "options": {"compression": "none"},
        "repeat": 2,
        "patches": [],
        "cut": 0,
    }
    data = parquet_recipes.written(json.dumps(recipe).encode())
    assert data is not None
    (tmp_path / "a.parquet").write_bytes(data)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["n"].to_pylist() == [1, 2, 1, 2]
    assert table.schema.metadata[b"k"] == b"v"
    patched = parquet_recipes.written(json.dumps(recipe | {"patches": [[0, "00"]]}).encode())
    assert patched is not None
    assert patched[1:] == data[1:]
    assert patched[0] == 0
    assert parquet_recipes.written(b'{"columns":[["n","no such type",[1]]]}') is None


def test_the_corpus_keeps_what_adds_steps_for_the_fewest_bytes() -> None:
    code = _work.__code__
    one, two = (code, 1, 2), (code, 2, 3)
    inputs = [(b"long" * 100, {one}), (b"short", {one}), (b"other", {two}), (b"same", {one})]
    assert corpus.chosen(inputs, set(), 1_000) == [b"same", b"other"]
    assert corpus.chosen(inputs, {one}, 1_000) == [b"other"]
    assert corpus.chosen(inputs, set(), 4) == [b"same"]


def test_a_campaign_counts_what_libfuzzer_prints() -> None:
    watch = Watch(edges=10)
    assert watch.see("#5\tINITED cov: 20 ft: 30 corp: 4/10b exec/s: 0 rss: 90Mb") == 5
    assert watch.see("#9\tNEW    cov: 20 ft: 31 corp: 5/12b lim: 4 exec/s: 1 rss: 90Mb") == 9
    assert _has_new_edge(watch, "#9\tREDUCE cov: 20 ft: 31 corp: 5/11b lim: 4 exec/s: 1 rss: 90Mb") is False
    assert _has_new_edge(watch, "#12\tNEW    cov: 21 ft: 33 corp: 6/12b lim: 4 exec/s: 1 rss: 90Mb") is True
    assert watch.see("stat::number_of_executed_units: 77") == 77
    assert watch.see("Done 77 runs in 3 second(s)") == 0
    watch.new_edge_at = 150.0
    watch.runs += [Run(100.0, 200.0, 50.0, 77, died=False), Run(120.0, 150.0, 30.0, 3, died=True)]
    assert watch.added_to(Done(1, 2.0, 10, 99.0, 0)) == Done(81, 82.0, 21, 25.0, 1)
    watch.new_edge_at = None
    assert watch.added_to(Done(1, 2.0, 10, 99.0, 0)).seconds_since_new_edge == 179.0


DYING = """
import os, pathlib, sys
print("#5\tNEW    cov: 3 ft: 4 corp: 1/2b", file=sys.stderr, flush=True)
pathlib.Path(sys.argv[1], "died-crash-1").write_bytes(b"input")
os.abort()
"""


def test_a_process_that_dies_is_counted_and_its_input_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "SHORTEST_SECONDS", 1)
    command = [sys.executable, "-c", DYING, str(tmp_path / "findings" / "owner")]
    monkeypatch.setattr(Campaign, "_command", lambda *_: command)
    made = Campaign(tmp_path, tmp_path, seconds=2, jobs=1, targets=["owner"], scratch=tmp_path)
    made.findings("owner")  # makes the folder
    done = made.run()["owner"]
    assert done.deaths >= 1
    assert done.executions == 5 * done.deaths
    assert done.edges == 3
    assert [path.name for path in made.findings("owner")] == ["died-crash-1"]
    assert (tmp_path / "findings" / "owner" / "died-crash-1.txt").read_text().startswith("died\n")


def test_a_target_that_cannot_be_fuzzed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "raise SystemExit('there is no such reader')"]
    monkeypatch.setattr(Campaign, "_command", lambda *_: command)
    with pytest.raises(RuntimeError, match="there is no such reader"):
        Campaign(tmp_path, tmp_path, seconds=9, jobs=1, targets=["owner"], scratch=tmp_path).run()


@pytest.mark.skipif(find_spec("atheris") is None, reason="make fuzz installs atheris")
def test_a_short_campaign_with_atheris_runs_and_keeps_its_state(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--seconds",
        "10",
        "--jobs",
        "1",
        "--target",
        "owner",
        "--out",
    ]
    ended = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    done = Done(**json.loads((tmp_path / campaign.STATE).read_text())["owner"])
    assert done.executions > 100
    assert done.edges > 10
    assert ended.stdout.splitlines()[1].startswith("owner")


def _raising(error: Exception) -> Read:
    def read(_: bytes) -> object:
        raise error

    return read


def _has_new_edge(watch: Watch, line: str) -> bool:
    watch.see(line)
    return watch.new_edge_at is not None


def _change_two_others(files: Files) -> None:
    with files.holding("a", b"other") as folder:
        (folder / "b").unlink()
        (folder / "c").write_text("c")


def _work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_every_refusal_has_an_exit_code_of_the_tree() -> None:
    class StrangeError(ShardmergeError):
        exit_code = 99

        def message(self) -> str:
            return "strange"

    finding = judge(_raising(StrangeError()), b"")
    assert finding is not None
    assert finding.key == "exit code 99"
