"""The story of `metadata`: write everything of a published output but its shards again, in seconds.

`rewritten_files` decides what the files become, and `output` replaces them. A merge into its own output does the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from shardmerge.common import canonical_json, places, plausible_sizes, regular_files
from shardmerge.common import reference as references
from shardmerge.common.architectures import Architecture, own
from shardmerge.common.errors import CorruptFileError, OutputExistsError, not_a_directory
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
from ..options import ALLOW_CONFIG, refuse_unknown
from ..output import journal
from ..output.lock import Lock
from ..proof.prove import Proof
from ..quantization import declaration
from ..shards import final_proof
from ..shards.plan import Plan
from .report import warning_lines
from .rewritten_files import JsonFiles, decide

STATEMENTS = ("quant_algo", "kv_cache_quant_algo", "exclude_modules")  # what a merge always writes


@dataclass(frozen=True, slots=True)
class MetadataReport:
    """What `metadata` wrote again."""

    out: str
    num_tensors: int
    num_shards: int
    changed: tuple[str, ...]
    corrections: Recorded
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
        what = f"Rewrote {', '.join(self.changed)}" if self.changed else "Nothing to change"
        shards = f"{counted(self.num_shards, 'shard')} with {counted(self.num_tensors, 'tensor')}"
        size = f"{shards} {be(self.num_shards)} not touched"
        line = f"{what} in {self.out}; {size}, in {self.seconds:.1f} s."
        return "\n".join([line, *record.lines(self.corrections), *warning_lines(self.warnings)])


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
        hf_reference: Where config.json and sidecars come from; without it those of `out` stay, with earlier
            corrections.
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
        beside = _beside(out, records, reference, Path(tokenizer) if tokenizer else None)
        return _rewrite(held, records, _read(out, reference, beside), stay, given, allow, own_table)


def _beside(
    out: Path, records: PublishedRecords, reference: Path | None, tokenizer: Path | None
) -> Mapping[str, bytes] | None:
    """Return the sidecars that the output is to have, None if those that it has stay."""
    if reference is None and tokenizer is None:
        return None
    stay = () if reference else records.report.sidecars
    kept = {name: sidecars.content(out, name) for name in stay if not places.is_of_tokenizer(name)}
    return kept | sidecars.gather(reference, tokenizer)


def republish(
    out: Path,
    plan: Plan,
    proof: Proof,
    beside: Mapping[str, bytes],
    talk: TextIO | None,
    *,
    break_lock: bool = False,
) -> MetadataReport:
    """Write the metadata again for a merge whose output was published before, from the same dump in the same shards.

    Args:
        out: What the merge would publish.
        plan: Its shards.
        proof: Names the reference, the changes (earlier ones do not count), and the choice about multi-token
            prediction.
        beside: The sidecars, by name.
        talk: Where to say what others left.
        break_lock: Take the lock of `out` from commands on other hosts.

    Returns:
        Which files changed.

    Raises:
        OutputExistsError: `out` is anything else.
        ShardsChangedError: Its shards are not all there, or have other sizes or headers.
        ShardmergeError, OSError: As for `metadata`.
    """
    me = owner.here("a merge into what was published before")
    with journal.rewriting(out, me, talk, lambda: refuse_other(out), break_lock=break_lock) as held:
        records = published.read(out)
        if records.plan.facts != plan.facts():
            raise OutputExistsError(str(out), _difference(records.plan, plan.facts()))
        final_proof.require(plan, out)
        records = replace(records, report=records.report.choosing(proof.mtp))
        allow = [ALLOW_CONFIG]  # the proof allowed it
        table = proof.blueprint.architecture
        present = _read(out, proof.reference.path, beside)
        return _rewrite(held, records, present, proof.changes, (), allow, table)


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
    held: Lock,
    records: PublishedRecords,
    present: JsonFiles,
    changes: tuple[Change, ...],
    given: tuple[Correction, ...],
    allow: Collection[str],
    table: Architecture | None,
) -> MetadataReport:
    """Decide, replace."""
    started, out = time.monotonic(), held.folder
    decided = decide(records, present, changes, given, allow, table)
    changed = journal.replace(held, decided.files, decided.gone)
    return MetadataReport(
        out=str(out),
        num_tensors=len(records.names),
        num_shards=len(records.plan.shards),
        changed=changed,
        corrections=decided.corrections,
        warnings=(*decided.warnings, *_of_tokenizer(present, records)),
        seconds=round(time.monotonic() - started, 3),
    )


def _of_tokenizer(present: JsonFiles, records: PublishedRecords) -> Iterator[str]:
    """Yield what is strange about a tokenizer that comes from elsewhere."""
    if present.sidecars is not None:
        yield from tokenizers.warnings(present.sidecars, (records.facts.dimensions or {}).get("vocab"))


def _read(out: Path, reference: Path | None, beside: Mapping[str, bytes] | None) -> JsonFiles:
    """Read the JSON files of the output and of the reference, and add what is to stand beside them.

    Raises MissingConfigError, and CorruptFileError for what cannot be read or is not a declaration.
    """
    reference_config = references.read_config(reference) if reference else None
    config = references.read_config(out)
    declaration.read(out, config)  # says what is wrong with both
    hf_quant_config = _hf_quant_config(out)
    return JsonFiles(config, hf_quant_config, reference_config, beside)


def _hf_quant_config(out: Path) -> dict[str, Any] | None:
    """Return hf_quant_config.json, None if there is none. Raises CorruptFileError if it lacks what a merge writes."""
    path = out / HF_QUANT_CONFIG
    if not regular_files.exists(path, out):
        return None
    content = canonical_json.read_object(path, out, plausible_sizes.CONFIG)
    stated = content.get("quantization")
    lacks = {*STATEMENTS} - set(stated) if isinstance(stated, dict) else {"quantization"}
    if lacks or "producer" not in content:
        raise CorruptFileError(str(path), f"it lacks {min({*lacks, 'producer'})}")
    return content


def _difference(old: PublishedPlan, new: dict[str, Any]) -> str:
    """Return in words how the plan of an output differs from a new one."""
    if old.ledger_digest != new["ledger_digest"]:
        return "it was merged from another dump"
    return "it was merged from this dump into other shards (layout, shard size or selection differ)"
