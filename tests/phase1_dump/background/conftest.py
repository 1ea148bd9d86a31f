"""A model of one rank and its reference, for every dump beside training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from megatron.core.models.gpt.gpt_model import GPTModel

from tests.phase1_dump.conftest import References
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE


@pytest.fixture
def model() -> Iterator[GPTModel]:
    """The model, in a world of its rank alone."""
    with fake_world(SINGLE, 0):
        yield build_model(by_name("qwen3_moe"), SINGLE)[0]


@pytest.fixture
def reference(references: References) -> Path:
    """Its reference, without weights."""
    return references.config("qwen3_moe")
