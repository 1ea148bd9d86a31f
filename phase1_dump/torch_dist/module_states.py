"""Reads what modules saved beside their parameters (`_extra_state`), as far as it is of plain types.

Transformer Engine began it and modelopt follows: a dict goes through torch.save, and its bytes are stored as a tensor,
which goes through torch.save again. Both archives are read by hand, both pickles under a list of their own: what holds
data and tensors, as inert values, and nothing else. Must not know what a dict says.
Source: modelopt/torch/opt/plugins/megatron.py (`_modelopt_get_extra_state`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from isal import isal_zlib

from shardmerge.common.errors import BadChunkError, MissingChunksError, ShardmergeError
from shardmerge.common.errors.several import raise_problems

from .archives import OF_TENSOR, Record, Tensor, records_of, storage, stored_tensor
from .metadata import Described
from .pickles import Names, Unpickler

MODELOPT_WORD = b"modelopt_quantizer_state"  # stands in a state as it is: archives are not compressed
MAX_STATE_BYTES = 16 << 20
MAX_PICKLE_BYTES = 4 << 20
PLAIN: Names = {  # the second list of what a pickle may name: sizes, dtypes and tensors
    name: OF_TENSOR[name]
    for name in OF_TENSOR
    if name[0] == "torch" or name in (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"))
}
ReadAt = Callable[[int, int], bytes]


class Place(NamedTuple):
    """Where an entry that is not a tensor lies: the name of a file, and begin and length of the archive in it."""

    path: str
    begin: int
    length: int


def places_of(described: Described, is_wanted: Callable[[str], bool]) -> dict[str, Place]:
    """Return where the entries lie that are not tensors.

    Args:
        described: What `.metadata` says.
        is_wanted: Whether an entry of this key is.

    Returns:
        Places by key.

    Raises:
        MissingChunksError: an entry has no place in a file.
        BadChunkError: an entry stands twice.
        ProblemsFoundError: several of these.
    """
    columns = described.columns
    keys, paths = columns.keys.values(), columns.paths.values()
    wanted = {key for key in described.objects if is_wanted(key)}
    numbers = {columns.keys.of[key]: key for key in wanted if key in columns.keys.of}
    found: dict[str, Place] = {}
    problems: list[ShardmergeError] = []
    for number, offset, path, begin, length in zip(
        columns.key, columns.offset, columns.path, columns.begin, columns.length, strict=True
    ):
        if offset != -1 or number not in numbers:
            continue
        if keys[number] in found:
            problems.append(BadChunkError(keys[number], paths[path], "it stands there twice"))
        found[keys[number]] = Place(paths[path], begin, length)
    missing = sorted(wanted - found.keys())
    problems += [MissingChunksError(key, ".metadata gives it no place in a file") for key in missing]
    raise_problems(problems)
    return found


def has_quantizers(read_at: ReadAt, place: Place) -> bool:
    """Whether modelopt saved quantizers in a state. Its pickle is not read for that."""
    return MODELOPT_WORD in read_at(min(place.length, MAX_STATE_BYTES), place.begin)


class StateReader:
    """Reads states, of which many say the same: each pickle once."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[bytes, Any] = {}

    def read(self, read_at: ReadAt, place: Place, key: str) -> Any:
        """Return what a module saved: values of plain types, None for nothing. Callers must not change them.

        Args:
            read_at: Returns so many bytes of the file at an offset, fewer where it ends: (count, offset).
            place: Where it lies.
            key: For messages.

        Raises:
            ValueError: it is not what modelopt or Transformer Engine save.
            UnknownInPickleError: its pickle names what plain values do not need.
            CorruptFileError: its pickle is damaged.
            BadChunkError: its bytes do not have the CRC-32 that was recorded.
        """
        if place.length > MAX_STATE_BYTES:
            raise ValueError(f"it has {place.length:,} bytes")
        whole = read_at(place.length, place.begin)
        if len(whole) != place.length:
            raise BadChunkError(key, place.path, "the file ends before it does")
        records = _records(whole)
        saved = self._unpickled(whole, records, place, key)
        if type(saved) is list and len(saved) == 1:
            (saved,) = saved
        if saved is None:
            return None
        if type(saved) is not Tensor:
            raise ValueError("it is something else than bytes")
        numbers = stored_tensor(saved, records)
        if numbers.dtype != "U8" or len(numbers.shape) != 1 or not numbers.is_in_order:
            raise ValueError("it is something else than bytes")
        if not numbers.shape[0]:
            return None
        data = _bytes(whole, Record(numbers.begin, numbers.num_bytes, numbers.crc32), place, key)
        inner = data[numbers.first : numbers.first + numbers.shape[0]]
        return self._unpickled(inner, _records(inner), place, key)

    def _unpickled(self, archive: bytes, records: Mapping[str, Record], place: Place, key: str) -> Any:
        described = records.get("data.pkl")
        if described is None or described.num_bytes > MAX_PICKLE_BYTES:
            raise ValueError("its archive holds no pickle of a plausible size")
        pickle = _bytes(archive, described, place, key)
        if pickle not in self._known:
            rest = [pickle]
            self._known[pickle] = Unpickler(
                lambda _count: rest.pop() if rest else b"",
                PLAIN,
                f"{key} in {place.path}",
                persistent=storage,
            ).load()
        return self._known[pickle]


def _records(archive: bytes) -> dict[str, Record]:
    return records_of(lambda count, at: archive[at : at + count], 0, len(archive))


def _bytes(archive: bytes, record: Record, place: Place, key: str) -> bytes:
    """Return the bytes of a file in an archive. Raises BadChunkError for a CRC-32 that is another one."""
    found = archive[record.begin : record.begin + record.num_bytes]
    if record.crc32 and isal_zlib.crc32(found) != record.crc32:
        raise BadChunkError(key, place.path, f"its bytes do not have the CRC-32 {record.crc32:#010x}")
    return found
