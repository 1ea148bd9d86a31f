"""Decides what the files of a published output become when its metadata are written again.

Names, shapes and dtypes come from the output's ledger, places from its plan, the rest from a reference and from
corrections. What does not fit the tensors that are there is refused. Pure: must not read or write any file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shardmerge.common import canonical_json, places
from shardmerge.common.architectures import Blueprint, blueprint, table_of
from shardmerge.common.errors import (
    Findings,
    ShardmergeError,
    UnexpectedTensorError,
    raise_problems,
)
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.places import CONFIG, HF_QUANT_CONFIG, INDEX, RECORDS, REPORT

from .. import corrections as correcting
from ..corrections import Correction, Recorded
from ..hf_files import config_json, index_json
from ..ledger.published import PublishedRecords
from ..proof.config import settings, shapes
from ..quantization import json_files

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class JsonFiles:
    """The JSON files that a decision needs, as they are now.

    config, hf_quant_config: Of the output, None for a file that it does not have.
    reference_config, sidecars: Of the reference. None without one, and then those of the output stay.
    """

    config: Json
    hf_quant_config: Json | None
    reference_config: Json | None = None
    sidecars: Mapping[str, bytes] | None = None


@dataclass(frozen=True, slots=True)
class RewrittenFiles:
    """What becomes of the files of an output.

    files: What each holds, by name, in the order in which they are replaced.
    gone: Names of the files that are deleted.
    corrections: What was corrected.
    warnings: In what config.json was allowed to differ from the model.
    """

    files: dict[str, bytes]
    gone: tuple[str, ...]
    corrections: Recorded
    warnings: tuple[str, ...]


def decide(
    records: PublishedRecords,
    present: JsonFiles,
    corrections: Sequence[Correction],
    allow: Collection[str] = (),
) -> RewrittenFiles:
    """Decide what every file but the shards becomes.

    Args:
        records: What the output recorded of its merge.
        present: The JSON files of the output, and of a reference if one was given.
        corrections: What config.json, facts or quantization say wrongly.
        allow: Kinds of problems that become warnings. In what the merge was allowed to differ, config.json still may.

    Returns:
        All files that a merge writes beside the shards, most of them as they are.

    Raises:
        BadInputError: A correction is of a key that is not there, or the architecture is not known.
        MismatchError, MissingTensorError, UnexpectedTensorError: config.json does not fit the tensors; several such
            as ProblemsFoundError.
    """
    declared = present.config.get("quantization_config")
    mtp = records.report.mtp
    base = present.config if present.reference_config is None else as_merged(present.reference_config, mtp)
    facts = correcting.corrected_facts(records.facts, corrections)
    config = as_merged(correcting.corrected("config", base, corrections), mtp)
    hf_quant_config, declares = json_files.corrected_both(present.hf_quant_config, declared, corrections)
    table = blueprint(config, records.weight_map)
    raise_problems(problems(records, facts, table))
    compared, warnings = _compared(records, facts, table, allow)
    if present.reference_config is not None or correcting.of_part("quantization", corrections):
        dtype = (records.facts.dtype or "") if declared else records.dominant_dtype
        config = final_config(config, dtype, declares, corrections, mtp=mtp)
    statements = json_files.statements(present.hf_quant_config, declared)
    recorded = _recorded(records, base, statements, corrections)
    before = records.report.sidecars
    sidecars = sorted(present.sidecars) if present.sidecars is not None else list(before)
    files = dict(sorted(present.sidecars.items())) if present.sidecars is not None else {}
    files |= _own_files(config, hf_quant_config)
    files[f"{RECORDS}/{REPORT}"] = _report(records, recorded, sidecars, compared, warnings)
    files |= _index(records)
    gone = tuple(name for name in before if name not in sidecars and places.is_sidecar(name))
    return RewrittenFiles(files, gone, recorded, warnings)


def as_merged(config: Json, mtp: str) -> Json:
    """Return a config.json without what the merge left out.

    Args:
        config: What it says.
        mtp: Where multi-token prediction comes from, as `Case.mtp`.

    Returns:
        The same, or if that was dropped a copy that promises none.

    Raises:
        BadInputError: Its architecture is not known.
    """
    known = table_of(config).mtp if mtp == "dropped" else None
    return known.without(config) if known else config


def final_config(
    config: Json,
    dtype: str,
    quantization_config: Json | None,
    corrections: Sequence[Correction],
    *,
    mtp: str,
) -> Json:
    """Return what config.json holds. Corrections have the last word, also over what a merge writes into it.

    Args:
        config: The reference's.
        dtype: What plain weights are, as safetensors spells it.
        quantization_config: What the checkpoint declares of itself, None for nothing.
        corrections: All that were given. Those of other parts are ignored.
        mtp: Where multi-token prediction comes from. If it was dropped, no correction promises it again.

    Returns:
        A new dict.

    Raises:
        BadInputError: A correction leads through something that is not an object.
    """
    edited = config_json.edited(config, dtype, quantization_config)
    return as_merged(correcting.corrected("config", edited, corrections), mtp)


def problems(records: PublishedRecords, facts: Facts, table: Blueprint) -> Iterator[ShardmergeError]:
    """Yield what a config.json contradicts.

    Args:
        records: What the output recorded of its merge: its tensors.
        facts: Of the dump, corrected.
        table: The config.json, with the table of its architecture.

    Returns:
        Errors that are not raised: another architecture or dimension than was dumped, tensors that differ.
    """
    yield from shapes.against_facts(table, records.architecture, facts)
    # packed weights have shapes of their own, and companions: the merge compared them
    if table.architecture.name != records.architecture or not records.plain:
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
    found = list(settings.differences(table, facts, mtp=records.report.mtp))
    before = [problem for problem in found if problem.setting in records.report.differing]
    newly = [problem for problem in found if problem.setting not in records.report.differing]
    judged = Findings((*settings.said_twice(table.config, table.synonyms), *newly)).allowing(allow)
    raise_problems(judged.problems)
    allowed = Findings(tuple(before)).allowing(["config"]).warnings
    return settings.compared(table, facts, mtp=records.report.mtp), (*allowed, *judged.warnings)


def _report(
    records: PublishedRecords,
    recorded: Recorded,
    sidecars: Sequence[str],
    compared: settings.Compared,
    warnings: Sequence[str],
) -> bytes:
    """Return report.json, in which what is said of config.json is said anew."""
    begin = tuple(f"{name} (" for name in records.report.differing)
    others = [
        one
        for one in records.report.warnings
        if not (begin and one.startswith(begin) and one.endswith("(allowed)"))
    ]
    checked = {"corrections": recorded, "config": asdict(compared), "warnings": (*others, *warnings)}
    return canonical_json.encode(records.report.changed(checked, sidecars), indent=2)


def _index(records: PublishedRecords) -> dict[str, bytes]:
    """Return the index, and nothing if there is only one shard."""
    if len(records.plan.shards) == 1:
        return {}
    return {INDEX: index_json.encode(records.weight_map, records.num_parameters, records.total_bytes)}


def _recorded(
    records: PublishedRecords, base: Json, statements: Json, corrections: Sequence[Correction]
) -> Recorded:
    """Return what was corrected. A key that was corrected before has what it was at first."""
    now = correcting.recorded("config", base, corrections)
    now |= correcting.recorded("facts", records.facts.as_json(), corrections)
    now |= correcting.recorded("quantization", statements, corrections)
    earlier = records.report.corrections
    return {key: {**values, "was": earlier.get(key, values)["was"]} for key, values in now.items()}
