"""One rank's directory: its final name means complete, whatever happens on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.errors import MissingConfigError, OutputExistsError
from shardmerge.phase1_dump import dump
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import GENERATION, dumped
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE


@pytest.fixture
def model() -> Iterator[GPTModel]:
    with fake_world(SINGLE, 0):
        yield build_model(by_name("llama"), SINGLE)[0]


def test_a_rank_dumped_before_is_refused_and_not_called_failed(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    dumped(model, tmp_path, references.config("llama"))

    with pytest.raises(OutputExistsError):
        dumped(model, tmp_path, references.config("llama"))

    assert (
        dump(model, tmp_path, hf_reference=references.config("llama"), on_error="record", **GENERATION)
        is None
    )
    assert [path.name for path in tmp_path.iterdir()] == ["rank-00000"]


def test_a_failure_that_cannot_be_recorded_hides_nothing(model: GPTModel, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, where the dump's folder should be")

    with pytest.raises(MissingConfigError) as caught:
        dump(model, tmp_path / "out", hf_reference=tmp_path, **GENERATION)

    assert any("rank-00000.failed.json could not be written" in note for note in caught.value.__notes__)
    assert dump(model, tmp_path / "out", hf_reference=tmp_path, on_error="record", **GENERATION) is None


def test_a_dump_that_succeeds_forgets_the_failure_before_it(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    assert dump(model, tmp_path, hf_reference=tmp_path, on_error="record", **GENERATION) is None
    assert (tmp_path / "rank-00000.failed.json").exists()

    dumped(model, tmp_path, references.config("llama"))

    assert [path.name for path in tmp_path.iterdir()] == ["rank-00000"]


def test_everything_is_durable_before_it_has_its_final_name(
    model: GPTModel, references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own order of fsync and rename, by path."""
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(file: int) -> None:
        events.append(("fsync", _named(Path(f"/proc/self/fd/{file}").readlink())))
        fsync(file)

    def recorded_rename(old: Path, new: Path) -> None:
        events.append(("rename", _named(Path(new))))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    out = tmp_path / "above" / "out"
    dumped(model, out, references.config("llama"))

    at = {event: number for number, event in enumerate(events)}
    final = at["rename", "out/rank-00000"]
    files = [path.name for path in (out / "rank-00000").glob("*.safetensors")]
    assert files
    assert all(
        at["fsync", f"partial/rank-00000/{name}"] < at["rename", "partial/rank-00000/manifest.json"]
        for name in files
    )
    manifest, folder = at["rename", "partial/rank-00000/manifest.json"], at["fsync", "partial/rank-00000"]
    assert manifest < folder < final < at["fsync", "out"]
    assert at["fsync", tmp_path.name] < final  # which holds the name `above`
    assert at["fsync", "above"] < final


def _named(path: Path) -> str:
    """A path from the folder of the attempt on, or from the dump on; only its name above that."""
    for part in path.parents:
        if part.suffix == ".partial":
            return str(Path("partial") / path.relative_to(part))
        if part.name == "out":
            return str(Path("out") / path.relative_to(part))
    return path.name
