"""The story of `metadata`: write everything of a published output but its shards again, in seconds.

`rewritten_files` decides what the files become, and `output` replaces them. A merge into its own output does the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from shardmerge.common import canonical_json, places, plausible_sizes, regular_files
from shardmerge.common import reference as references
from shardmerge.common.architectures import Architecture, own
from shardmerge.common.command.talk import say
from shardmerge.common.errors import (
    BadInputError,
    CorruptFileError,
    MissingConfigError,
    OutputExistsError,
    not_a_directory,
)
from shardmerge.common.errors.output import COPY_OUTPUT
from shardmerge.common.errors.wording import be, counted
from shardmerge.common.places import HF_QUANT_CONFIG
from shardmerge.common.processes import owner

from ..corrections import record
from ..corrections.changes import Change
from ..corrections.record import Recorded
from ..corrections.written import Correction, parse
from ..hf_files import sidecars
from ..hf_files import tokenizer as tokenizers
from ..ledger import published
from ..ledger.published import PublishedPlan, PublishedRecords
from ..options import ALLOW_CONFIG, Asked, refuse_unknown
from ..output import journal
from ..proof.prove import Proof
from ..quantization import declaration, json_files
from ..shards import final_proof
from ..shards.plan import Plan
from .report import warning_lines, what_changed
from .rewritten_files import JsonFiles, decide

WRITE_CONFIG = (
    "Put back the one that was published, or have it written again: `shardmerge metadata {} --hf-reference REFERENCE`, "
    "where REFERENCE is a Hugging Face directory of the same model."
)
MERGE_ELSEWHERE = (
    "Copy the one that was published with {}, or merge into another OUT: it alone declared the quantization."
)
# `journal.replace` or `journal.changes`, of one output: which files changed, or would, and which were deleted
Put: TypeAlias = Callable[[Mapping[str, bytes], Sequence[str]], tuple[Sequence[str], Sequence[str]]]
STATEMENTS = ("quant_algo", "kv_cache_quant_algo", "exclude_modules")  # what a merge always writes


@dataclass(frozen=True, slots=True)
class MetadataReport:
    """What `metadata` wrote again."""

    out: str
    num_tensors: int
    num_shards: int
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    corrections: Recorded
    dropped: Recorded
    warnings: tuple[str, ...]
    seconds: float

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def scope(self) -> tuple[list[str], list[str]]:
        """Return what was checked, and what not."""
        checked = [
            "config.json and what is declared of a quantization, against the names, shapes and dtypes of the ledger",
            "sizes of all shards",
        ]
        return checked, ["the bytes of tensors (verify)"]

    def text(self) -> str:
        shards = f"{counted(self.num_shards, 'shard')} with {counted(self.num_tensors, 'tensor')}"
        size = f"{shards} {be(self.num_shards)} not touched"
        what = what_changed(self.changed, self.removed)
        line = f"{what[0].upper()}{what[1:]} in {self.out}; {size}, in {self.seconds:.1f} s."
        told = [*record.lines(self.corrections), *record.lines_of_dropped(self.dropped)]
        return "\n".join([line, *told, *warning_lines(self.warnings)])


@dataclass(frozen=True, slots=True)
class Republished:
    """What a merge into its own output did there.

    metadata: What it wrote again.
    beside: The sidecars that the output has now, by name.
    kept_tokenizer: Names of those of them that an earlier command took from --tokenizer.
    """

    metadata: MetadataReport
    beside: Mapping[str, bytes]
    kept_tokenizer: tuple[str, ...]


def metadata(
    out: str | Path,
    *,
    hf_reference: str | Path | None = None,
    tokenizer: str | Path | None = None,
    corrections: Sequence[str] = (),
    new_corrections: Sequence[str] = (),
    allow: Collection[str] = (),
    architecture: str | Architecture | None = None,
    break_lock: bool = False,
    talk: TextIO | None = None,
) -> MetadataReport:
    """Write config.json, index, sidecars and report of the published `out` again; shards are not touched.

    First finishes what an interrupted `metadata` began.

    Args:
        out: A directory that a merge published.
        hf_reference: Where config.json and sidecars come from, in place of those of `out` and of earlier corrections
            of config.json. Without it those of `out` stay, as they were corrected, or edited by hand since.
        tokenizer: Directory where the files of the tokenizer come from instead.
        corrections: `facts.KEY=VALUE`, `config.KEY=VALUE`, `quantization.KEY=VALUE`, where VALUE is JSON of the type
            that is there; recorded in the report.
        new_corrections: `config.KEY=VALUE`: adds a key, or replaces what is there whatever it is. Recorded too.
        allow: "config": config.json may say other than the model computes. What the merge was allowed stays allowed.
        architecture: A table of one's own, or `package.module:TABLE`; the one that was merged with.
        break_lock: Take the lock of `out` from commands on other hosts, which are known to have ended.
        talk: Where to say what others left.

    Returns:
        Which files changed.

    Raises:
        BadInputError: `out` is not an output of shardmerge, or a correction is wrong.
        OutputLockedError: Another command is rewriting `out`.
        ShardmergeError: What contradicts the tensors in `out`, as one error or ProblemsFoundError. Nothing has
            changed then.
    """
    refuse_unknown("allow", allow, [ALLOW_CONFIG])
    given = parse(corrections, new_corrections)
    own_table = None if architecture is None else own.named(architecture)
    out, reference = (
        Path(os.path.abspath(out)),
        references.located(Path(hf_reference)) if hf_reference else None,
    )
    me = owner.here("a rewriting of metadata")
    with journal.rewriting(out, me, talk, lambda: _require_output(out), break_lock=break_lock) as held:
        records = published.read(out)
        published.require_shards(out, records)
        earlier = record.replayed(records.report.corrections)
        stay = tuple(change for change in earlier if reference is None or change.part != "config")
        present = _read(out, records, reference)
        if reference is not None or tokenizer is not None:
            elsewhere = Path(tokenizer) if tokenizer else None
            files = sidecars.tokenizer_names(elsewhere) if elsewhere else ()
            beside = _beside(out, records, reference, elsewhere)
            present = replace(present, sidecars=beside, tokenizer_files=files)
        return _rewrite(out, partial(journal.replace, held), records, present, stay, given, allow, own_table)


def _beside(
    out: Path, records: PublishedRecords, reference: Path | None, tokenizer: Path | None
) -> Mapping[str, bytes]:
    """Return the sidecars that the output is to have."""
    stay = () if reference else records.report.sidecars
    kept = _kept(out, (name for name in stay if not places.is_of_tokenizer(name)))
    return kept | sidecars.gather(reference, tokenizer)


def _kept(out: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Return what sidecars of the output hold that stay, as far as they are there."""
    there = (name for name in names if regular_files.exists(out / name, out))
    return {name: sidecars.content(out, name) for name in there}


def republish(
    out: Path,
    plan: Plan,
    proof: Proof,
    asked: Asked,
    beside: Mapping[str, bytes],
    tokenizer_files: tuple[str, ...],
    talk: TextIO | None,
    *,
    break_lock: bool = False,
    dry_run: bool = False,
) -> Republished:
    """Write the metadata again for a merge whose output was published before, from the same dump in the same shards.

    What earlier commands corrected stays, and so does a tokenizer that they were given, unless this merge says
    otherwise.

    Args:
        out: What the merge would publish.
        plan: Its shards.
        proof: Names the reference and the choice about multi-token prediction.
        asked: Says what this merge corrects and allows.
        beside: The sidecars of the reference, and the tokenizer that this merge was given, by name.
        tokenizer_files: Names of the files of that tokenizer, none if it was given none.
        talk: Where to say what others left.
        break_lock: Take the lock of `out` from commands on other hosts.
        dry_run: Find out all the same, and write nothing. No lock is taken: who writes just now may have ended when
            the merge is run.

    Returns:
        What was written again, or would be, and what stayed.

    Raises:
        OutputExistsError: `out` is anything else.
        ShardsChangedError: Its shards are not all there, or have other sizes or headers.
        ShardmergeError, OSError: As for `metadata`.
    """
    again = partial(_again, out, plan, proof, asked, beside, tokenizer_files)
    if dry_run:
        for warning in journal.interrupted(out):
            say(talk, f"Warning: {warning}")
        return again(partial(journal.changes, out))
    me = owner.here("a merge into what was published before")
    with journal.rewriting(out, me, talk, lambda: refuse_other(out), break_lock=break_lock) as held:
        return again(partial(journal.replace, held))


def _again(
    out: Path,
    plan: Plan,
    proof: Proof,
    asked: Asked,
    beside: Mapping[str, bytes],
    tokenizer_files: tuple[str, ...],
    put: Put,
) -> Republished:
    """Decide what `republish` writes, and put it there, or find out what that would change."""
    records = published.read(out)
    if records.plan.facts != plan.facts():
        raise OutputExistsError(str(out), _difference(records.plan, plan.facts()))
    final_proof.require(plan, out)
    records = replace(records, report=records.report.choosing(proof.mtp))
    kept = {} if tokenizer_files else _kept(out, records.report.tokenizer_files)
    if kept:
        beside = {name: data for name, data in beside.items() if not places.is_of_tokenizer(name)} | kept
    present = _read(out, records, proof.reference.path)
    present = replace(present, sidecars=beside, tokenizer_files=tokenizer_files or tuple(kept))
    earlier = record.replayed(records.report.corrections)
    given = parse(asked.corrections, asked.new_corrections)
    table = proof.blueprint.architecture
    rewritten = _rewrite(out, put, records, present, earlier, given, asked.allow, table)
    return Republished(rewritten, beside, tuple(kept))


def published_plan(out: Path) -> dict[str, Any]:
    """Return the plan of a published output. Raises OutputExistsError if shardmerge did not publish it."""
    refuse_other(out)
    return published.read(out).plan.facts


def refuse_other(out: Path) -> None:
    """Raise OutputExistsError unless shardmerge published `out`."""
    if not published.is_output(out):
        raise OutputExistsError(str(out))


def _require_output(out: Path) -> None:
    """Raise BadInputError unless shardmerge published `out`."""
    if not out.is_dir():
        raise not_a_directory(out, "Give a directory that shardmerge merge published.")
    if not published.is_output(out):
        published.read(out)  # says what is missing


def _rewrite(
    out: Path,
    put: Put,
    records: PublishedRecords,
    present: JsonFiles,
    changes: tuple[Change, ...],
    given: tuple[Correction, ...],
    allow: Collection[str],
    table: Architecture | None,
) -> MetadataReport:
    """Decide, and put the files there."""
    started = time.monotonic()
    decided = decide(records, present, changes, given, allow, table)
    changed, removed = put(decided.files, decided.gone)
    return MetadataReport(
        out=str(out),
        num_tensors=len(records.names),
        num_shards=len(records.plan.shards),
        changed=tuple(changed),
        removed=tuple(removed),
        corrections=decided.corrections,
        dropped=decided.dropped,
        warnings=(*decided.warnings, *_of_tokenizer(present, records)),
        seconds=round(time.monotonic() - started, 3),
    )


def _of_tokenizer(present: JsonFiles, records: PublishedRecords) -> Iterator[str]:
    """Yield what is strange about a tokenizer that comes from elsewhere."""
    if present.sidecars is not None:
        yield from tokenizers.warnings(present.sidecars, (records.facts.dimensions or {}).get("vocab"))


def _read(out: Path, records: PublishedRecords, reference: Path | None) -> JsonFiles:
    """Read the JSON files of the output and of the reference. The sidecars are those that are there.

    Raises MissingConfigError, BadInputError for a config.json that is not JSON, and CorruptFileError for what cannot be
    read or is not a declaration.
    """
    reference_config = references.read_config(reference) if reference else None
    hf_quant_config = _hf_quant_config(out)
    config = _config(out, records, hf_quant_config, lost_is_written=reference is not None)
    try:
        declaration.read(out, config)  # says what is wrong with both
    except CorruptFileError as error:
        raise error.not_of_a_dump(COPY_OUTPUT) from None
    files = records.report.tokenizer_files
    return JsonFiles(config, hf_quant_config, reference_config, tokenizer_files=files)


def _config(
    out: Path, records: PublishedRecords, hf_quant_config: dict[str, Any] | None, *, lost_is_written: bool
) -> dict[str, Any]:
    """Return the config.json of the output. One that is lost and written again declares what hf_quant_config.json does.

    Raises MissingConfigError, BadInputError for one that is not JSON.
    """
    try:
        return references.read_config(out)
    except (MissingConfigError, BadInputError) as error:
        is_declared = hf_quant_config is not None or records.plain
        if not (lost_is_written and is_declared):
            do = WRITE_CONFIG.format(out) if is_declared else MERGE_ELSEWHERE.format(out)
            raise replace(error, do=do) from None
    return {} if hf_quant_config is None else json_files.declared_again(hf_quant_config)


def _hf_quant_config(out: Path) -> dict[str, Any] | None:
    """Return hf_quant_config.json, None if there is none. Raises CorruptFileError if it lacks what a merge writes."""
    path = out / HF_QUANT_CONFIG
    if not regular_files.exists(path, out):
        return None
    content = canonical_json.read_object(path, out, plausible_sizes.CONFIG)
    stated = content.get("quantization")
    lacks = {*STATEMENTS} - set(stated) if isinstance(stated, dict) else {"quantization"}
    if lacks or "producer" not in content:
        raise CorruptFileError(str(path), f"it lacks {min({*lacks, 'producer'})}", do=COPY_OUTPUT)
    return content


def _difference(old: PublishedPlan, new: dict[str, Any]) -> str:
    """Return in words how the plan of an output differs from a new one."""
    if old.ledger_digest != new["ledger_digest"]:
        return "it was merged from another dump"
    return "it was merged from this dump into other shards (layout, shard size or selection differ)"
