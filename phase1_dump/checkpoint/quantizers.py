"""Finds modelopt's quantizers in a checkpoint: what their modules saved of them, and the ranges that lie beside.

Values are plain, and no format is known here. Whatever cannot be read whole is refused by name: a quantizer that was
overlooked would leave its weight as it is, and no reader would notice.
Source: modelopt/torch/quantization/plugins/megatron.py (`quant_module_get_extra_state`, `sharded_state_dict`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple, Self

from shardmerge.common import regular_files
from shardmerge.common.architectures import Blueprint
from shardmerge.common.architectures.keys import is_mtp, key_pattern
from shardmerge.common.errors import ShardmergeError, UnknownInPickleError, UnsupportedCheckpointError
from shardmerge.common.errors.several import raise_problems

from ..torch_dist.chunks import ChunkTable, table_of
from ..torch_dist.folder import Folder
from ..torch_dist.metadata import Described
from ..torch_dist.module_states import Place, StateReader, has_quantizers, places_of
from .keys import QUANTIZER, is_of_quantizer, without_prefix

STATE = re.compile(r"\._extra_state(?P<shard>\d*(?:/.*)?)$")
WHOLE = ("", "/shard_0_1")  # of a state that no other is a part of
WEIGHT = re.compile(r"\.weight(?:_w|_v|\.\w+)?$")
OF_ALL_EXPERTS = re.compile(r"(?<=\.experts\.experts\.)\d+\.")
RANGE = "_amax"
QUANTIZERS, COMPRESSED = (
    "modelopt_quantizer_state",
    ("modelopt_real_quantizer_state", "modelopt_q_tensor_state"),
)
TENSORS = "_pytorch_state_metadata"
WEIGHTS, INPUTS, OFF = "weight_quantizer", "input_quantizer", "_disabled"
CACHES = {"k_bmm_quantizer", "v_bmm_quantizer"}
KNOWN = {WEIGHTS, INPUTS, *CACHES, "q_bmm_quantizer", "output_quantizer"}
OF_WEIGHTS = re.compile(WEIGHTS + r"\.(\d+)")
NOT_PLAIN = (
    "and quantizers are read from plain values alone, without executing a pickle: this one is of another kind, or its "
    "weight was compressed (then dump the model before mtq.compress)"
)
State = Mapping[str, Any]


class Stored(NamedTuple):
    """A quantizer: its name, what modelopt says of it, and which tensor of the ranges is its own, None for none."""

    name: str
    state: State
    tensor: int | None


@dataclass(frozen=True, eq=False)
class Quantizers:
    """The quantizers of a checkpoint.

    Attributes:
        folder: Where it lies.
        table: The ranges, as tensors.
        tensor_of: Which of them is that of a quantizer, by its full name.
        states: What modelopt says of quantizers, by module and by their names in it.
        paths: Names of the files that they are read from.
    """

    folder: Folder
    table: ChunkTable
    tensor_of: Mapping[str, int]
    states: Mapping[str, Mapping[str, State]]
    paths: frozenset[str]

    def of(self, key: str) -> tuple[Stored, Stored | None] | None:
        """Return the quantizers of a weight and of its inputs, None for a parameter that has none.

        Experts that are one module have a quantizer for each of those that lay on one rank, in their order.

        Args:
            key: Canonical key of the parameter.
        """
        module = module_of(key)
        states = self.states.get(module) if module is not None else None
        if module is None or states is None:
            return None
        own = WEIGHTS
        together = sorted(int(match[1]) for name in states if (match := OF_WEIGHTS.fullmatch(name)))
        if WEIGHTS not in states and together:
            expert = OF_ALL_EXPERTS.search(module)
            if expert is None or together != list(range(len(together))):
                raise self.refusal(module, "several quantizers of one weight follow each other")
            own = f"{WEIGHTS}.{int(expert[0].rstrip('.')) % len(together)}"
        if own not in states:
            return None
        weight = Stored(f"{module}.{WEIGHTS}", states[own], self._range(module, WEIGHTS))
        inputs = states.get(INPUTS)
        if inputs is None:
            return weight, None
        return weight, Stored(f"{module}.{INPUTS}", inputs, self._range(module, INPUTS))

    def inside(self, module: str) -> dict[str, Stored]:
        """Return the quantizers of a module without weights, as an attention core is, by their names in it."""
        return {
            name: Stored(f"{module}.{name}", state, self._range(module, name))
            for name, state in self.states.get(module, {}).items()
        }

    def refusal(self, module: str, reason: str) -> UnsupportedCheckpointError:
        """Return the error about the quantizers of a module."""
        return UnsupportedCheckpointError(str(self.folder.path), f"the quantizers of {module}: {reason}")

    def _range(self, module: str, name: str) -> int | None:
        """Return the tensor that is a quantizer's range: that of the module, or of all its experts together."""
        for full in (f"{module}.{name}", f"{OF_ALL_EXPERTS.sub('', module)}.{name}"):
            if full in self.tensor_of:
                return self.tensor_of[full]
        return None


def module_of(key: str) -> str | None:
    """Return the module whose weight, or a part of it, a parameter is; None if it is not a weight."""
    found = WEIGHT.search(key)
    return key[: found.start()] if found else None


def find_quantizers(
    folder: Folder, described: Described, bound: Blueprint, *, drop_mtp: bool
) -> Quantizers | None:
    """Find the quantizers of a checkpoint.

    Args:
        folder: Where it lies.
        described: What `.metadata` says.
        bound: The table of the architecture.
        drop_mtp: Leave out those of multi-token prediction.

    Returns:
        The quantizers, None if it has none.

    Raises:
        UnsupportedCheckpointError: what a quantizer is cannot be known; a pickle names what plain values do not need.
        CorruptFileError: a pickle is damaged.
        BadChunkError: bytes do not have the CRC-32 that was recorded, or chunks make no whole.
        MissingChunksError: a chunk, or a state, has no place in a file.
        UnfinishedCheckpointError: a file is missing.
        OSError: a file cannot be read.
    """

    def own(key: str) -> str:
        return without_prefix(key, bound)

    def is_kept(key: str) -> bool:
        return not (drop_mtp and is_mtp(own(key)))

    tensors = [key for key in described.tensors if is_of_quantizer(key) and is_kept(key)]
    places = places_of(described, lambda key: STATE.search(key) is not None and is_kept(key))
    if not tensors and not _has_states(folder, places, own):
        if folder.has_modelopt_state:
            raise UnsupportedCheckpointError(
                str(folder.path),
                "it was saved with Model-Optimizer, and no _extra_state of a module says what it did",
            )
        return None
    states = _read_states(folder, places, own)
    raise_problems(_strange_tensors(folder, tensors))
    table = table_of(described, frozenset(tensors).__contains__)
    tensor_of = {own(key).removesuffix(f".{RANGE}"): number for number, key in enumerate(table.keys)}
    paths = {place.path for place in places.values()} | set(table.files_of(range(len(table.keys))))
    found = Quantizers(folder, table, tensor_of, states, frozenset(paths))
    raise_problems(_unread(found))
    return found


def require_all_claimed(found: Quantizers, keys: Sequence[str], attentions: Collection[str]) -> None:
    """Raise UnsupportedCheckpointError for a quantizer that would be overlooked, and for a weight without its own.

    Args:
        found: The quantizers of the checkpoint.
        keys: Canonical keys of the parameters that are dumped.
        attentions: Modules that are attentions with keys and values.
    """
    modules = {module: key for key in keys if (module := module_of(key)) is not None}
    kinds = {key_pattern(module) for module in found.states}
    problems: list[ShardmergeError] = []
    for module, key in modules.items():
        if module not in found.states and key_pattern(module) in kinds:
            reason = f"its _extra_state is missing, and others of its kind have one ({key})"
            problems.append(found.refusal(module, reason))
    for module, states in found.states.items():
        on = {OF_WEIGHTS.sub(WEIGHTS, name) for name, state in states.items() if state.get(OFF) is not True}
        if WEIGHTS in on and module not in modules:
            problems.append(
                found.refusal(module, "it is quantized, and no parameter that is dumped has this name")
            )
        if on & CACHES and module.rpartition(".")[0] not in attentions:
            problems.append(
                found.refusal(module, "no attention with keys and values has this quantized KV cache")
            )
        if strange := sorted(on - KNOWN):
            problems.append(found.refusal(module, f"what {strange[0]} quantizes is not known"))
    raise_problems(problems)


def _has_states(folder: Folder, places: Mapping[str, Place], own: Callable[[str], str]) -> bool:
    """Whether modelopt saved quantizers in the first state of some kind of modules."""
    first: dict[str, Place] = {}
    for key in sorted(places):
        first.setdefault(key_pattern(own(key)), places[key])
    folder.states(place.path for place in first.values())
    with _Files(folder) as files:
        return any(has_quantizers(files.reading(place.path), place) for place in sorted(first.values()))


def _strange_tensors(folder: Folder, keys: Iterable[str]) -> Iterator[ShardmergeError]:
    """Yield a problem for each kind of tensors of quantizers that are not ranges."""
    seen: set[str] = set()
    for key in keys:
        found = QUANTIZER.search(key)
        value = found["value"] if found else ""
        if value != RANGE and value not in seen:
            seen.add(value)
            reason = f"{key} is of a quantizer that keeps more than its range, and cannot be packed from disk"
            yield UnsupportedCheckpointError(str(folder.path), reason)


def _read_states(
    folder: Folder, places: Mapping[str, Place], own: Callable[[str], str]
) -> dict[str, dict[str, State]]:
    """Return what modelopt says of quantizers, by module."""
    reader = StateReader()
    states: dict[str, dict[str, State]] = {}
    folder.states(place.path for place in places.values())
    with _Files(folder) as files:
        for key, place in sorted(places.items(), key=itemgetter(1)):
            try:
                said = reader.read(files.reading(place.path), place, key)
            except UnknownInPickleError as error:
                reason = f"{key} in {place.path} {error.what}, {NOT_PLAIN}"
                raise UnsupportedCheckpointError(str(folder.path), reason) from None
            except ValueError as error:
                reason = f"{key} in {place.path} cannot be read: {error}"
                raise UnsupportedCheckpointError(str(folder.path), reason) from None
            if type(said) is dict and QUANTIZERS in said:
                shard = STATE.search(key)
                if shard is None or shard["shard"] not in WHOLE:
                    reason = f"{key} is one of several, and no known version of Model-Optimizer saves parts"
                    raise UnsupportedCheckpointError(str(folder.path), reason)
                states[STATE.sub("", own(key))] = _checked(folder, key, said)
    return states


def _checked(folder: Folder, key: str, said: Mapping[Any, Any]) -> dict[str, State]:
    """Return the quantizers of a module. Raises UnsupportedCheckpointError unless they are described in full."""
    if any(said.get(name) is not None for name in COMPRESSED):
        raise UnsupportedCheckpointError(
            str(folder.path), f"{key} says that its weight is compressed: dump the model before mtq.compress"
        )
    states = said[QUANTIZERS]
    if type(states) is not dict or not all(
        type(name) is str and type(state) is dict for name, state in states.items()
    ):
        raise UnsupportedCheckpointError(str(folder.path), f"{key} does not list quantizers")
    return states


def _unread(found: Quantizers) -> Iterator[ShardmergeError]:
    """Yield a problem for each quantizer of which the range is there and the state is not, or the other way round."""
    expected: set[str] = set()
    for module, states in found.states.items():
        for name, state in states.items():
            plain = OF_WEIGHTS.sub(WEIGHTS, name)
            tensors = state.get(TENSORS)
            held = _held(tensors) if type(tensors) is dict else None
            has_range = found._range(module, plain) is not None
            if held is None or not held <= {RANGE}:
                yield found.refusal(module, f"{name} keeps more than its range")
            elif bool(held) != has_range:
                what = "is missing" if held else "is there, and nothing says that it has one"
                yield found.refusal(module, f"the range of {name} {what}")
            expected |= {f"{module}.{plain}", f"{OF_ALL_EXPERTS.sub('', module)}.{plain}"}
    for full in sorted(found.tensor_of.keys() - expected):
        yield found.refusal(full.rpartition(".")[0], f"no _extra_state says what {full} is of")


def _held(tensors: Mapping[Any, Any]) -> set[Any] | None:
    """Return the names of the tensors that a quantizer keeps, None if it is not told."""
    kinds = [tensors.get(kind) for kind in ("params", "buffers")]
    if not all(type(kind) is dict for kind in kinds):
        return None
    return {name for kind in kinds for name in kind or ()}


class _Files:
    """The files of a checkpoint, of which one is open at a time."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._path, self._file = folder, "", -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()

    def reading(self, path: str) -> Callable[[int, int], bytes]:
        """Return what reads so many bytes at an offset of a file, as long as no other is asked for."""
        if path != self._path:
            self._close()
            self._file = regular_files.open_for_reading(self._folder.path / path, self._folder.path)
            self._path = path
        return lambda count, at: regular_files.read_at(self._file, count, at)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._path, self._file = "", -1
