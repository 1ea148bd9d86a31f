"""Puts back defects that this project had, one at a time: the torture finds each. Without them it finds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.test_sample import SEED, findings, needs_compiler, torture

pytestmark = needs_compiler

# defect: (scene where it shows, what kind of finding it is, points that are tried)
SHOWS = {
    "failed-merge-removes": ("merge-resume", "lost", 40),
    "finalize-forgets-parts": ("finalize", "blocked", 40),
    "metadata-without-lock": ("metadata+metadata", "wrong", 60),
    "ended-owners-block": ("merge-adopt", "blocked", 40),
    "verified-before-linked": ("merge+person", "wrong", 240),
}
SHOWS_WITHOUT_POWER = {
    "adopted-not-synced": ("merge-adopt-unsynced", "wrong"),
    "renamed-before-synced": ("merge-canonical", "lost"),
}
POINTS_WITHOUT_POWER = 60


@pytest.mark.parametrize("defect", SHOWS)
def test_a_defect_that_is_put_back_is_found(tmp_path: Path, defect: str) -> None:
    scene, kind, points = SHOWS[defect]
    given = ("--only", f"{scene}:", "--sample", points, "--seed", SEED)
    results = torture(tmp_path, *given, "--defect", defect)
    assert kind in {result.kind for result in findings(results).values()}


@pytest.mark.reflink
@pytest.mark.parametrize("defect", SHOWS_WITHOUT_POWER)
def test_a_defect_that_shows_when_power_is_lost_is_found(tmp_path: Path, defect: str) -> None:
    scene, kind = SHOWS_WITHOUT_POWER[defect]
    given = ("--only", f"{scene}@ext4:", "--power", "ext4", "--sample", POINTS_WITHOUT_POWER, "--seed", SEED)
    results = torture(tmp_path, *given, "--defect", defect)
    assert kind in {result.kind for result in findings(results).values()}
