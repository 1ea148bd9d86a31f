"""Decides what the files of a published output become when its metadata are written again.

Names, shapes and dtypes come from the output's ledger, places from its plan, the rest from a reference and from
corrections. What does not fit the tensors that are there is refused. Pure: must not read or write any file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shardmerge.common import canonical_json, places
from shardmerge.common.architectures import Architecture, Blueprint, blueprint, table_of
from shardmerge.common.errors import (
    SAID_TWICE,
    BadInputError,
    Findings,
    MismatchError,
    MissingTensorError,
    ShardmergeError,
    TableMismatchError,
    UnexpectedTensorError,
    raise_problems,
)
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.places import CONFIG, HF_QUANT_CONFIG, INDEX, RECORDS, REPORT

from ..corrections import record
from ..corrections.changes import Change, at, corrected, corrected_facts, is_there, refuse_undone
from ..corrections.record import Recorded
from ..corrections.settle import settled, settled_config, settled_facts
from ..corrections.typed import recordable, same
from ..corrections.written import Correction
from ..hf_files import config_json, index_json
from ..ledger.published import PublishedRecords
from ..proof.config import mtp as steps
from ..proof.config import settings, shapes, vision
from ..quantization import json_files

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class JsonFiles:
    """The JSON files that a decision needs, as they are now.

    config, hf_quant_config: Of the output, None for a file that it does not have.
    reference_config, sidecars: Of the reference. None without one, and then those of the output stay.
    tokenizer_files: Names of the sidecars that --tokenizer gave, now or earlier.
    """

    config: Json
    hf_quant_config: Json | None
    reference_config: Json | None = None
    sidecars: Mapping[str, bytes] | None = None
    tokenizer_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RewrittenFiles:
    """What becomes of the files of an output.

    files: What each holds, by name, in the order in which they are replaced.
    gone: Names of the files that are deleted.
    corrections: What was corrected.
    dropped: Corrections of earlier commands that are none any more: what they had set, and what is there.
    warnings: In what config.json was allowed to differ from the model.
    """

    files: dict[str, bytes]
    gone: tuple[str, ...]
    corrections: Recorded
    dropped: Recorded
    warnings: tuple[str, ...]


def decide(
    records: PublishedRecords,
    present: JsonFiles,
    earlier: Sequence[Change],
    given: Sequence[Correction],
    allow: Collection[str] = (),
    own_table: Architecture | None = None,
) -> RewrittenFiles:
    """Decide what every file but the shards becomes.

    Args:
        records: What the output recorded of its merge.
        present: The JSON files of the output, and of a reference if one was given.
        earlier: Changes that were recorded before, and are repeated where nobody changed their key by hand since.
        given: What config.json, facts or quantization say wrongly all the same.
        allow: Kinds of problems that become warnings. What the merge allowed, word for word, stays allowed.
        own_table: A table of the caller's own.

    Returns:
        All files that a merge writes beside the shards, most of them as they are.

    Raises:
        BadInputError: A correction does not fit what is there, or promises multi-token prediction that was dropped; or
            the architecture is not known.
        TableMismatchError: It was dumped with another table.
        MismatchError, MissingTensorError, UnexpectedTensorError: config.json does not fit the tensors; several such
            as ProblemsFoundError.
    """
    declared = present.config.get("quantization_config")
    mtp = records.report.mtp
    base = _base(present, mtp, own_table)
    statements = json_files.statements(present.hf_quant_config, declared)
    stay = _unedited(earlier, present, statements, mtp, own_table)
    changes = _changes(records.facts, base, statements, stay, given, own_table)
    facts = corrected_facts(records.facts, changes)
    told = corrected("config", base, changes)
    config = as_merged(told, mtp, own_table)
    refuse_undone(told, config, changes)
    hf_quant_config, declares = json_files.corrected_both(present.hf_quant_config, declared, changes)
    table = blueprint(config, records.weight_map, table=own_table)
    raise_problems(_of_output(problems(records, facts, table), present, given))
    compared, warnings = _compared(records, facts, table, allow)
    redeclared = any(change.part == "quantization" and change not in stay for change in changes)
    if present.reference_config is not None or redeclared:
        dtype = (records.facts.dtype or "") if declared else records.dominant_dtype
        config = final_config(config, dtype, declares, changes, mtp=mtp, table=table.architecture)
    before = _before(present, base, statements, records.report.corrections, stay)
    recorded = _recorded(records.facts, before, changes)
    now = {"config": config, "quantization": json_files.statements(hf_quant_config, declares)}
    dropped = _dropped(records.report.corrections, recorded, now)
    listed = records.report.sidecars
    sidecars = sorted(present.sidecars) if present.sidecars is not None else list(listed)
    files = dict(sorted(present.sidecars.items())) if present.sidecars is not None else {}
    files |= _own_files(config, hf_quant_config)
    files[f"{RECORDS}/{REPORT}"] = _report(records, present, recorded, sidecars, compared, warnings)
    files |= _index(records)
    gone = tuple(name for name in listed if name not in sidecars and places.is_sidecar(name))
    return RewrittenFiles(files, gone, recorded, dropped, warnings)


def _base(present: JsonFiles, mtp: str, own_table: Architecture | None) -> Json:
    """Return the config.json that is corrected: the reference's as far as it was merged, else that of the output."""
    if present.reference_config is None:
        return present.config
    return as_merged(present.reference_config, mtp, own_table)


def as_merged(config: Json, mtp: str, table: Architecture | None = None) -> Json:
    """Return a config.json without what the merge left out.

    Args:
        config: What it says.
        mtp: Where multi-token prediction comes from, as `Case.mtp`.
        table: A table of the caller's own.

    Returns:
        The same, or if that was dropped a copy that promises none.

    Raises:
        BadInputError: Its architecture is not known.
    """
    known = table_of(config, table).mtp if mtp == "dropped" else None
    return known.without(config) if known else config


def final_config(
    config: Json,
    dtype: str,
    quantization_config: Json | None,
    changes: Sequence[Change],
    *,
    mtp: str,
    table: Architecture | None = None,
) -> Json:
    """Return what config.json holds. Corrections have the last word, also over what a merge writes into it.

    Args:
        config: The reference's.
        dtype: What plain weights are, as safetensors spells it.
        quantization_config: What the checkpoint declares of itself, None for nothing.
        changes: Corrections. Those of other parts are ignored.
        mtp: Where multi-token prediction comes from. If it was dropped, no correction promises it again.
        table: The table that was merged with.

    Returns:
        A new dict.

    Raises:
        BadInputError: A change leads through something that is not an object.
    """
    composite = table_of(config, table).composite
    edited = config_json.edited(config, dtype, quantization_config, composite.config if composite else "")
    return as_merged(corrected("config", edited, changes), mtp, table)


def problems(records: PublishedRecords, facts: Facts, table: Blueprint) -> Iterator[ShardmergeError]:
    """Yield what a config.json contradicts.

    Args:
        records: What the output recorded of its merge: its tensors.
        facts: Of the dump, corrected.
        table: The config.json, with the table of its architecture.

    Returns:
        Errors that are not raised: another architecture or dimension than was dumped, tensors that differ.
    """
    yield from (other := shapes.against_dump(table, records.architecture, facts))
    if any(isinstance(one, TableMismatchError) for one in other):
        return
    if table.architecture.name != records.architecture:
        return
    if not records.plain:
        # packed weights have shapes of their own, and companions: the merge compared them, but no dimension tells steps
        yield from steps.against_names(table, records.names)
        return
    compared = shapes.against_tensors(table, dict(zip(records.names, records.shapes, strict=True)))
    yield from compared.problems
    # grafts may be outside the table
    strange = (name for name in compared.strange if name not in records.plan.grafted)
    yield from (UnexpectedTensorError(name, (), table.architecture.name) for name in strange)


def _own_files(config: Json, hf_quant_config: Json | None) -> dict[str, bytes]:
    files = {} if hf_quant_config is None else {HF_QUANT_CONFIG: config_json.readable(hf_quant_config)}
    return files | {CONFIG: config_json.readable(config)}


def _compared(
    records: PublishedRecords, facts: Facts, table: Blueprint, allow: Collection[str]
) -> tuple[settings.Compared, tuple[str, ...]]:
    """Compare config.json with what the model computes. Returns what was compared, and what was allowed to differ.

    Raises what differs and may not, and what config.json says twice.
    """
    found = (
        *settings.contradictions_of(table),
        *settings.differences(table, facts, mtp=records.report.mtp),
        *vision.missing(table, records.names),
    )
    known = settings.allowed_before(found, records.report.warnings)
    judged = Findings(known.problems).allowing(allow)
    raise_problems(judged.problems)
    return settings.compared(table, facts, mtp=records.report.mtp), (*known.warnings, *judged.warnings)


def _report(
    records: PublishedRecords,
    present: JsonFiles,
    recorded: Recorded,
    sidecars: Sequence[str],
    compared: settings.Compared,
    warnings: Sequence[str],
) -> bytes:
    """Return report.json, in which what is said of config.json is said anew."""
    begin = (SAID_TWICE, *(f"{name} (" for name in records.report.differing))
    others = [
        one for one in records.report.warnings if not (one.startswith(begin) and one.endswith("(allowed)"))
    ]
    checked = {"corrections": recorded, "config": asdict(compared), "warnings": (*others, *warnings)}
    return canonical_json.encode(records.report.changed(checked, sidecars, present.tokenizer_files), indent=2)


def _index(records: PublishedRecords) -> dict[str, bytes]:
    """Return the index, and nothing if there is only one shard."""
    if len(records.plan.shards) == 1:
        return {}
    return {INDEX: index_json.encode(records.weight_map, records.num_parameters, records.total_bytes)}


def _changes(
    facts: Facts,
    config: Json,
    statements: Json,
    earlier: Sequence[Change],
    given: Sequence[Correction],
    own_table: Architecture | None,
) -> tuple[Change, ...]:
    """Return earlier changes, and those that corrections make of what these left."""
    said = corrected("quantization", statements, earlier)
    later = (
        *settled_config(corrected("config", config, earlier), given, own_table),
        *settled_facts(corrected_facts(facts, earlier), given),
        *settled("quantization", said, given),
    )
    return record.followed_by(earlier, later)


def _unedited(
    earlier: Sequence[Change], present: JsonFiles, statements: Json, mtp: str, own_table: Architecture | None
) -> tuple[Change, ...]:
    """Return the changes whose key still says what they made of it: what somebody wrote there since has come to stay.

    A config.json that is replaced by the reference's has nothing to stay.
    """

    def stands(change: Change) -> bool:
        if change.part == "quantization":
            return same(recordable(at(statements, change.path)), change.value)
        if change.part != "config" or present.reference_config is not None:
            return True
        try:
            again = as_merged(corrected("config", present.config, (change,)), mtp, own_table)
        except BadInputError:  # its key leads through what is no object any more
            return False
        there = is_there(again, change.path) == is_there(present.config, change.path)
        return there and same(at(again, change.path), at(present.config, change.path))

    return tuple(filter(stands, earlier))


def _before(
    present: JsonFiles, base: Json, statements: Json, known: Recorded, stay: Sequence[Change]
) -> dict[str, Json]:
    """Return what the reference and the merge said before any correction, as far as it is known, by part."""
    made = {change.key: known[change.key] for change in stay}
    config = base if present.reference_config is not None else record.undone("config", base, made)
    return {"config": config, "quantization": record.undone("quantization", statements, made)}


def _recorded(facts: Facts, before: Mapping[str, Json], changes: Sequence[Change]) -> Recorded:
    """Return what was corrected: what was said `before` any correction, and by the dump, and what is said now."""
    said = {**before, "facts": facts.as_json()}
    return {key: told for part in said for key, told in record.recorded(part, said[part], changes).items()}


def _dropped(known: Recorded, recorded: Recorded, now: Mapping[str, Json]) -> Recorded:
    """Return earlier corrections that are none any more, unless what they had set is there all the same."""
    gone = [change for change in record.replayed(known) if change.key not in recorded and change.part in now]
    found = [(change, recordable(at(now[change.part], change.path))) for change in gone]
    return {
        change.key: {"was": change.value, "now": value}
        for change, value in found
        if not same(change.value, value)
    }


def _of_output(
    found: Iterator[ShardmergeError], present: JsonFiles, given: Sequence[Correction]
) -> Iterator[ShardmergeError]:
    """Yield problems that say what to do about them here, where there is no dump and perhaps no reference."""
    set_now = ", ".join(one.said for one in given if one.part != "quantization")
    if set_now:
        do = f"Leave away {set_now}, or set what the tensors have; nothing was changed."
    elif present.reference_config is not None:
        do = "The reference's config.json is not this model's: give that of the same model; nothing was changed."
    else:
        do = (
            "config.json was changed since it was merged: correct it (--set config.KEY=VALUE), or give --hf-reference, "
            "from which it is written again; nothing was changed."
        )
    for problem in found:
        if isinstance(problem, MismatchError | MissingTensorError):
            yield replace(problem, do=do)
        else:
            yield problem
