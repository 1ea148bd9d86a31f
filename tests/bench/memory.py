"""Memory of a merge whose tensors are far larger than any buffer: of each worker, and of the parent beside them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.scale.models import Case

from .line import Line
from .making import filled, model, split
from .merging import MERGE, memory_line, merged
from .rounds import COLD, WARM, Contestant, remove, take_turns

VOCABULARY = 1 << 18  # embeddings of 1 GiB each


def lines(folder: Path) -> Iterator[Line]:
    """Warm and cold, once each: high-water marks do not scatter."""
    here = folder / "memory"
    case = Case("bench", model(0) | {"vocab_size": VOCABULARY, "num_hidden_layers": 1}, split(8))
    made = filled(case, here)
    contestants = {MERGE: Contestant(made.dump, partial(merged, made))}
    for cache in (WARM, COLD):
        turns = take_turns(cache, here, contestants, rounds=1)
        yield memory_line("merge of tensors of 1 GiB, TP 8", cache, turns)
    remove(here)
