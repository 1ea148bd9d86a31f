"""Findings of several checks become one, and allowed problems become its last warnings."""

from __future__ import annotations

from shardmerge.common.errors import Findings, NonFiniteError, OverlapError, ReplicaMismatchError

NAN = NonFiniteError("w", 1, 0, (0,))
REPLICA = ReplicaMismatchError("w", "[0:8]", 0, (1,))
OVERLAP = OverlapError("w", (0, 1), "here")


def test_findings_together_keep_the_order_of_the_checks() -> None:
    several = [Findings((OVERLAP,), ("a",)), Findings(), Findings((NAN, REPLICA), ("b", "c"))]
    assert Findings.together(several) == Findings((OVERLAP, NAN, REPLICA), ("a", "b", "c"))
    assert Findings.together([]) == Findings()


def test_allowed_problems_become_the_last_warnings() -> None:
    found = Findings((REPLICA, OVERLAP, NAN), ("first",)).allowing(["nan", "replicas"])
    assert found.problems == (OVERLAP,)
    assert found.warnings == ("first", f"{REPLICA.message()} (allowed)", f"{NAN.message()} (allowed)")


def test_what_is_not_allowed_stays_a_problem() -> None:
    assert Findings((NAN, REPLICA)).allowing(["replicas"]).problems == (NAN,)
    assert Findings((NAN, OVERLAP)).allowing([]) == Findings((NAN, OVERLAP))
