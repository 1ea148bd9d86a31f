"""What the other tests spoil is whole before they do: otherwise they would prove nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardmerge.phase2_merge import check
from tests.faults.real.conftest import Victim


@pytest.mark.parametrize("name", ["experts", "pieces", "one_stage"])
def test_dumps_are_whole_before_they_are_spoiled(victim: Callable[[str], Victim], name: str) -> None:
    one = victim(name)
    (warning,) = check([one.dump], hf_reference=one.reference).warnings
    assert warning.startswith("no tokenizer is beside config.json")


@pytest.mark.parametrize("name", ["experts", "pieces"])
def test_rewriting_without_a_change_spoils_nothing(victim: Callable[[str], Victim], name: str) -> None:
    one = victim(name)
    before = check([one.dump], hf_reference=one.reference)
    one.rewrite(range(4), lambda written: [written])
    after = check([one.dump], hf_reference=one.reference)
    assert (after.num_rectangles, after.total_bytes) == (before.num_rectangles, before.total_bytes)
