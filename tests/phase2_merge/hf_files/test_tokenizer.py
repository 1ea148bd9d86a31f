"""What stands beside the shards: the tokenizer of the reference or of elsewhere, and what is strange about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shardmerge.common import reference
from shardmerge.common.command.group import main
from shardmerge.common.errors import BadInputError
from shardmerge.phase2_merge import merge, metadata
from tests.dumps.worlds import MakeWorld, World

NONE = "no tokenizer is beside config.json"
TEMPLATE = "additional_chat_templates/tools.jinja"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but shards, records and what a merge writes itself."""
    own = {"config.json", "model.safetensors"}
    return {
        name: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not (name := path.relative_to(folder).as_posix()).startswith(".") and name not in own
    }  # fmt: skip


def elsewhere(one: World) -> Path:
    """A directory with a tokenizer of its own, and with what is not a tokenizer's."""
    folder = one.folder / "elsewhere"
    (folder / TEMPLATE).parent.mkdir(parents=True)
    (folder / TEMPLATE).write_text("{{ tools }}")
    (folder / "additional_chat_templates" / "README.md").write_text("not a template")
    for name in ("tiktoken.model", "cl100k.tiktoken", "vocab.json", "generation_config.json", "config.json"):
        (folder / name).write_text(f'{{"it": "{name}"}}')
    return folder


def test_every_file_of_a_tokenizer_is_copied_and_listed(world: MakeWorld) -> None:
    one = world().write()
    for name in ("tiktoken.model", "x.tiktoken", "processor_config.json", "video_preprocessor_config.json"):
        (one.reference / name).write_text(name)
    (one.reference / TEMPLATE).parent.mkdir()
    (one.reference / TEMPLATE).write_text("{{ tools }}")
    report = one.merge()
    expected = bytes_of(one.reference)
    assert bytes_of(one.out) == expected
    assert {TEMPLATE, "tiktoken.model", "tokenizer.json"} < expected.keys()
    assert f"Beside the shards: config.json, {', '.join(sorted(expected))}." in report.text()
    assert report.check.warnings == ()


def test_a_tokenizer_from_elsewhere_replaces_all_of_the_references(world: MakeWorld) -> None:
    one = world().write()
    (one.reference / "generation_config.json").write_text('{"of": "the reference"}')
    folder = elsewhere(one)
    found = run("merge", one.dump, one.out, "--hf-reference", one.reference, "--tokenizer", folder)
    assert found.exit_code == 0
    own = {"tiktoken.model", "cl100k.tiktoken", "vocab.json", TEMPLATE}
    assert bytes_of(one.out) == {name: (folder / name).read_bytes() for name in own} | {
        "generation_config.json": b'{"of": "the reference"}'
    }
    metadata(one.out, hf_reference=one.reference)
    assert bytes_of(one.out) == bytes_of(one.reference)
    (one.reference / "added_tokens.json").write_text("{}")
    again = run("metadata", one.out, "--tokenizer", folder)
    assert again.exit_code == 0
    assert set(bytes_of(one.out)) == own | {"generation_config.json"}
    same = merge(one.dump, one.out, hf_reference=one.reference, tokenizer=folder)
    assert same.rewritten is not None
    assert set(bytes_of(one.out)) == own | {"generation_config.json"}


def test_chat_templates_that_an_interrupted_merge_left_are_not_published(world: MakeWorld) -> None:
    one = world().write()
    stale = one.folder / "out.partial" / "additional_chat_templates"
    stale.mkdir(parents=True)
    (stale / "old.jinja").write_text("old")
    (one.folder / "out.partial" / ".shardmerge").mkdir()
    one.merge()
    assert "additional_chat_templates/old.jinja" not in bytes_of(one.out)


@pytest.mark.parametrize("make", [False, True])
def test_a_directory_without_a_tokenizer_is_refused_before_the_work(world: MakeWorld, make: bool) -> None:
    one = world().write()
    if make:
        (one.folder / "nothing").mkdir()
        (one.folder / "nothing" / "generation_config.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"holds no file of a tokenizer|does not exist"):
        one.merge(tokenizer=one.folder / "nothing")
    assert not one.out.exists()
    assert not (one.folder / "out.partial").exists()


def test_a_reference_without_a_tokenizer_is_a_warning_everywhere(world: MakeWorld) -> None:
    one = world().write()
    (one.reference / "tokenizer.json").unlink()
    (one.reference / "chat_template.jinja").write_text("no tokenizer either")
    for arguments in (["check", one.dump], ["merge", one.dump, one.out]):
        found = run(*arguments, "--hf-reference", one.reference)
        assert (found.exit_code, f"Warning: {NONE}" in found.stdout) == (0, True)
    assert NONE in run("metadata", one.out, "--hf-reference", one.reference).stdout


@pytest.mark.parametrize(
    ("content", "highest"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 24}}, "added_tokens": []}, 24),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"id": 30, "content": "<x>"}]}, 30),
        ({"model": {"type": "Unigram", "vocab": [["t", 0.0]] * 26}}, 25),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 23}}, "added_tokens": [{"id": 22}]}, None),
        ({"model": 5, "added_tokens": 7}, None),
    ],
)
def test_ids_beyond_the_rows_of_the_embedding_are_a_warning(
    world: MakeWorld, content: object, highest: int | None
) -> None:
    """The embedding of this model has 24 rows."""
    one = world().write()
    (one.reference / "tokenizer.json").write_text(json.dumps(content))
    warnings = one.check().warnings
    expected = f"tokenizer.json has ids up to {highest}, the embedding only 24 rows: is it another model's?"
    assert warnings == ((expected,) if highest else ())


def test_a_quantization_that_the_dump_does_not_have_is_left_out_with_a_warning(world: MakeWorld) -> None:
    one = world().write()
    path = one.reference / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_bytes()) | {"quantization_config": {"quant_method": "fp8"}})
    )
    report = one.merge()
    assert "quantization_config" not in json.loads((one.out / "config.json").read_bytes())
    assert report.check.warnings == (
        "config.json of the reference declares a quantization (fp8), which the dump does not have: it is left out",
    )


# ---- an id of the Hub ----------------------------------------------------------------------------------------------


def cached(cache: Path, reference_folder: Path) -> None:
    """A model in a cache as huggingface_hub lays it out: blobs, and links to them in a snapshot."""
    model, commit = cache / "models--lab--Tiny-1B", "0123456789abcdef0123456789abcdef01234567"
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots" / commit).mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    for path in reference_folder.iterdir():
        (model / "blobs" / f"sha-{path.name}").write_bytes(path.read_bytes())
        (model / "snapshots" / commit / path.name).symlink_to(f"../../blobs/sha-{path.name}")


def test_an_id_in_the_cache_of_the_hub_is_found_and_another_is_told_how_to_get(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world().write()
    cache = one.folder / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    missing = run("merge", one.dump, one.out, "--hf-reference", "lab/Tiny-1B")
    assert missing.exit_code == 2
    assert "there is no directory lab/Tiny-1B" in missing.stderr
    assert "hf download lab/Tiny-1B --exclude '*.safetensors*'" in missing.stderr
    cached(cache, one.reference)
    from huggingface_hub import try_to_load_from_cache

    theirs = try_to_load_from_cache("lab/Tiny-1B", "config.json", cache_dir=cache)
    assert theirs == str(reference.located(Path("lab/Tiny-1B")) / "config.json")
    assert run("merge", one.dump, one.out, "--hf-reference", "lab/Tiny-1B").exit_code == 0
    assert bytes_of(one.out) == bytes_of(one.reference)
    assert run("metadata", one.out, "--hf-reference", "lab/Tiny-1B").exit_code == 0


def test_the_cache_is_where_huggingface_hub_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert str(reference.hub_cache({})) == str(Path("~/.cache/huggingface/hub").expanduser())
    assert str(reference.hub_cache({"HF_HOME": "/x"})) == "/x/hub"
    assert str(reference.hub_cache({"XDG_CACHE_HOME": "/y"})) == "/y/huggingface/hub"
    assert str(reference.hub_cache({"HF_HUB_CACHE": "/z", "HF_HOME": "/x"})) == "/z"
