"""The story of `verify`: is a Hugging Face directory what its index, its JSON files and its records say?

Works on any directory. One that shardmerge did not write has no recorded checksums to compare, which is said. One that
has records must have all of them. Nothing is written, and no journal is followed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from shardmerge.common import reference as references
from shardmerge.common import regular_files
from shardmerge.common.architectures import Architecture, Blueprint, blueprint, own
from shardmerge.common.architectures.settings import rope
from shardmerge.common.architectures.settings.says import COMMON_SYNONYMS
from shardmerge.common.command.progress import Progress
from shardmerge.common.dtypes import byte_size
from shardmerge.common.errors import (
    AbsentTensorError,
    BadInputError,
    CorruptFileError,
    CorruptIndexError,
    Findings,
    MismatchError,
    MissingTensorError,
    NonFiniteError,
    OtherShapeError,
    ShardmergeError,
    StrangeNumbersError,
    UnexpectedTensorError,
    UnsupportedArchitectureError,
    not_a_directory,
    raise_problems,
)
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.places import INDEX, SHARDS, SINGLE
from shardmerge.common.rectangle import Shape
from shardmerge.common.reference import PLAIN_FLOATS
from shardmerge.common.safetensors_header import Entry, Header

from ..corrections import record
from ..corrections.changes import corrected_facts
from ..disk.hashing import Advance, checksums, in_threads, stretches, wrong_bytes
from ..hf_files.config_json import TORCH_NAMES
from ..ledger import published
from ..ledger.names import grouped
from ..ledger.published import PublishedPlan
from ..ledger.published_report import PublishedReport
from ..ledger.rank_directories import holds_ranks
from ..options import Verification, refuse_unknown_verification
from ..output import journal
from ..proof import numbers
from ..proof.config import settings, shapes, vision
from ..quantization import declaration, scales
from ..quantization.declaration import Declaration
from . import records
from .verify_report import VerifyReport

Shards = dict[str, Header]


@dataclass(frozen=True, eq=False)  # no slots: what follows is worked out once, when a check first asks for it
class Directory:
    """What the checks below look at: config.json, and the headers of the files that readers would load."""

    path: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    shards: Shards
    own_table: Architecture | None = None

    def table(self) -> Blueprint:
        """Return config.json with its table. Raises what `blueprint` raises."""
        return blueprint(self.config, self.entries, table=self.own_table)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        return {entry.name: entry for header in self.shards.values() for entry in header.entries}

    @cached_property
    def declared(self) -> tuple[Declaration | None, Declaration | None]:
        """What hf_quant_config.json and config.json say of quantization. Raises CorruptFileError."""
        return declaration.read(self.path, self.config)

    @cached_property
    def stored(self) -> scales.StoredAs:
        """How weights and scales are stored, compared with what is declared of them."""
        hf, in_config = self.declared
        return scales.judge(hf or in_config or declaration.UNDECLARED, self.entries)

    @cached_property
    def plan(self) -> PublishedPlan | None:
        """What the merge that wrote this directory planned; None if none did."""
        is_ours = records.are_there(self.path) and published.is_output(self.path)
        return published.read_plan(self.path) if is_ours else None

    @cached_property
    def report(self) -> PublishedReport | None:
        """What the merge that wrote this directory reported; None if none did."""
        return None if self.plan is None else published.read_report(self.path, self.plan)

    @cached_property
    def facts(self) -> Facts | None:
        """What the dump said of the model, corrected as its merge was told to; None if no merge reported here."""
        if self.plan is None or self.report is None:
            return None
        dumped = published.read_facts(self.path, self.plan)
        return corrected_facts(dumped, record.replayed(self.report.corrections))


def verify(
    out: str | Path,
    *,
    verify: Verification = "full",
    scan: bool = False,
    architecture: str | Architecture | None = None,
    talk: TextIO | None = None,
) -> VerifyReport:
    """Check the directory `out`: index, headers, JSON files, and the bytes of what has a recorded checksum.

    Args:
        out: any directory with safetensors.
        verify: "full" compares bytes with recorded checksums, "size" does not.
        scan: read all numbers too. NaN and infinities are problems, tensors of zeros warnings.
        architecture: a table of one's own, or `package.module:TABLE`.
        talk: progress goes here.

    Returns:
        What was looked at, and warnings.

    Raises:
        MissingConfigError: it holds no config.json.
        BadInputError: it holds no weights.
        MissingRecordError: it holds shards and the records of a merge, and has lost its index.
        ShardmergeError: what is wrong, as one error or as ProblemsFoundError.
    """
    refuse_unknown_verification(verify)
    out, table = Path(out), None if architecture is None else own.named(architecture)
    try:
        return _verify(out, verify, talk, table, scan=scan)
    except ShardmergeError as error:
        for warning in journal.interrupted(out):
            error.add_note(f"Warning: {warning}")
        raise


def _verify(
    out: Path, verify: Verification, talk: TextIO | None, table: Architecture | None, *, scan: bool
) -> VerifyReport:
    """Do what `verify` says, after which an error is told what else is known."""
    if not out.is_dir():
        raise not_a_directory(out, "Give a Hugging Face directory.")
    if holds_ranks(out):
        raise BadInputError(f"{out} is a dump, which readers do not load", "Prove it with shardmerge check.")
    config = references.read_config(out, references.DOWNLOAD)
    files = references.weight_files(out)
    if not files:
        records.refuse_lost_index(out)
        raise BadInputError(f"{out} holds neither {INDEX} nor {SINGLE}", "Give a directory with safetensors.")
    shards, unreadable = _headers(out, files)
    directory = Directory(out, config, files, shards, table)
    findings = Findings.together([unreadable, *(check(directory) for check in CHECKS)])
    raise_problems(_of_this(directory, findings.problems))
    compared = _compare_bytes(out, shards, talk) if verify == "full" and records.are_there(out) else 0
    numbers_seen = _scan(directory, talk) if scan else Findings()
    raise_problems(_of_this(directory, numbers_seen.problems))
    total = sum(header.entries[-1].end for header in shards.values() if header.entries)
    count = sum(len(header.entries) for header in shards.values())
    warnings = (*journal.interrupted(out), *findings.warnings, *numbers_seen.warnings)
    return VerifyReport(
        path=str(out),
        num_shards=len(shards),
        num_tensors=count,
        total_bytes=total,
        verification=verify,
        checksums_compared=compared,
        without_checksum=count - compared,
        scanned=scan,
        table=_name_of_table(directory),
        has_index=regular_files.exists(out / INDEX, out),
        is_quantized=directory.declared != (None, None),
        is_ours=directory.report is not None,
        settings=_compared(directory),
        warnings=warnings,
    )


def _name_of_table(directory: Directory) -> str:
    """Return the architecture whose table was compared with, empty if there is none."""
    try:
        return directory.table().architecture.name
    except (UnsupportedArchitectureError, BadInputError):
        return ""


def _compared(directory: Directory) -> tuple[str, ...]:
    """Return the names of the settings of config.json that were compared with what the model computed."""
    report, facts = directory.report, directory.facts
    if report is None or facts is None or not _name_of_table(directory):
        return ()
    return settings.compared(directory.table(), facts, mtp=report.mtp).settings


def _of_this(directory: Directory, problems: Sequence[ShardmergeError]) -> Iterator[ShardmergeError]:
    """Yield problems in words about this directory: nobody says here that a dump or a reference is at fault.

    What is missing because its file cannot be read is not said for each tensor.
    """
    out, unreadable = directory.path, len(directory.shards) < len(directory.files)
    index = out / INDEX
    named = references.weight_map(index) if unreadable and regular_files.exists(index, out) else {}
    for problem in problems:
        if isinstance(problem, MissingTensorError):
            file = named.get(problem.tensor, SINGLE if unreadable else "")
            if not file or file in directory.shards:
                yield AbsentTensorError(str(out), problem.tensor, problem.shape, problem.required_by)
        elif isinstance(problem, MismatchError):
            yield OtherShapeError(str(out), problem.tensor, problem.what, problem.got, problem.expected)
        elif isinstance(problem, NonFiniteError):
            yield StrangeNumbersError(str(out), problem.tensor, problem.nan_count, problem.inf_count)
        elif isinstance(problem, CorruptFileError):
            yield _not_dumped(problem)
        else:
            yield problem


def _headers(root: Path, files: tuple[Path, ...]) -> tuple[Shards, Findings]:
    """Read all headers. Returns those that can be read, by the file's name, and what is wrong with the others."""
    shards: Shards = {}
    problems: list[ShardmergeError] = []
    for file in files:
        try:
            shards[file.name] = references.read_header(file, root)
        except CorruptFileError as error:
            problems.append(error)
    return shards, Findings(tuple(problems))


def _scan(directory: Directory, talk: TextIO | None) -> Findings:
    """Look at all numbers. Returns what is strange about them."""
    shards = directory.shards
    progress = Progress("scanning", sum(header.file_bytes for header in shards.values()), talk)
    try:
        strange = [
            seen
            for file, header in shards.items()
            for seen in numbers.scan(directory.path / file, header, progress.advance)
        ]
    finally:
        progress.close()
    return numbers.judge(strange)


# ---- checks: each sees the directory and returns what it found ------------------------------------------------------


def _check_index(directory: Directory) -> Findings:
    """Compare the index, if there is one, with the headers, and look for files that it does not name."""
    return Findings(tuple(_index_problems(directory)), tuple(_unlisted(directory)))


def _index_problems(directory: Directory) -> Iterator[ShardmergeError]:
    """Yield tensors that dangle or are not in the index, files in sub-folders, and a total_size that is wrong."""
    index, shards = directory.path / INDEX, directory.shards
    if not regular_files.exists(index, directory.path):
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
    stated = references.total_size(index)
    total = sum(entry.end - entry.begin for header in shards.values() for entry in header.entries)
    if stated is not None and stated != total:
        yield CorruptIndexError(str(index), f"total_size is {stated:,}, the tensors have {total:,} bytes")


def _unlisted(directory: Directory) -> Iterator[str]:
    """Yield a warning for each file that readers may take for a part of the checkpoint."""
    known = {file.name for file in directory.files}
    for path in sorted(directory.path.glob(SHARDS)):
        if path.name not in known:
            yield f"{path.name} is not part of the checkpoint; some readers load it all the same"


def _check_quantization(directory: Directory) -> Findings:
    """Compare what both JSON files declare, with each other and with weights and scales."""
    stored, (hf, in_config) = directory.stored, directory.declared
    warning = declaration.only_one(hf, in_config)
    return Findings(
        (*stored.problems, *declaration.differences(hf, in_config)),
        (*stored.warnings, *([warning] if warning else [])),
    )


def _check_config(directory: Directory) -> Findings:
    """Compare every tensor with config.json. Packed weights count as unpacked, and scales are not looked for."""
    warnings = tuple(_dtype_warning(directory))
    try:
        table = directory.table()
    except (UnsupportedArchitectureError, BadInputError) as error:
        return Findings(warnings=(*warnings, f"shapes were not compared with config.json: {error.message()}"))
    compared = shapes.against_tensors(table, _plain_shapes(directory))
    # a merge of ours publishes none of these
    off = set(table.switched_off()) if compared.strange and directory.report else set()
    lost = (
        UnexpectedTensorError(name, (), table.architecture.name) for name in compared.strange if name in off
    )
    strange = (
        f"{table.architecture.name} with this config.json has no {line}"
        for line in grouped(
            sorted(one for one in compared.strange if one not in off and not table.is_vision(one))
        )
    )
    warned = directory.report.warnings if directory.report else []
    tower = settings.allowed_before(vision.missing(table, directory.entries), warned)
    return Findings((*compared.problems, *lost, *tower.problems), (*warnings, *strange, *tower.warnings))


def _plain_shapes(directory: Directory) -> dict[str, Shape | None]:
    """Return shapes to compare with config.json, None for a weight that is packed in a way nobody describes."""
    stored, quantized = directory.stored, references.is_quantized(directory.config)
    shapes: dict[str, Shape | None] = {}
    for name, entry in directory.entries.items():
        if name not in stored.accounted:
            known = entry.dtype in PLAIN_FLOATS or not quantized
            shapes[name] = stored.plain_shapes.get(name, entry.shape if known else None)
    return shapes


def _dtype_warning(directory: Directory) -> Iterator[str]:
    """Yield a warning if config.json says another dtype than that of most bytes."""
    config = directory.config
    sizes: Counter[str] = Counter()
    for header in directory.shards.values():
        for entry in header.entries:
            sizes[entry.dtype] += byte_size(entry.dtype, entry.shape)
    stated = config.get("dtype", config.get("torch_dtype"))
    most = TORCH_NAMES.get(max(sizes, key=lambda dtype: sizes[dtype], default=""))
    if stated and most and not references.is_quantized(config) and stated != most:
        yield f"config.json says {stated}, most bytes are {most}"


def _check_settings(directory: Directory) -> Findings:
    """Look whether config.json says two things of one, what nobody can read, or other than the model computes."""
    try:
        table = directory.table()
    except (UnsupportedArchitectureError, BadInputError):
        return Findings(tuple(settings.said_twice(directory.config, (*COMMON_SYNONYMS, *rope.SYNONYMS))))
    twice = settings.contradictions_of(table)
    warned = directory.report.warnings if directory.report else []
    return Findings.together([settings.allowed_before(twice, warned), _differing(directory, table)])


def _differing(directory: Directory, table: Blueprint) -> Findings:
    """Compare config.json with what the model computes, as far as a merge recorded it. What it allowed is a warning."""
    report, facts = directory.report, directory.facts
    if report is None or facts is None:
        return Findings(tuple(table.unreadable_settings()))
    if other := tuple(shapes.against_table(table.architecture, facts)):
        return Findings(other)
    return settings.allowed_before(settings.differences(table, facts, mtp=report.mtp), report.warnings)


def _check_records(directory: Directory) -> Findings:
    """Look whether an output of ours has all of its records and shards."""
    return records.check(directory.path, directory.shards)


# All run, and everything that they find is reported, in this order.
CHECKS = (_check_index, _check_quantization, _check_config, _check_settings, _check_records)


# ---- bytes ----------------------------------------------------------------------------------------------------------


def _compare_bytes(out: Path, shards: Shards, talk: TextIO | None) -> int:
    """Read every tensor that has a recorded checksum. Returns how many there are.

    Raises CorruptFileError, or several as ProblemsFoundError.
    """
    known = records.checksums(out, shards)
    raise_problems(map(_not_dumped, _unrecorded(out, shards, known)))
    entries = {file: [e for e in header.entries if e.name in known[file]] for file, header in shards.items()}
    parts = [
        (file, recorded[stretch])
        for file, recorded in entries.items()
        for stretch in stretches([(entry.begin, entry.end) for entry in recorded])
    ]
    progress = Progress("verifying", sum(header.file_bytes for header in shards.values()), talk)
    try:
        raise_problems(
            in_threads(
                lambda file, part: _compare(out / file, shards[file], part, known[file], progress.advance),
                parts,
            )
        )
    finally:
        progress.close()
    return sum(map(len, entries.values()))


def _unrecorded(out: Path, shards: Shards, known: records.Checksums) -> Iterator[CorruptFileError]:
    """Yield a problem for each shard with tensors of which no checksum is recorded: all records are there."""
    for file, header in shards.items():
        if without := [entry.name for entry in header.entries if entry.name not in known[file]]:
            why = f"{len(without):,} of its tensors have no recorded checksum, such as {without[0]}"
            yield CorruptFileError(str(out / file), why)


def _compare(
    path: Path, header: Header, entries: Sequence[Entry], known: dict[str, str], advance: Advance
) -> ShardmergeError | None:
    """Return an error for the first entry whose bytes do not have the checksum that is known."""
    spans = [(header.data_offset + entry.begin, header.data_offset + entry.end) for entry in entries]
    for entry, got in zip(entries, checksums(path, spans, advance), strict=True):
        if got != known[entry.name]:
            reason = wrong_bytes(entry.name, got, known[entry.name])
            return CorruptFileError(str(path), reason, do=references.DOWNLOAD)
    return None


def _not_dumped(error: CorruptFileError) -> CorruptFileError:
    """Return what to do about a file here: no dump is at hand to make it from again."""
    return error.not_of_a_dump(references.DOWNLOAD)
