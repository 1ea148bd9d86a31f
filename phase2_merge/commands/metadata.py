"""The story of `metadata`: everything of a published output but its shards, written again in seconds.

Names, shapes and dtypes come from the kept ledger, places from the kept plan, the rest from a reference and from
corrections. What does not fit the tensors that are there is refused before anything changes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardmerge.common import canonical_json, durable
from shardmerge.common import reference as references
from shardmerge.common.architectures import Blueprint, blueprint
from shardmerge.common.errors import (
    CorruptFileError,
    OutputExistsError,
    ShardmergeError,
    UnexpectedTensorError,
    raise_problems,
)
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.places import CONFIG, HF_QUANT_CONFIG, INDEX, RECORDS, REPORT

from .. import corrections as correcting
from ..corrections import Correction, Recorded, of_part
from ..hf_files import config_json as hf_metadata
from ..hf_files import sidecars
from ..ledger import published as kept
from ..ledger.published import PublishedPlan, PublishedRecords
from ..output import replace_files as rewriting
from ..proof import config_shapes
from ..quantization import declaration
from ..quantization import json_files as quantization_json
from ..shards.plan import Plan

STATEMENTS = ("quant_algo", "kv_cache_quant_algo", "exclude_modules")  # what a merge always writes


@dataclass(frozen=True, slots=True)
class MetadataReport:
    """What was written again."""

    out: str
    num_tensors: int
    num_shards: int
    changed: tuple[str, ...]
    corrections: Recorded
    seconds: float

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        what = f"Rewrote {', '.join(self.changed)}" if self.changed else "Nothing to change"
        size = f"{self.num_shards:,} shards with {self.num_tensors:,} tensors were not touched"
        told = f"{what} in {self.out}; {size}, in {self.seconds:.1f} s."
        return "\n".join([told, *correcting.lines(self.corrections)])


def metadata(
    out: str | Path, *, hf_reference: str | Path | None = None, corrections: Sequence[str] = ()
) -> MetadataReport:
    """Write config.json, index, sidecars and report of the published `out` again; shards are not touched.

    hf_reference: where config.json and sidecars come from; without it those of `out` stay, with earlier corrections.
    corrections: `facts.KEY=VALUE`, `config.KEY=VALUE`; recorded in the report.
    Raises BadInputError (no output of shardmerge, a wrong correction), OutputLockedError, and what contradicts the
    tensors in `out`, as one error or ProblemsFoundError; nothing has changed then.
    """
    given = correcting.parse(corrections)
    out, reference = Path(os.path.abspath(out)), Path(hf_reference) if hf_reference else None
    if not kept.is_output(out):
        kept.read(out)  # says what is missing
    with rewriting.rewriting(out):
        book = kept.read(out)
        earlier = correcting.replayed(book.report.corrections)
        stay = [one for one in earlier if reference is None or one.part != "config"]
        newer = {one.key for one in given}
        return rewrite(out, book, reference, (*(one for one in stay if one.key not in newer), *given))


def republish(out: Path, plan: Plan, reference: Path, given: tuple[Correction, ...]) -> MetadataReport:
    """What a merge does whose output was published before: the same dump in the same shards, metadata anew.

    Raises OutputExistsError if `out` is anything else.
    """
    refuse_other(out)
    with rewriting.rewriting(out):
        book = kept.read(out)
        if book.plan.facts != plan.facts():
            raise OutputExistsError(str(out), _difference(book.plan, plan.facts()))
        return rewrite(out, book, reference, given)


def published_plan(out: Path) -> dict[str, Any]:
    """The plan of a published output. Raises OutputExistsError if shardmerge did not publish it."""
    refuse_other(out)
    return kept.read(out).plan.facts


def refuse_other(out: Path) -> None:
    """Raise OutputExistsError unless shardmerge published `out`."""
    if not kept.is_output(out):
        raise OutputExistsError(str(out))


def rewrite(
    out: Path, book: PublishedRecords, reference: Path | None, corrections: tuple[Correction, ...]
) -> MetadataReport:
    """Judge, then replace. Call it while `out` is locked."""
    started = time.monotonic()
    base, published = references.read_config(reference or out), references.read_config(out)
    declaration.read(out, published)  # says what is wrong with them
    hf, declared = _hf_quant_config(out), published.get("quantization_config")
    facts = correcting.corrected_facts(book.facts, corrections)
    config = correcting.corrected("config", base, corrections)
    quantization = quantization_json.corrected_both(hf, declared, corrections)
    raise_problems(problems(book, facts, blueprint(config)))
    if reference or of_part("quantization", corrections):
        dtype = (book.facts.dtype or "") if declared else book.dominant_dtype
        config = hf_metadata.edited(config, dtype, quantization[1])
        config = correcting.corrected("config", config, corrections)
    told = _recorded(book, base, quantization_json.statements(hf, declared), corrections)
    before, now = book.report.sidecars, sidecars.names(reference) if reference else None
    files = {name: (reference / name).read_bytes() for name in now or () if reference}
    files |= _own_files(book, config, quantization[0], told, before if now is None else now)
    gone = [name for name in before if now is not None and name not in now]
    changed = rewriting.replace(out, files, gone)
    seconds = round(time.monotonic() - started, 3)
    return MetadataReport(str(out), len(book.names), len(book.plan.shards), changed, told, seconds)


def _hf_quant_config(out: Path) -> dict[str, Any] | None:
    path = out / HF_QUANT_CONFIG
    found = canonical_json.read_object(path) if path.is_file() else None
    if found is not None:
        told = found.get("quantization")
        lacks = {*STATEMENTS} - set(told) if isinstance(told, dict) else {"quantization"}
        if lacks or "producer" not in found:
            raise CorruptFileError(str(path), f"it lacks {min({*lacks, 'producer'})}")
    return found


def problems(book: PublishedRecords, facts: Facts, table: Blueprint) -> Iterator[ShardmergeError]:
    """What a config.json contradicts: facts of the dump, or tensors in the output."""
    name = table.architecture.name
    yield from config_shapes.against_facts(table, book.architecture, facts)
    # packed weights have shapes of their own, and companions: the merge compared them
    if name != book.architecture or not book.plain:
        return
    compared = config_shapes.against_tensors(table, dict(zip(book.names, book.shapes, strict=True)))
    yield from compared.problems
    grafted = book.plan.grafted  # which may be outside the table
    yield from (UnexpectedTensorError(each, (), name) for each in compared.strange if each not in grafted)


def correct_config(folder: Path, corrections: tuple[Correction, ...]) -> None:
    """Corrections have the last word, also over what a merge writes into config.json."""
    if correcting.of_part("config", corrections):
        config = correcting.corrected("config", references.read_config(folder), corrections)
        durable.write_file(folder / CONFIG, hf_metadata.readable(config))


def _own_files(
    book: PublishedRecords,
    config: dict[str, Any],
    hf: dict[str, Any] | None,
    told: Recorded,
    beside: Sequence[str],
) -> dict[str, bytes]:
    """hf_quant_config.json, config.json, our report, and last the index."""
    report = book.report.changed(told, beside)
    files = {} if hf is None else {HF_QUANT_CONFIG: hf_metadata.readable(hf)}
    files[CONFIG] = hf_metadata.readable(config)
    files[f"{RECORDS}/{REPORT}"] = canonical_json.encode(report, indent=2)
    if len(book.plan.shards) > 1:
        files[INDEX] = hf_metadata.index_bytes(book.weight_map, book.num_parameters, book.total_bytes)
    return files


def _recorded(
    book: PublishedRecords,
    base: dict[str, Any],
    quantization: dict[str, Any],
    corrections: tuple[Correction, ...],
) -> Recorded:
    """What was corrected; of a key that was corrected before, what it was at first."""
    told = correcting.recorded("config", base, corrections)
    told |= correcting.recorded("facts", book.facts.as_json(), corrections)
    told |= correcting.recorded("quantization", quantization, corrections)
    earlier = book.report.corrections
    return {key: {**one, "was": earlier.get(key, one)["was"]} for key, one in told.items()}


def _difference(old: PublishedPlan, new: dict[str, Any]) -> str:
    if old.ledger_digest != new["ledger_digest"]:
        return "it was merged from another dump"
    return "it was merged from this dump into other shards (layout, shard size or selection differ)"
