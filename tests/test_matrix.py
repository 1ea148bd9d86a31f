"""The record of what was tested, and the sample that a run of the tests takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import matrix

RECORD: matrix.Record = {
    "tp2": {"LlamaForCausalLM": ["bytes", "coverage"]},
    "single": {"Qwen3ForCausalLM": ["bytes"]},
}
ALIKE, RECORDS = "tests/phase1_dump/test_coverage.py", "tests/oracles/test_records.py"


def written(path: Path, record: matrix.Record) -> str:
    path.write_text(json.dumps(record))
    return str(path)


def test_what_was_tested_must_be_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documented, some = written(tmp_path / "all", RECORD), {"tp2": {"LlamaForCausalLM": ["bytes"]}}
    sample = written(tmp_path / "some", some)
    assert matrix.main([documented, documented]) == 0
    assert matrix.main([sample, documented]) == 0
    assert matrix.main([documented, sample]) == 1
    assert "LlamaForCausalLM|tp2|coverage" in capsys.readouterr().err
    assert matrix.main(["--whole", sample, documented]) == 1


def collected(*options: str, where: str = ALIKE) -> set[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        *options,
        where,
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line for line in found.splitlines() if "::" in line}


def test_a_sample_is_the_same_for_the_same_seed_and_leaves_out_nothing_that_is_not_marked() -> None:
    every, sample = collected(), collected("--sample=4", "--seed=a")
    assert sample == collected("--sample=4", "--seed=a")
    assert sample < every
    assert len(every) / 6 < len(sample) < len(every) / 2.5
    assert all("written_exactly_once" in name for name in every - sample)
    assert sample != collected("--sample=4", "--seed=b")


def test_a_sample_of_all_tests_has_what_is_marked_always() -> None:
    every = collected(where=RECORDS)
    sample = collected("--sample=4", "--sample-of=all", "--seed=a", where=RECORDS)
    always = {name for name in every if "what_the_oracle_exports" in name or "todays_table" in name}
    assert always < sample < every
    assert len(always) > 40
    assert len(every - always) / 12 < len(sample - always) < len(every - always) / 2
