"""Fragments that somebody writes into while they are adopted."""

from __future__ import annotations

import mmap
import os
from typing import Any

import pytest

from shardmerge.common.errors import CorruptFileError
from shardmerge.phase2_merge.proof.checksums import check_bytes
from shardmerge.phase2_merge.shards import adopted_bytes
from tests.dumps.worlds import MakeWorld


def test_a_write_through_a_mapping_whose_page_was_dirty_is_seen(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel changes the times of a file when a clean page of a mapping is written to, and only then."""
    one = world().write()
    file = os.open(one.rank(0) / "whole-00001.safetensors", os.O_RDWR)
    with mmap.mmap(file, 0) as mapped:
        mapped[-1] = mapped[-1]  # a dirty page; its times have changed before the merge begins

        def write_after(*given: Any) -> Any:
            found = check_bytes(*given)
            mapped[-1] ^= 1
            return found

        monkeypatch.setattr(f"{adopted_bytes.__name__}.check_bytes", write_after)
        with pytest.raises(CorruptFileError):
            one.merge()
    os.close(file)
    assert not one.out.exists()
