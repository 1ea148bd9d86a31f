"""Checkpoints that transformers wrote, once per session: the independent expectation of phase one's tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.families import FAMILIES


@dataclass(frozen=True, slots=True)
class References:
    """Hugging Face directories by the name of a family."""

    folder: Path

    def weights(self, name: str) -> Path:
        """With weights and config.json."""
        return self.folder / name

    def config(self, name: str) -> Path:
        """Without weights: config.json is all that a reference must hold."""
        return self.edited(name)

    def edited(self, name: str, **changes: object) -> Path:
        """The same with other entries in config.json."""
        config = json.loads((self.weights(name) / "config.json").read_text()) | changes
        label = "-".join(f"{key}={value}" for key, value in changes.items()) or "as-it-is"
        path = self.folder / f"{name}-{label}"
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(config))
        return path


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    """`references.config("llama")`: a reference without weights.

    All are written at once: transformers asks torch.distributed who saves, and a fake world answers for others.
    """
    folder = tmp_path_factory.mktemp("references")
    for family in FAMILIES:
        write_hf_checkpoint(family, folder / family.name)
    return References(folder)
