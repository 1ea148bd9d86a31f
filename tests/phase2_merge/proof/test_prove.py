"""The two lists of the proof: every check has the one shape, a gate ends the proof, and all checks are told."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from shardmerge.common.errors import (
    CorruptFileError,
    Findings,
    MismatchError,
    MissingRankError,
    NonFiniteError,
    ProblemsFoundError,
    ReplicaMismatchError,
)
from shardmerge.phase2_merge.options import Asked
from shardmerge.phase2_merge.proof import prove as proof
from tests.dumps.dumps import Held, Topology
from tests.dumps.worlds import MakeWorld, World

NORM = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize("check", [*proof.GATES, *proof.CHECKS], ids=lambda check: check.__module__)
def test_every_check_is_of_a_case_and_returns_findings(check: Callable[..., Any]) -> None:
    assert inspect.get_annotations(check) == {"case": "Case", "return": "Findings"}


def spoiled(world: MakeWorld, **head: Any) -> World:
    """A rank is missing, a replica and numbers are wrong, and a file was cut off."""
    one = world(Topology(tp=4))
    shape, data = one.model.tensors[NORM][1:]
    held = [Held(1, 0, NORM, (0,) * len(shape), shape, b"x" + data[1:])]
    one.write(held=held, health=lambda rank: {"nonfinite": [[0, 1, 0]]} if rank == 0 else {}, **head)
    shutil.rmtree(one.rank(3))
    path = one.rank(2) / "split-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return one


def test_what_all_checks_find_is_told_in_their_order(world: MakeWorld) -> None:
    with pytest.raises(ProblemsFoundError) as error:
        spoiled(world).check()
    assert [type(problem) for problem in error.value.problems] == [
        MissingRankError,
        ReplicaMismatchError,
        NonFiniteError,
        CorruptFileError,
    ]


def test_a_gate_hides_what_would_only_repeat_it(world: MakeWorld) -> None:
    with pytest.raises(MismatchError):
        spoiled(world, architecture="LlamaForCausalLM").check()


def test_a_check_more_is_a_line_in_the_list(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def remark(case: Any) -> Findings:
        return Findings(warnings=(f"{len(case.ledger.heads)} ranks",))

    one = world(Topology(tp=2)).write()
    monkeypatch.setattr(proof, "CHECKS", (*proof.CHECKS, remark))
    assert proof.prove(Asked([one.dump], one.reference)).warnings == ("2 ranks",)
    monkeypatch.setattr(proof, "GATES", (*proof.GATES, remark))
    assert proof.prove(Asked([one.dump], one.reference)).warnings == ("2 ranks", "2 ranks")
