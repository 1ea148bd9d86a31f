"""The readers of what lies in a torch_dist checkpoint, compared with Python's own where that can be trusted to read.

What we accept was read by nobody's pickle; then it is safe to let Python read it too, with names that mean nothing.
"""

from __future__ import annotations

import io
import pickle
import shutil
import zipfile
from random import Random
from typing import Any, Self, TypeAlias, cast

import xxhash

from shardmerge.common import reference
from shardmerge.common.errors import CorruptFileError
from shardmerge.common.rectangle import Shape
from shardmerge.phase1_dump import dump_checkpoint
from shardmerge.phase1_dump.checkpoint import contents_file, run_config
from shardmerge.phase1_dump.checkpoint.keys import is_of_the_model
from shardmerge.phase1_dump.checkpoint.plan import Options, read_contents
from shardmerge.phase1_dump.rectangles.bound_table import bound_table
from shardmerge.phase1_dump.torch_dist.archives import read_tensor
from shardmerge.phase1_dump.torch_dist.chunks import table_of
from shardmerge.phase1_dump.torch_dist.folder import find
from shardmerge.phase1_dump.torch_dist.metadata import Columns, Described, read_metadata
from shardmerge.phase1_dump.torch_dist.module_states import Place, StateReader, places_of
from shardmerge.phase1_dump.torch_dist.names import DTYPES
from shardmerge.phase2_merge import check
from tests.dumps import saved

from . import json_mutations
from .file_mutations import RAW, Blind, split
from .sound import Files, Sound
from .verdict import NotAllowedError, Read

IDENTITY = "0" * 32
BEFORE = 100  # bytes before an archive in its file
PLACE = ("relative_path", "offset", "length")
# by key the dtype, shape and chunks of a tensor; and the entries of files
Told: TypeAlias = tuple[dict[str, tuple[str, Shape, list[tuple[Shape, Shape]]]], set[tuple[Any, ...]]]


def metadata(sound: Sound) -> Read:
    """A `.metadata`, compared with what Python's unpickler makes of it."""
    del sound

    def read(data: bytes) -> object:
        found = read_metadata(lambda: cast(io.RawIOBase, io.BytesIO(data)), len(data), ".metadata")
        if (expected := by_python(data)) is not None and told(found) != expected:
            raise NotAllowedError("Python's unpickler reads something else")
        places_of(found, lambda _key: True)
        return table_of(found, is_of_the_model).files_of([0] if found.tensors else [])

    return read


def archive(sound: Sound) -> Read:
    """A chunk's archive; what is said of its numbers is compared with what zipfile reads."""
    del sound

    def read(data: bytes) -> object:
        whole = bytes(BEFORE) + data
        tensor = read_tensor(lambda count, at: whole[at : at + count], BEFORE, len(data), "__0_0.distcp")
        numbers = whole[tensor.begin : tensor.begin + tensor.num_bytes]
        if len(numbers) != tensor.num_bytes:
            raise NotAllowedError("numbers lie beyond the file")
        if tensor.crc32 and (expected := _by_zipfile(data)) is not None and numbers not in expected:
            raise NotAllowedError("zipfile finds other numbers")
        return tensor

    return read


def state(sound: Sound) -> Read:
    """What a module saved beside its parameters."""
    del sound

    def read(data: bytes) -> object:
        place = Place("__0_0.distcp", 0, len(data))
        return StateReader().read(lambda count, at: data[at : at + count], place, "a._extra_state")

    return read


def recorded(sound: Sound) -> Read:
    """A `run_config.yaml`."""
    folder = sound.folder / "recorded"
    folder.mkdir(exist_ok=True)

    def read(data: bytes) -> object:
        (folder / run_config.RUN_CONFIG).write_bytes(data)
        return run_config.recorded_in(folder, drop_mtp=False).why_not

    return read


def contents(sound: Sound) -> Read:
    """What one process wrote down of a description: whoever reads it finds every chunk, or takes it for nothing."""
    folder = sound.folder / "contents"
    folder.mkdir(exist_ok=True)

    def read(data: bytes) -> object:
        (folder / "file").write_bytes(data)
        found = contents_file.read(folder / "file", folder, IDENTITY)
        if found is None:
            raise CorruptFileError("file", "it is made anew")
        table = found.table
        for tensor, shape in enumerate(table.shapes):
            _ = list(table.touching(tensor, (0,) * len(shape), shape))
        return table.files_of(range(len(table.keys)))

    return read


def written_contents(sound: Sound) -> list[bytes]:
    """Return what is written down of the description of a sound checkpoint."""
    checkpoint, path = find(sound.saved / saved.ITERATION), sound.folder / "written"
    bound = bound_table(reference.read(sound.saved / "hf"), None, None)
    contents_file.write(path, read_contents(checkpoint, bound, Options()), IDENTITY)
    return [path.read_bytes()]


def mutated_contents(data: bytes, rng: Random, blind: Blind) -> bytes:
    """Change the head of such a file, or a number in it; lengths and the digest mostly fit again."""
    at = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < RAW or not 8 < at < len(data) - 16:
        return blind(data)
    head, numbers = data[8:at], bytearray(data[at:-16])
    if rng.random() < 0.5 or len(numbers) < 8:
        try:
            head = json_mutations.mutated(head, rng)
        except ValueError:
            return blind(data)
    else:
        begin = 8 * rng.randrange(len(numbers) // 8)
        value = rng.choice((*json_mutations.INTEGERS, rng.randrange(30))) % (1 << 64)
        numbers[begin : begin + 8] = value.to_bytes(8, "little")
    whole = len(head).to_bytes(8, "little") + head + numbers
    return whole + xxhash.xxh3_128_digest(whole)


def checkpoint_files(sound: Sound) -> Read:
    """A file of a checkpoint, for `dump --checkpoint`: it changes nothing there, and what it writes can be checked."""
    files = Files(sound.saved / saved.ITERATION)
    out, hf = sound.folder / "dumped", sound.saved / "hf"

    def read(data: bytes) -> object:
        name, content = split(data)
        if name not in files.sound:
            return None
        try:
            with files.holding(name, content) as folder:
                dumped = dump_checkpoint(
                    folder, out, hf_reference=hf, run_id="fuzz", max_share_bytes=8_000, patience=0.0
                )
                check([out], hf_reference=hf)
                return dumped
        finally:
            shutil.rmtree(out, ignore_errors=True)

    return read


def told(found: Described) -> Told:
    """Return what was read of a `.metadata`, as plain values."""
    columns: Columns = found.columns
    shapes, keys, paths = columns.shapes.values(), columns.keys.values(), columns.paths.values()
    each = zip(columns.key, columns.offset, columns.path, columns.begin, columns.length, strict=True)
    entries = {
        (keys[key], None if offset < 0 else shapes[offset], paths[path], begin, length)
        for key, offset, path, begin, length in each
    }
    boxes = [
        (shapes[offset], shapes[size])
        for offset, size in zip(columns.chunk_offset, columns.chunk_size, strict=True)
    ]
    tensors = {
        key: (row.dtype, row.shape, [boxes[chunk] for chunk in row.chunks])
        for key, row in found.tensors.items()
    }
    return tensors, entries


# ---- by Python's own readers ----------------------------------------------------------------------------------------


class Inert:
    """An object of any class of a pickle: it keeps the state that it is given."""

    state: Any = None

    def __new__(cls, *_given: Any) -> Self:
        """Make one, whatever it is made with."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


class Size(tuple[int, ...]):
    """Stands for torch.Size."""


class Harmless(pickle.Unpickler):
    """Python's unpickler, which gets an inert class for every name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that does nothing."""
        return Size if (module, name) == ("torch", "Size") else type(f"{module}.{name}", (Inert,), {})


def by_python(data: bytes) -> Told | None:
    """Return what `told` returns, read by Python's unpickler; None for what that refuses."""
    try:
        fields = Harmless(io.BytesIO(data)).load().state
        entries = {
            (index.state["fqn"], index.state.get("offset"), *(place.state[name] for name in PLACE))
            for index, place in (fields.get("storage_data") or {}).items()
        }
        tensors = {
            key: _tensor(held.state)
            for key, held in fields["state_dict_metadata"].items()
            if type(held).__name__.endswith(".TensorStorageMetadata")
        }
    except Exception:  # whatever Python, or a pickle of something else, makes of it
        return None
    return tensors, entries


def _tensor(state: dict[str, Any]) -> tuple[str, Shape, list[tuple[Shape, Shape]]]:
    chunks = [(chunk.state["offsets"], chunk.state["sizes"]) for chunk in state["chunks"]]
    dtype = DTYPES[state["properties"].state[0].__name__.removeprefix("torch.")]
    return dtype, state["size"], chunks


def _by_zipfile(data: bytes) -> list[bytes] | None:
    """Return all files of an archive, None for what zipfile refuses."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [archive.read(name) for name in archive.namelist()]
    except Exception:  # whatever zipfile makes of an archive that is damaged
        return None
