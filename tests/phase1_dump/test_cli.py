"""The command `shardmerge dump`: help, providers that are none, what it prints, and one rank that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shardmerge.common import reference
from shardmerge.common.command.group import main
from shardmerge.common.manifest import read
from shardmerge.phase1_dump.cli import launched, rank_report
from tests.dumps.outcomes import facts_of
from tests.phase1_dump.conftest import References

PROVIDERS = "tests.phase1_dump.providers"
ROOT = Path(__file__).parents[2]


def run(provider: str, out: Path, reference: Path, *options: str) -> Result:
    """`shardmerge dump` in this process, with no patience."""
    arguments = ["--model-provider", provider, "--out", str(out), "--hf-reference", str(reference)]
    generation = ["--run-id", "run", "--step", "7", "--wait", "0"]
    return CliRunner().invoke(main, ["dump", *arguments, *generation, *options])


def test_help_shows_an_example_to_run() -> None:
    result = CliRunner().invoke(main, ["dump", "--help"])

    assert result.exit_code == 0
    assert "Example:\n    torchrun --nproc-per-node 8 -m shardmerge.phase1_dump" in result.output


def test_a_model_is_dumped(references: References, tmp_path: Path) -> None:
    result = run(f"{PROVIDERS}:whole", tmp_path, references.config("llama"))

    assert (result.exit_code, result.exception) == (0, None)
    found = read(tmp_path / "rank-00000" / "manifest.json")
    assert (found.run_id, found.step) == ("run", 7)
    assert (
        result.stdout == f"rank 0 of 1 wrote {len(found.columns)} rectangles to {tmp_path / 'rank-00000'}\n"
    )


def test_headers_of_the_reference_are_read_once(
    references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    read_header = reference.read_header

    def counted(path: Path, root: Path) -> Any:
        seen.append(path)
        return read_header(path, root)

    monkeypatch.setattr(reference, "read_header", counted)
    result = run(f"{PROVIDERS}:whole", tmp_path, references.weights("llama"))

    assert result.exit_code == 0
    assert seen == [references.weights("llama") / "model.safetensors"]


def test_json_and_report_are_the_same_facts(references: References, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = run(
        f"{PROVIDERS}:whole", tmp_path / "out", references.config("llama"), "--json", "--report", str(report)
    )

    facts = facts_of(result)
    assert facts == json.loads(report.read_text())
    assert len(facts["checked"]) == 2
    assert facts["unchecked"] == ["what other ranks wrote: check and merge do that"]
    assert facts["rank"] == 0
    assert facts["health"] == {"all_zero": [], "nonfinite": []}
    sizes = [path.stat().st_size for path in (tmp_path / "out").rglob("*.safetensors")]
    assert facts["files"] == len(sizes)
    assert 0 < facts["written_bytes"] < sum(sizes)


@pytest.mark.parametrize(
    ("provider", "says"),
    [
        ("no.such.module:model", "No module named 'no'"),
        (f"{PROVIDERS}:missing", "has no attribute 'missing'"),
        (f"{PROVIDERS}:NOT_CALLABLE", "is not a function"),
        (PROVIDERS, "has no attribute ''"),
        (":whole", "Empty module name"),
    ],
)
def test_a_provider_that_is_none_is_a_usage_error(
    provider: str, says: str, references: References, tmp_path: Path
) -> None:
    result = run(provider, tmp_path, references.config("llama"))

    assert result.exit_code == 2
    assert says in result.stderr
    assert "Give package.module:function" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rank-00000.failed.json"]


def test_a_refusal_has_its_own_exit_code_and_facts(references: References, tmp_path: Path) -> None:
    reference = references.edited("llama", architectures=["OtherForCausalLM"])

    result = run(f"{PROVIDERS}:whole", tmp_path, reference, "--json")

    assert result.exit_code == 5
    facts = facts_of(result)
    assert (facts["error"], facts["architecture"]) == ("UnsupportedArchitectureError", "OtherForCausalLM")


def test_a_provider_that_fails_is_recorded_with_its_words(references: References, tmp_path: Path) -> None:
    result = run(f"{PROVIDERS}:fails", tmp_path, references.config("llama"))

    assert result.exit_code == 1
    record = json.loads((tmp_path / "rank-00000.failed.json").read_text())
    assert record["failure"] == {"error": "RuntimeError", "message": "no checkpoint to load"}


def test_a_provider_that_exits_is_recorded_too(references: References, tmp_path: Path) -> None:
    result = run(f"{PROVIDERS}:exits", tmp_path, references.config("llama"))

    assert result.exit_code == 2
    record = json.loads((tmp_path / "rank-00000.failed.json").read_text())
    assert record["failure"]["error"] == "SystemExit"


def test_a_provider_that_exits_with_zero_is_a_failure_all_the_same(
    references: References, tmp_path: Path
) -> None:
    result = run(f"{PROVIDERS}:ends_as_if_all_were_well", tmp_path, references.config("llama"))

    assert result.exit_code == 2
    assert (
        f"{PROVIDERS}:ends_as_if_all_were_well ended the process instead of returning a model"
        in result.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["rank-00000.failed.json"]


def test_what_an_earlier_attempt_recorded_is_forgotten_before_the_model_is_built(
    references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHED", str(tmp_path))
    run(f"{PROVIDERS}:fails", tmp_path, references.config("llama"))

    second = run(f"{PROVIDERS}:whole_if_no_failure_stands", tmp_path, references.config("llama"))

    assert second.exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["rank-00000"]


def test_ranks_never_write_the_same_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert rank_report(Path("a/report.json")) == Path("a/report-rank-00003.json")
    monkeypatch.setenv("RANK", "0")
    assert rank_report(Path("a/report.json")) == Path("a/report.json")


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 9),
        ({"RANK": "3"}, 3),
        ({"SLURM_PROCID": "4"}, 4),
        ({"RANK": "3", "SLURM_PROCID": "4"}, 3),
        ({"RANK": ""}, 9),
    ],
)
def test_the_launcher_names_the_rank(environment: dict[str, str], rank: int) -> None:
    assert launched(("RANK", "SLURM_PROCID"), 9, environment) == rank


@pytest.mark.parametrize("value", ["8(x4)", "-1", "one"])
@pytest.mark.parametrize("name", ["RANK", "SLURM_NTASKS"])
def test_what_is_no_number_in_a_variable_of_the_launcher_is_a_usage_error(
    references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    report = str(tmp_path / "report.json")
    result = run(f"{PROVIDERS}:fails", tmp_path / "out", references.config("llama"), "--report", report)

    assert (result.exit_code, "defect" in result.output) == (2, False), result.output
    assert f"the variable {name} is {value!r}, where a launcher sets a number." in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--checkpoint", "nowhere"),
            "--model-provider and --checkpoint both name a model. Give one of them.",
        ),
        (("--wait", "-1"), "Invalid value for '--wait': -1.0 is not in the range x>=0."),
    ],
)
def test_options_that_contradict_or_mean_nothing_are_usage_errors(
    references: References, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    result = run(f"{PROVIDERS}:fails", tmp_path / "out", references.config("llama"), *options)

    assert (result.exit_code, says in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "out").exists()


def test_under_torchrun_a_failing_rank_lets_the_other_finish(references: References, tmp_path: Path) -> None:
    """torchrun ends a node with its first failed process: rank 0 would be killed while it still loads."""
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "shardmerge.phase1_dump", "--model-provider", f"{PROVIDERS}:second_fails_at_once"),
        *("--hf-reference", str(references.config("llama")), "--out", str(out)),
        *("--run-id", "run", "--step", "7", "--wait", "120"),
    ]  # fmt: skip
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "GLOO_SOCKET_IFNAME": "lo",
    }

    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )

    assert result.returncode != 0
    assert {path.name for path in out.iterdir()} == {"rank-00000", "rank-00001.failed.json"}
    assert read(out / "rank-00000" / "manifest.json").world_size == 2
    assert "rank 1 cannot read its shard" in (out / "rank-00001.failed.json").read_text()
    assert "rank 1 failed, waits up to 120 s for the others" in result.stderr


def test_a_spelling_of_experts_that_does_not_fit_is_a_usage_error(
    references: References, tmp_path: Path
) -> None:
    result = run(f"{PROVIDERS}:whole", tmp_path, references.config("llama"), "--experts", "packed", "--json")

    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["error"], facts["exit_code"]) == (2, "ExpertSpellingError", 2)
    assert (facts["architecture"], facts["spelling"]) == ("LlamaForCausalLM", "packed")
    assert "It has no routed experts" in facts["message"]
    assert not (tmp_path / "rank-00000").exists()
    unknown = run(f"{PROVIDERS}:whole", tmp_path, references.config("llama"), "--experts", "both")
    assert unknown.exit_code == 2
    assert "'both' is not one of 'per-expert', 'packed'" in unknown.stderr


def test_a_providers_exception_has_its_own_traceback_and_is_no_defect_of_ours(
    references: References, tmp_path: Path
) -> None:
    result = run(f"{PROVIDERS}:fails", tmp_path, references.config("llama"))

    assert "no checkpoint to load" in result.stderr
    assert f"It was raised by --model-provider {PROVIDERS}:fails" in result.stderr
    assert "defect of shardmerge" not in result.stderr
    assert "phase1_dump/cli.py" not in result.stderr


def test_a_dump_that_cannot_be_written_is_refused_before_the_provider_and_waits_for_nobody(
    references: References, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/dump"), tmp_path / "file" / "dump"):
        result = run(f"{PROVIDERS}:fails", out, references.config("llama"), "--wait", "600")
        assert result.exit_code == 2
        assert f"--out {out} cannot be written" in result.stderr
        assert "no checkpoint to load" not in result.stderr


def test_the_reference_is_read_before_the_provider_runs(references: References, tmp_path: Path) -> None:
    result = run(f"{PROVIDERS}:fails", tmp_path / "out", tmp_path / "nothing")

    assert result.exit_code == 2
    assert "nothing does not exist" in result.stderr


def test_sizes_are_spelt_as_for_merge(references: References, tmp_path: Path) -> None:
    config = references.config("llama")
    old = run(f"{PROVIDERS}:fails", tmp_path, config, "--max-fragment-bytes", "5000")
    assert (old.exit_code, "--max-fragment-size" in old.stderr) == (2, True)
    assert run(f"{PROVIDERS}:fails", tmp_path, config, "--max-fragment-size", "5").exit_code == 2
    whole = run(f"{PROVIDERS}:whole", tmp_path, config, "--max-fragment-size", "4KB", "--quiet")
    assert (whole.exit_code, whole.output) == (0, "")
    assert len(list(tmp_path.glob("rank-00000/*.safetensors"))) > 3
