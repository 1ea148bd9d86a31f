"""Changes what a rank wrote, consistently: fragments, headers, checksums and manifest agree again afterwards.

So that what is refused is the fault itself and not its traces. Files are written by the safetensors library. Must
not know what a merge looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from shardmerge.common import manifest as manifests
from shardmerge.common.manifest import Placed
from shardmerge.common.manifest_facts import Health
from shardmerge.common.places import MANIFEST
from shardmerge.common.rectangle import Rectangle
from tests.dumps.dumps import file_facts, save


@dataclass(frozen=True, slots=True)
class Written:
    """A rectangle and its bytes."""

    rectangle: Rectangle
    data: bytes


Change = Callable[[Written], Iterable[Written]]


def rewrite(rank: Path, change: Change) -> None:
    """Replace every rectangle of a rank's directory by what `change` makes of it: nothing, one, or several."""
    path = rank / MANIFEST
    before = manifests.read(path)
    after = [one for written in _read(rank, before) for one in change(written)]
    for file in before.files:
        (rank / file.name).unlink()
    placed: list[Placed] = []
    names: list[str] = []
    for name, whole in (("whole-00001.safetensors", True), ("split-00001.safetensors", False)):
        members = [one for one in after if one.rectangle.is_whole is whole]
        if members:
            placed += _write(rank / name, len(names), members, before.rank)
            names.append(name)
    listed, dtypes, columns = manifests.columns(placed)
    files = tuple(file_facts(rank / name) for name in names)
    changed = replace(before, names=listed, dtypes=dtypes, columns=columns, files=files, health=Health())
    path.write_bytes(manifests.encode(changed))


def _read(rank: Path, manifest: manifests.Manifest) -> Iterator[Written]:
    contents = [(rank / file.name).read_bytes() for file in manifest.files]
    for one in manifest.placed():
        yield Written(one.rectangle, contents[one.file][one.begin : one.end])


def _write(path: Path, number: int, members: list[Written], rank: int) -> Iterator[Placed]:
    """Keys carry a number: a faulty rank may hold the same rectangle twice."""
    keyed = {_key(one.rectangle, at): one for at, one in enumerate(members)}
    save(path, {key: (o.rectangle.dtype, o.rectangle.local_shape, o.data) for key, o in keyed.items()})
    found = {entry.name: entry for entry in _entries(path)}
    start = file_facts(path).header_bytes
    for key, one in sorted(keyed.items(), key=lambda item: found[item[0]].begin):
        entry = found[key]
        digest = xxhash.xxh3_128_hexdigest(one.data)
        yield Placed(one.rectangle, number, start + entry.begin, start + entry.end, rank, digest)


def _key(rectangle: Rectangle, at: int) -> str:
    return rectangle.name if rectangle.is_whole else f"{rectangle.fragment_key}#{at}"


def _entries(path: Path) -> Iterable[manifests.Json]:
    from shardmerge.common import safetensors_header

    return safetensors_header.read(path).entries
