"""docs/inside/consolidation.md tells what torch's consolidator does, and shardmerge names every fault in it."""

from __future__ import annotations

import re

import pytest

from tests.faults.real.consolidator import CONTROL, TENSOR, Row, document, rows, version
from tests.generate_docs import CONSOLIDATION

DONE = "every byte is right"
MIDDLE, LAST = "a middle piece is missing", "the last piece is missing"
OVERLAP, BYTES = "two pieces overlap, and their bytes differ", "the tensors are uint8, as packed weights are"
NO_FAULT = f"merged; {DONE}"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    return {row.fault: row for row in rows(tmp_path_factory.mktemp("consolidator"))}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (CONTROL, NO_FAULT),
        (MIDDLE, f"exit 3, UncoveredTensorError: {TENSOR} [12, 8] is not whole: [3:6, 0:8] missing"),
        (LAST, f"exit 3, UncoveredTensorError: {TENSOR} [12, 8] is not whole: [9:12, 0:8] missing"),
        (OVERLAP, f"exit 4, OverlapError: {TENSOR} is covered twice: [0:4, 0:8] and [2:6, 0:8], by ranks 0, 1"),
        (BYTES, NO_FAULT),
    ],
    ids=lambda value: value if len(value) < 50 else "",
)  # fmt: skip
def test_shardmerge_names_every_fault_and_merges_bytes(found: dict[str, Row], fault: str, says: str) -> None:
    assert found[fault].shardmerge.startswith(says)


def test_the_consolidator_merges_what_has_no_fault(found: dict[str, Row]) -> None:
    """So that its input is what it expects, and what it does with the others is its own doing."""
    assert found[CONTROL].consolidator == f"says done; {DONE}"


def test_the_table_is_what_the_consolidator_of_its_torch_does(found: dict[str, Row]) -> None:
    text = CONSOLIDATION.read_text()
    told = re.search(r"\btorch ([0-9.]+),", text)
    assert told
    here = document().replace(
        f"torch {version()},", f"torch {told[1]},"
    )  # it does the same in both that are tested
    assert text == here, "consolidation.md is stale: run make docs"
    assert {fault: row.consolidator.partition(":")[0] for fault, row in found.items()} == {
        CONTROL: "says done; every byte is right",
        MIDDLE: "says done; 24 of 96 elements are zero",
        LAST: "says done; the tensor is [9, 8], it was [12, 8]",
        OVERLAP: "says done; 8 of 96 elements are wrong",
        BYTES: "stops with TypeError",
    }
