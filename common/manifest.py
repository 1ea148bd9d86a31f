"""The manifest of a rank: what it wrote, and everything that phase two will ever know about the rank.

It is the mark that a rank is complete, is never edited, and ends with a digest of itself. Rectangles stand in
flat columns of equal length, because ten million of them must be read in seconds; the schema is published in
docs/reference/manifest.schema.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import xxhash

from . import canonical_json, plausible_sizes, regular_files
from .errors import BadInputError, CorruptManifestError, printable
from .manifest_facts import Facts, Health, QuantizationFacts
from .rectangle import Rectangle
from .reference import stays_inside
from .safetensors_header import MAX_HEADER_BYTES

FORMAT = "shardmerge-manifest"
SCHEMA_VERSION = 1
MAX_DIMS = 5
MAX_WORLD_SIZE = 1_000_000
MAX_BYTES = 1 << 62  # of a file
NOT_WRITTEN = -1
# parallel axes in the order of messages, in which a later one often repeats an earlier one
AXES = ("pp", "tp", "cp", "ep", "etp", "dp", "edp")
# what stands in a dimension that a rectangle lacks
ABSENT = {"global_shape": 1, "local_shape": 1, "global_offset": 0}
OBJECTS = ("coordinates", "groups", "facts", "health", "quantization", "drops", "statistics", "producer")
_DIGEST_KEY = b',"xxh3_128":"'
_DIGEST_BYTES = 32 + len(b'"}\n')

Json = Any


@dataclass(frozen=True, slots=True)
class FragmentFile:
    """One fragment beside the manifest: name, size, and the size and xxh3_128 of everything before its data.

    That is the eight length bytes and the header, padding included.
    """

    name: str
    num_bytes: int
    header_bytes: int
    header_xxh3_128: str


@dataclass(frozen=True, slots=True)
class Placed:
    """A rectangle and where its bytes lie: `begin` and `end` count from the start of the file."""

    rectangle: Rectangle
    file: int
    begin: int
    end: int
    owner: int
    xxh3_128: str


@dataclass(frozen=True, slots=True)
class Columns:
    """Rectangles as columns of equal length. `name` and `dtype` index the manifest's lists, `file` its files.

    Dimensions a rectangle lacks hold global 1, shape 1, offset 0. `file` is -1 for a rectangle that this rank
    holds and `owner`, another rank, wrote.
    """

    name: list[int]
    file: list[int]
    dtype: list[int]
    ndim: list[int]
    global_shape: list[list[int]]  # one list per dimension
    local_shape: list[list[int]]
    global_offset: list[list[int]]
    begin: list[int]
    end: list[int]
    owner: list[int]
    xxh3_128: list[str]

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True, slots=True)
class Manifest:
    """All facts of one rank. `coordinates` and `groups` are by axis, one of AXES.

    `quantization` is None if nothing that this rank holds is quantized, which is an empty object on disk.
    """

    run_id: str
    step: int | None
    attempt: str
    rank: int
    world_size: int
    coordinates: dict[str, int]
    groups: dict[str, list[int]]
    architecture: str
    facts: Facts
    files: tuple[FragmentFile, ...]
    names: list[str]
    dtypes: list[str]
    columns: Columns
    health: Health = field(default_factory=Health)
    quantization: QuantizationFacts | None = None
    drops: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, Json] = field(default_factory=dict)
    producer: dict[str, str] = field(default_factory=dict)

    def placed(self) -> Iterator[Placed]:
        """Yield the rectangles as objects, for messages and small dumps. The ledger reads columns."""
        c = self.columns
        for i, ndim in enumerate(c.ndim):
            shapes = (
                tuple(dim[i] for dim in dims[:ndim])
                for dims in (c.global_shape, c.global_offset, c.local_shape)
            )
            rectangle = Rectangle(self.names[c.name[i]], self.dtypes[c.dtype[i]], *shapes)
            yield Placed(rectangle, c.file[i], c.begin[i], c.end[i], c.owner[i], c.xxh3_128[i])


def columns(placed: Sequence[Placed]) -> tuple[list[str], list[str], Columns]:
    """Return (names, dtypes, columns) of these rectangles, in this order."""
    names, dtypes = _index(p.rectangle.name for p in placed), _index(p.rectangle.dtype for p in placed)
    dims = range(max((len(p.rectangle.global_shape) for p in placed), default=1))
    if len(dims) > MAX_DIMS:
        raise BadInputError(f"a tensor of {len(dims)} dimensions", f"Manifests hold up to {MAX_DIMS}.")
    boxes = {
        field_name: [[_size(getattr(p.rectangle, field_name), dim, absent) for p in placed] for dim in dims]
        for field_name, absent in ABSENT.items()
    }
    filled = Columns(
        name=[names[p.rectangle.name] for p in placed],
        file=[p.file for p in placed],
        dtype=[dtypes[p.rectangle.dtype] for p in placed],
        ndim=[len(p.rectangle.global_shape) for p in placed],
        **boxes,
        begin=[p.begin for p in placed],
        end=[p.end for p in placed],
        owner=[p.owner for p in placed],
        xxh3_128=[p.xxh3_128 for p in placed],
    )
    return list(names), list(dtypes), filled


def encode(manifest: Manifest) -> bytes:
    """Return canonical JSON that ends with the digest of everything before it."""
    value = {"format": FORMAT, "schema_version": SCHEMA_VERSION} | _by_field(manifest)
    value |= {"files": [_by_field(file) for file in manifest.files], "columns": _by_field(manifest.columns)}
    value |= {"facts": manifest.facts.as_json(), "health": manifest.health.as_json()}
    value |= {"quantization": manifest.quantization.as_json() if manifest.quantization else {}}
    body = canonical_json.encode(value)[:-2]
    return body + _DIGEST_KEY + xxhash.xxh3_128_hexdigest(body).encode() + b'"}\n'


def read(path: Path) -> Manifest:
    """Parse and validate a manifest. Raises CorruptManifestError naming the reason, CorruptFileError, OSError.

    The columns are not judged here: phase two judges those of many ranks together, in `ledger/columns`.
    """
    return of_json(parsed(content(path, path.parent), path), path)


def content(path: Path, dump: Path) -> bytes:
    """Return the bytes of a manifest of the folder `dump`.

    Raises CorruptFileError if it is not a regular file, is too large, or lies outside of the dump. OSError.
    """
    return regular_files.read(path, dump, plausible_sizes.MANIFEST.limit(path, path.parent))


def parsed(
    data: bytes, path: Path, parse: Callable[[bytes], Json] = canonical_json.decode
) -> dict[str, Json]:
    """Return the JSON object in the bytes of a manifest that is not damaged.

    Args:
        data: all bytes of the file.
        path: where they were read, for the message.
        parse: any parser that refuses what canonical_json refuses.

    Returns:
        The JSON object. Its values are not validated yet.

    Raises:
        CorruptManifestError: it is not a manifest, of another schema, edited or damaged.
    """
    try:
        value = parse(data)
        require(isinstance(value, dict) and value.get("format") == FORMAT, "it is not a shardmerge manifest")
        version = value.get("schema_version")
        require(
            version == SCHEMA_VERSION, f"schema_version {version}, this shardmerge reads {SCHEMA_VERSION}"
        )
        require(_digest_fits(data), "its digest does not fit its content (edited or damaged)")
    except (ValueError, TypeError) as error:
        raise CorruptManifestError(str(path), str(error) or type(error).__name__) from None
    document: dict[str, Json] = value
    return document


def of_json(value: dict[str, Json], path: Path) -> Manifest:
    """Return the manifest that this JSON object is. Raises CorruptManifestError."""
    try:
        return _manifest(value)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptManifestError(str(path), str(error) or type(error).__name__) from None


def head(value: dict[str, Json], path: Path) -> Manifest:
    """Return the manifest that this JSON object is, without `names` and `columns`, which are not looked at.

    Raises CorruptManifestError.
    """
    return of_json(value | {"names": [], "columns": _by_field(columns([])[2])}, path)


def _by_field(value: Manifest | Columns | FragmentFile) -> dict[str, Json]:
    """Return what dataclasses.asdict returns, without copying columns of millions of rows."""
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _digest_fits(data: bytes) -> bool:
    body = memoryview(data)[: -_DIGEST_BYTES - len(_DIGEST_KEY)]
    return data[len(body) :] == _DIGEST_KEY + xxhash.xxh3_128_hexdigest(body).encode() + b'"}\n'


def _manifest(value: dict[str, Json]) -> Manifest:
    given = {f.name: value[f.name] for f in fields(Manifest)}
    files = tuple(FragmentFile(**file) for file in given["files"])
    require(
        all(type(given[name]) is dict for name in OBJECTS),
        "coordinates, groups, facts and the like must be objects",
    )
    # ValueError for NaN, which equals nothing, for text that cannot be encoded, and for what is too deep
    canonical_json.encode([given["facts"], given["drops"]])
    quantization = given["quantization"]
    manifest = Manifest(
        **given
        | {"files": files, "columns": Columns(**given["columns"])}
        | {"facts": Facts.of_json(given["facts"]), "health": Health.of_json(given["health"])}
        | {"quantization": QuantizationFacts.of_json(quantization) if quantization else None}
    )
    _check_head(manifest)
    return manifest


def _check_head(m: Manifest) -> None:
    """Raise ValueError for what no rank would write. Whatever becomes an array or a message later is bounded here."""
    require(all(type(n) is int for n in (m.rank, m.world_size)), "rank and world_size must be integers")
    require(0 <= m.rank < m.world_size <= MAX_WORLD_SIZE, f"rank {m.rank} of {m.world_size}")
    require(type(m.run_id) is str and type(m.attempt) is str, "run_id and attempt must be strings")
    require(m.step is None or (type(m.step) is int and abs(m.step) < MAX_BYTES), "step must be an integer")
    require(type(m.architecture) is str, "architecture must be a string")
    require(
        all(type(count) is int and 0 <= count < MAX_BYTES for count in m.drops.values()),
        "drops must be counts",
    )
    shown = (
        m.run_id,
        m.attempt,
        m.architecture,
        *m.drops,
        *m.coordinates,
        *m.groups,
        *(m.facts.dimensions or ()),
    )
    require(printable.is_printable(shown), "a name in it cannot be printed")
    _check_ranks(m)
    for file in m.files:
        _check_file(file)


def _check_ranks(m: Manifest) -> None:
    """Raise ValueError unless coordinates and groups are of ranks in this world."""
    for axis, coordinate in m.coordinates.items():
        require(type(coordinate) is int, "coordinates must be integers")
        require(0 <= coordinate < m.world_size, f"coordinate {axis}")
    for axis, group in m.groups.items():
        require(
            isinstance(group, list)
            and set(map(type, group)) <= {int}
            and (not group or 0 <= min(group) <= max(group) < m.world_size),
            f"group {axis}",
        )


def _check_file(file: FragmentFile) -> None:
    """Raise ValueError unless it names a file beside the manifest, and its sizes can be those of a fragment."""
    plausible = type(file.name) is str and "/" not in file.name and stays_inside(file.name)
    require(plausible, f"file name {file.name!r:.60}")
    require(all(type(n) is int for n in (file.num_bytes, file.header_bytes)), f"sizes of {file.name}")
    require(
        0 <= file.num_bytes < MAX_BYTES and 0 <= file.header_bytes <= 8 + MAX_HEADER_BYTES,
        f"sizes of {file.name}",
    )
    require(type(file.header_xxh3_128) is str, f"checksum of {file.name}")


def require(holds: bool, reason: str) -> None:
    """Raise ValueError if something does not hold."""
    if not holds:
        raise ValueError(reason)


def _index(values: Iterator[str]) -> dict[str, int]:
    return {value: i for i, value in enumerate(dict.fromkeys(values))}


def _size(shape: tuple[int, ...], dim: int, missing: int) -> int:
    return shape[dim] if dim < len(shape) else missing
