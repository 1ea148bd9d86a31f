"""Which tensors are taken from the reference instead of the dump, such as a vision tower that was not trained.

They become rows of the ledger, of REFERENCE_RANK, and are treated as all other rows from there. Their bytes are read
once, for their checksums; their numbers are never looked at.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import xxhash

from shardmerge.common import durable, regular_files
from shardmerge.common import reference as references
from shardmerge.common.errors import BadInputError
from shardmerge.common.errors.wording import counted
from shardmerge.common.manifest import FragmentFile, Placed
from shardmerge.common.rectangle import Rectangle
from shardmerge.common.reference import Reference, ReferenceTensor
from shardmerge.common.safetensors_header import Entry, Header

from ..disk.hashing import checksums

REFERENCE_RANK = -1  # in place of a rank, for what is grafted


@dataclass(frozen=True, slots=True)
class GraftedFile:
    """A file of the reference and what is taken from it. If it is taken `whole`, it may become a shard."""

    root: Path
    path: Path
    file: FragmentFile
    placed: tuple[Placed, ...]
    whole: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(placed.rectangle.name for placed in self.placed)


def graft(
    reference: Reference,
    patterns: Sequence[str],
    copies: Mapping[str, str],
    but: Container[str],
) -> tuple[GraftedFile, ...]:
    """Find the files of the reference that hold tensors of these names, and read the bytes of these tensors once.

    Args:
        reference: Where they are taken from.
        patterns: Names, in which `*`, `?` and `[...]` mean what they mean in file names; each fits (`require_fitting`).
        copies: Names of tensors that the merge itself makes of others, and the names of these. None is taken.
        but: Names of tensors that are not taken, whatever the patterns say.

    Returns:
        The files, and what is taken of each.

    Raises:
        CorruptFileError, OSError: The reference cannot be read.
    """
    if not patterns:
        return ()
    paths = references.weight_files(reference.path)
    headers = [(path, references.read_header(path, reference.path)) for path in paths]
    wanted = ((path, header, _matching(header, patterns, (copies, but))) for path, header in headers)
    files = [file for file in wanted if file[2]]
    return tuple(_grafted(reference.path, number, *file) for number, file in enumerate(files))


def tensors(files: Iterable[GraftedFile]) -> dict[str, ReferenceTensor]:
    """Return dtype and shape of everything that is grafted, by name."""
    rectangles = (placed.rectangle for file in files for placed in file.placed)
    return {one.name: ReferenceTensor(one.dtype, one.global_shape) for one in rectangles}


def require_fitting(reference: Reference, patterns: Sequence[str], copies: Mapping[str, str]) -> None:
    """Require that every pattern takes something. No bytes are read.

    Args:
        reference: Where tensors are taken from.
        patterns: Names, in which `*`, `?` and `[...]` mean what they mean in file names.
        copies: Names of tensors that the merge itself makes of others, and the names of these.

    Raises:
        BadInputError: No tensor's name fits a pattern, or only those of copies do.
    """
    for pattern in patterns:
        _require_one(pattern, reference, copies)


def _require_one(pattern: str, reference: Reference, copies: Mapping[str, str]) -> None:
    fitting = [name for name in reference.tensors if fnmatchcase(name, pattern)]
    if not fitting:
        held = (
            f"holds {counted(len(reference.tensors), 'tensor')}" if reference.tensors else "holds no weights"
        )
        raise BadInputError(
            f"--graft {pattern}: {reference.path} {held}, none of that name",
            "Give a reference with weights, and a name of them or a pattern such as 'model.visual.*'.",
        )
    if all(name in copies for name in fitting):
        source = copies[fitting[0]]
        raise BadInputError(
            f"--graft {pattern} fits only copies: {fitting[0]} is {source} once more, and the merge writes it itself",
            f"Leave the pattern away, or graft {source} if no rank holds that.",
        )


def _matching(header: Header, patterns: Sequence[str], but: Sequence[Container[str]]) -> list[Entry]:
    fitting = (entry for entry in header.entries if any(fnmatchcase(entry.name, each) for each in patterns))
    return [entry for entry in fitting if not any(entry.name in names for names in but)]


def _grafted(root: Path, number: int, path: Path, header: Header, entries: list[Entry]) -> GraftedFile:
    """Return what is taken of a file, the `number`-th of those that are grafted, with checksums of its bytes."""
    spans = [(header.data_offset + entry.begin, header.data_offset + entry.end) for entry in entries]
    digests = checksums(path, spans, lambda _: None)
    placed = tuple(
        Placed(_entire(entry), number, *span, REFERENCE_RANK, digest)
        for entry, span, digest in zip(entries, spans, digests, strict=True)
    )
    with durable.naming(path), open(regular_files.open_for_reading(path, root), "rb") as file:
        prefix = file.read(header.data_offset)
    facts = FragmentFile(path.name, header.file_bytes, len(prefix), xxhash.xxh3_128_hexdigest(prefix))
    whole = len(entries) == len(header.entries) and header.metadata.get("format") == "pt"
    return GraftedFile(root, path, facts, placed, whole)


def _entire(entry: Entry) -> Rectangle:
    return Rectangle(entry.name, entry.dtype, entry.shape, (0,) * len(entry.shape), entry.shape)
