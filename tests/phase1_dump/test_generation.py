"""A generation is a run id, a step and an attempt that all ranks share; the launcher tells the attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardmerge.common.errors import BadInputError
from shardmerge.common.manifest import read
from shardmerge.phase1_dump import dump
from shardmerge.phase1_dump.generation import Generation, attempt_of
from tests.phase1_dump.conftest import References
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE


@pytest.mark.parametrize(
    ("environment", "attempt"),
    [
        ({}, "0"),
        ({"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "2"}, "job.2"),
        ({"TORCHELASTIC_RUN_ID": "job"}, "job.0"),
        ({"SLURM_JOB_ID": "4711"}, "4711.0"),
        ({"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "1"}, "4711.1"),
        (
            {"SLURM_JOB_ID": "4711", "TORCHELASTIC_RUN_ID": "inner", "TORCHELASTIC_RESTART_COUNT": "3"},
            "inner.3",
        ),
    ],
)
def test_the_launcher_names_the_attempt(environment: dict[str, str], attempt: str) -> None:
    assert attempt_of(environment) == attempt


@pytest.mark.parametrize("field", ["run_id", "attempt"])
@pytest.mark.parametrize("value", ["", None, 7, Path("run")])
def test_a_name_that_is_no_text_is_refused(field: str, value: Any) -> None:
    with pytest.raises(BadInputError, match=f"^{field} is ") as caught:
        Generation(**{"run_id": "run", "step": 1, "attempt": "0", field: value})

    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", [1.5, "12"])
def test_a_step_that_is_no_integer_is_refused(value: Any) -> None:
    with pytest.raises(BadInputError, match=r"^step is "):
        Generation("run", value, "0")


def test_a_dump_takes_numpys_step_and_the_launchers_attempt(
    references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy's integers are no JSON: found out only when all bytes are written, if nobody looks before."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "elastic")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with fake_world(SINGLE, 0):
        model = build_model(by_name("llama"), SINGLE)
        step: Any = np.int64(12)
        dump(model, tmp_path, hf_reference=references.config("llama"), run_id="run", step=step)

    found = read(tmp_path / "rank-00000" / "manifest.json")
    assert (found.run_id, found.step, found.attempt) == ("run", 12, "elastic.1")
