"""Files that were damaged, swapped or edited after they were written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from shardmerge.common.errors import CorruptFileError, CorruptManifestError, ProblemsFoundError
from tests.dumps.refusals import edit
from tests.faults.real.conftest import Victim

Make = Callable[[str], Victim]
SPLIT = "split-00001.safetensors"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "size"),
    [(lambda data: data[:-7], -7), (lambda data: data + b"12345", 5)],
    ids=["truncated", "longer than its header"],
)
def test_file_of_another_size_names_rank_and_both_sizes(
    victim: Make, change: Callable[[bytes], bytes], size: int
) -> None:
    one = victim("pieces")
    path = one.rank(2) / SPLIT
    before = path.stat().st_size
    path.write_bytes(change(path.read_bytes()))
    error = one.refused(CorruptFileError, 4)
    assert (error.path, error.rank) == (str(path), 2)
    assert error.reason == f"it has {before + size:,} bytes, the manifest says {before:,}"


def test_one_flipped_bit_in_data_names_the_tensor_its_place_and_the_rank(victim: Make) -> None:
    one = victim("pieces")
    manifest = json.loads((one.rank(1) / "manifest.json").read_bytes())
    columns = manifest["columns"]
    row = columns["name"].index(manifest["names"].index("model.layers.1.mlp.down_proj.weight"))
    flip(one.rank(1) / SPLIT, columns["begin"][row] + 9)
    error = one.refused(CorruptFileError, 4)
    assert (error.path, error.rank) == (str(one.rank(1) / SPLIT), 1)
    assert "model.layers.1.mlp.down_proj.weight [0:72, 28:56]" in error.reason


def test_one_flipped_bit_in_a_header_names_the_file_and_the_rank(victim: Make) -> None:
    one = victim("pieces")
    path = one.rank(3) / SPLIT
    flip(path, path.read_bytes().index(b'"BF16"') + 1)
    error = one.refused(CorruptFileError, 4)
    assert (error.path, error.rank) == (str(path), 3)
    assert "its header is not the one that the manifest describes" in error.reason


def test_one_flipped_bit_in_a_manifest_names_it(victim: Make) -> None:
    one = victim("pieces")
    path = one.rank(1) / "manifest.json"
    flip(path, path.read_bytes().index(b'"begin":[') + len(b'"begin":['))
    error = one.refused(CorruptManifestError, 4)
    assert error.path == str(path)
    assert "digest does not fit" in error.reason


def test_manifest_edited_by_hand_is_refused_and_says_what_to_do(victim: Make) -> None:
    one = victim("pieces")
    path = one.rank(0) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"dtype":"BF16"', b'"dtype":"F16"'))
    error = one.refused(CorruptManifestError, 4)
    assert (error.path, error.reason) == (
        str(path),
        "its digest does not fit its content (edited or damaged)",
    )
    assert "take back the original, and correct a fact with --set facts.KEY=VALUE" in error.message()


def test_fragment_swapped_between_two_ranks_names_both(victim: Make) -> None:
    one = victim("pieces")
    first, second = one.rank(2) / SPLIT, one.rank(3) / SPLIT
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    found = one.refused(ProblemsFoundError, 4).problems
    assert [(type(error), error.path, error.rank) for error in found] == [
        (CorruptFileError, str(first), 2),
        (CorruptFileError, str(second), 3),
    ]


def test_duplicate_key_in_a_header_is_refused_though_the_digest_fits(victim: Make) -> None:
    """The safetensors library takes the last of two; which one was meant, nobody knows."""
    one = victim("pieces")
    path = one.rank(0) / "whole-00001.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    name, entry = next(item for item in json.loads(data[8:end]).items() if item[0] != "__metadata__")
    twice = b"{" + json.dumps({name: entry})[1:-1].encode() + b"," + data[9:end].rstrip()
    path.write_bytes(data[:8] + twice.ljust(end - 8) + data[end:])
    files = json.loads((one.rank(0) / "manifest.json").read_bytes())["files"]
    digest = xxhash.xxh3_128_hexdigest(path.read_bytes()[:end])
    edit(one.rank(0) / "manifest.json", files=[_with_digest(file, path.name, digest) for file in files])
    error = one.refused(CorruptFileError, 4)
    assert (error.path, error.rank) == (str(path), 0)
    assert f"key {name!r} occurs twice" in error.reason


def _with_digest(file: dict[str, object], name: str, digest: str) -> dict[str, object]:
    return file | {"header_xxh3_128": digest} if file["name"] == name else file


def test_duplicate_key_in_a_manifest_is_refused_though_the_digest_fits(victim: Make) -> None:
    one = victim("pieces")
    path = one.rank(1) / "manifest.json"
    body = path.read_bytes().replace(b'"step":100', b'"step":99,"step":100')
    body = body[: body.index(b',"xxh3_128":"', body.index(b'"world_size"'))]
    path.write_bytes(body + b',"xxh3_128":"' + xxhash.xxh3_128_hexdigest(body).encode() + b'"}\n')
    error = one.refused(CorruptManifestError, 4)
    assert (error.path, error.reason) == (str(path), "key 'step' occurs twice")
