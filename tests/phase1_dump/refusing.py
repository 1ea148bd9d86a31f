"""What every refusal must do: name its class, exit code and facts, record itself, and write nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from shardmerge.common.errors import ShardmergeError
from shardmerge.phase1_dump import dump
from tests.phase1_dump.dumped import GENERATION


def refused_and_recorded(
    kind: type[ShardmergeError], exit_code: int, model: Any, out: Path, reference: Path, **options: Any
) -> str:
    """Check that this rank refuses and says so in its failed.json, also with on_error="record"; the message."""
    arguments = {"hf_reference": reference} | GENERATION | options
    with pytest.raises(kind) as caught:
        dump(model, out, **arguments)

    assert caught.value.exit_code == exit_code
    message = str(caught.value)
    _take_the_failure(out, kind, message)

    assert dump(model, out, on_error="record", **arguments) is None
    _take_the_failure(out, kind, message)
    return message


def refused_before_the_rank_is_known(
    kind: type[ShardmergeError], exit_code: int, model: Any, out: Path, reference: Path
) -> str:
    """Check that nothing at all is written; on_error="record" cannot help, since nobody knows which rank this is."""
    choices: tuple[dict[str, Any], ...] = ({}, {"on_error": "record"})
    for options in choices:
        with pytest.raises(kind) as caught:
            dump(model, out, hf_reference=reference, **GENERATION, **options)
        assert caught.value.exit_code == exit_code
        assert not out.exists()
    return str(caught.value)


def _take_the_failure(out: Path, kind: type[ShardmergeError], message: str) -> None:
    """Remove the record of the failure, which must be all there is."""
    (file,) = out.iterdir()
    rank = distributed.get_rank()
    assert file.name == f"rank-{rank:05d}.failed.json"
    record = json.loads(file.read_text())
    file.unlink()
    assert (record["rank"], record["run_id"]) == (rank, GENERATION["run_id"])
    assert record["failure"]["error"] == kind.__name__
    assert record["failure"]["message"] == message
