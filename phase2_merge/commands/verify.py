"""The story of `verify`: is a Hugging Face directory what its index, its JSON files and its records say?

Works on any directory, also one that shardmerge did not write; then there are no checksums to compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from shardmerge.common import places
from shardmerge.common import reference as references
from shardmerge.common.architectures import blueprint
from shardmerge.common.command.byte_count import show
from shardmerge.common.command.progress import Progress
from shardmerge.common.dtypes import byte_size
from shardmerge.common.errors import (
    BadInputError,
    CorruptFileError,
    CorruptIndexError,
    MismatchError,
    MissingTensorError,
    NonFiniteError,
    ShardmergeError,
    UnsupportedArchitectureError,
    raise_problems,
)
from shardmerge.common.places import INDEX, LEDGER, SHARDS, SINGLE
from shardmerge.common.reference import PLAIN_FLOATS
from shardmerge.common.safetensors_header import Entry, Header

from ..disk.checksums import Advance, checksums, in_threads, stretches, wrong_bytes
from ..hf_files.config_json import TORCH_NAMES
from ..ledger import table as ledger
from ..ledger.names import grouped
from ..output import receipts, replace_files
from ..proof import numbers
from ..proof.tensors.expected import TABLE, of_another_size
from ..quantization import declaration, scales
from ..quantization.scales import Findings
from .report import Verification, warning_lines

Shards = dict[str, Header]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A directory in which nothing contradicts itself."""

    path: str
    num_shards: int
    num_tensors: int
    total_bytes: int
    verification: Verification
    checksums_compared: int
    warnings: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        told = f"{self.checksums_compared:,} tensors have the checksum that was recorded."
        lines = [
            f"Sound: {self.path}, {self.num_shards:,} shards, {self.num_tensors:,} tensors, {show(self.total_bytes)}.",
            told if self.checksums_compared else "Bytes were NOT compared: only index, headers and sizes.",
        ]
        return "\n".join([*lines, *warning_lines(self.warnings)])


def verify(
    out: str | Path, *, verify: Verification = "full", scan: bool = False, talk: TextIO | None = None
) -> VerifyReport:
    """Check the directory `out`. verify: "full" compares bytes with recorded checksums, "size" does not.

    scan: read all numbers too; NaN and infinities are problems, tensors of zeros warnings.

    Raises MissingConfigError, BadInputError (no weights), and what is wrong, as one error or ProblemsFoundError.
    """
    out = Path(out)
    config = references.read_config(out)
    files = references.weight_files(out)
    if not files:
        raise BadInputError(f"{out} holds neither {INDEX} nor {SINGLE}", "Give a directory with safetensors.")
    shards, problems = _headers(files)
    problems += _index_problems(out, shards)
    found = _judge_quantization(out, config, shards)
    problems += found.problems
    warnings = [*replace_files.interrupted(out), *_strangers(out, files)]
    warnings += [*found.warnings, *_judge_config(config, shards, problems, found)]
    raise_problems(problems)
    compared = _compare_bytes(out, shards, talk) if verify == "full" and places.records(out).is_dir() else 0
    if scan:
        warnings += _scan(out, shards, talk)
    total = sum(header.entries[-1].end for header in shards.values() if header.entries)
    count = sum(len(header.entries) for header in shards.values())
    return VerifyReport(str(out), len(shards), count, total, verify, compared, tuple(warnings))


def _scan(out: Path, shards: Shards, talk: TextIO | None) -> list[str]:
    """A warning per group of tensors that are all zero. Raises NonFiniteError, or all of them."""
    progress = Progress("scanning", sum(header.file_bytes for header in shards.values()), talk)
    try:
        found = [
            n for file, header in shards.items() for n in numbers.scan(out / file, header, progress.advance)
        ]
    finally:
        progress.close()
    sick = [one for one in found if one.nan_count or one.inf_count]
    raise_problems(NonFiniteError(one.name, one.nan_count, one.inf_count, ()) for one in sick)
    return [f"all zero: {line}" for line in grouped(numbers.names_of_zeros(found))]


def _headers(files: tuple[Path, ...]) -> tuple[Shards, list[ShardmergeError]]:
    shards: Shards = {}
    problems: list[ShardmergeError] = []
    for file in files:
        try:
            shards[file.name] = references.read_header(file)
        except CorruptFileError as error:
            problems.append(error)
    return shards, problems


def _index_problems(out: Path, shards: Shards) -> Iterator[ShardmergeError]:
    """Dangling and unindexed tensors, sub-folders, and total_size; nothing to compare if there is one file only."""
    index = out / INDEX
    if not index.is_file():
        return
    mapped = references.weight_map(index)
    for file in sorted({file for file in mapped.values() if Path(file).name != file}):
        yield CorruptIndexError(str(index), f"{file} is not beside it, which readers refuse")
    held = {(entry.name, file) for file, header in shards.items() for entry in header.entries}
    for name, file in sorted(set(mapped.items()) - held):
        if file in shards:
            yield CorruptIndexError(str(index), f"{name} is not in {file}")
    for name, file in sorted(held - set(mapped.items())):
        why = f"it says {mapped[name]}" if name in mapped else "it does not name it"
        yield CorruptIndexError(str(index), f"{file} holds {name}, but {why}")
    said = references.total_size(index)
    total = sum(entry.end - entry.begin for header in shards.values() for entry in header.entries)
    if said is not None and said != total:
        yield CorruptIndexError(str(index), f"total_size is {said:,}, the tensors have {total:,} bytes")


def _strangers(out: Path, files: tuple[Path, ...]) -> Iterator[str]:
    known = {file.name for file in files}
    for path in sorted(out.glob(SHARDS)):
        if path.name not in known:
            yield f"{path.name} is not part of the checkpoint; some readers load it all the same"


def _judge_quantization(out: Path, config: dict[str, Any], shards: Shards) -> Findings:
    """What both JSON files say of it, against each other and against weights and scales."""
    hf, in_config = declaration.read(out, config)
    found = scales.judge(hf or in_config or declaration.UNDECLARED, _entries(shards))
    found.problems += declaration.differences(hf, in_config)
    if warning := declaration.only_one(hf, in_config):
        found.warnings.append(warning)
    return found


def _entries(shards: Shards) -> dict[str, Entry]:
    return {entry.name: entry for header in shards.values() for entry in header.entries}


def _judge_config(
    config: dict[str, Any], shards: Shards, problems: list[ShardmergeError], quantized: Findings
) -> Iterator[str]:
    """Add what contradicts config.json to `problems`; yields warnings. Packed weights count unpacked."""
    held = {name: entry for name, entry in _entries(shards).items() if name not in quantized.accounted}
    yield from _dtype_warning(config, shards)
    try:
        table = blueprint(config)
    except (UnsupportedArchitectureError, BadInputError) as error:
        yield f"shapes were not compared with config.json: {error.message()}"
        return
    if other := of_another_size(table, len(held)):
        problems.append(other)
        return
    required_by = TABLE.format(table.architecture.name)
    for tensor in table.tensors():
        found = held.pop(tensor.name, None)
        if found is None:
            problems.append(MissingTensorError(tensor.name, tensor.shape, required_by))
            continue
        shape = quantized.plain_shapes.get(tensor.name, found.shape)
        known = found.dtype in PLAIN_FLOATS or tensor.name in quantized.plain_shapes
        if shape != tensor.shape and (known or "quantization_config" not in config):
            problems.append(MismatchError(tensor.name, "shape", str(list(shape)), str(list(tensor.shape))))
    for line in grouped(sorted(held)):
        yield f"{table.architecture.name} with this config.json has no {line}"


def _dtype_warning(config: dict[str, Any], shards: Shards) -> Iterator[str]:
    sizes: Counter[str] = Counter()
    for header in shards.values():
        for entry in header.entries:
            sizes[entry.dtype] += byte_size(entry.dtype, entry.shape)
    told = config.get("dtype", config.get("torch_dtype"))
    most = TORCH_NAMES.get(max(sizes, key=lambda dtype: sizes[dtype], default=""))
    if told and most and "quantization_config" not in config and told != most:
        yield f"config.json says {told}, most bytes are {most}"


def _compare_bytes(out: Path, shards: Shards, talk: TextIO | None) -> int:
    """Read what has a recorded checksum; how many tensors that were. Raises CorruptFileError, or several."""
    book = places.records(out) / LEDGER
    whole = ledger.whole_checksums(book) if book.is_file() else {}
    known = {file: (kept.tensors if (kept := receipts.read(out, file)) else whole) for file in shards}
    entries = {file: [e for e in header.entries if e.name in known[file]] for file, header in shards.items()}
    parts = [
        (file, of[part]) for file, of in entries.items() for part in stretches([(e.begin, e.end) for e in of])
    ]
    progress = Progress("verifying", sum(header.file_bytes for header in shards.values()), talk)
    try:
        raise_problems(
            in_threads(
                lambda file, of: _compare(out / file, shards[file], of, known[file], progress.advance), parts
            )
        )
    finally:
        progress.close()
    return sum(map(len, entries.values()))


def _compare(
    path: Path, header: Header, entries: Sequence[Entry], known: dict[str, str], advance: Advance
) -> ShardmergeError | None:
    spans = [(header.data_offset + entry.begin, header.data_offset + entry.end) for entry in entries]
    for entry, got in zip(entries, checksums(path, spans, advance), strict=True):
        if got != known[entry.name]:
            return CorruptFileError(str(path), wrong_bytes(entry.name, got, known[entry.name]))
    return None
