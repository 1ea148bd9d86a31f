"""The kernel is asked to read ahead what a chunk holds, and no more."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from shardmerge.phase1_dump.checkpoint.chunk_files import ChunkFiles
from shardmerge.phase1_dump.torch_dist.chunks import Chunk


@pytest.mark.parametrize(("shape", "asked"), [((4, 6), [96]), ((0, 6), [])])
def test_an_empty_chunk_is_not_read_ahead_to_the_end_of_its_file(
    shape: tuple[int, ...], asked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To posix_fadvise a length of 0 means all that follows."""
    torch.save(torch.zeros(shape), tmp_path / "one")
    length = (tmp_path / "one").stat().st_size
    lengths: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _file, _begin, length, _advice: lengths.append(length))
    table = SimpleNamespace(keys=("key",), dtypes=("F32",))
    files = ChunkFiles(cast(Any, SimpleNamespace(path=tmp_path)), cast(Any, table), {})
    assert files._opened(0, Chunk((0, 0), shape, "one", 0, length)).tensor.shape == shape
    files.close()
    assert lengths == asked
