"""The targets of fuzzing: every reader of something that somebody else may have written, a row for each.

To fuzz another reader, add a row: what it reads, with which function of `readers`, from which sound inputs, and how
these are changed. Must not know how a fuzzer runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.common import canonical_json, places
from shardmerge.common.places import METADATA
from shardmerge.common.processes import owner
from tests.dumps import saved

from . import checkpoint_readers, parquet_recipes, pickle_mutations, readers
from .file_mutations import (
    Mutation,
    joined,
    json_file,
    named,
    raw,
    repaired_manifest,
    repaired_receipt,
    safetensors_file,
    setting,
)
from .sound import CONFIG_DECLARATIONS, DECLARATIONS, Sound
from .verdict import Read, Refusals

RUN_CONFIGS = Path(__file__).parents[1] / "oracles" / "records" / "run_configs"
BY_NAME: dict[str, Mutation] = {
    "*/manifest.json": json_file(repaired_manifest),
    f"*{places.RECEIPTS}/*.json": json_file(repaired_receipt),
    "*.json": json_file(),
    "*.safetensors": safetensors_file,
    METADATA: pickle_mutations.pickled,
    "*.distcp": pickle_mutations.archived,
}


@dataclass(frozen=True, slots=True)
class Target:
    """One reader.

    Attributes:
        reads: What it reads, in words.
        reader: Makes the reader, given sound files.
        seeds: Makes sound inputs.
        mutation: Changes an input.
        refusals: What it may raise beside errors of the tree and system errors.
        built: Makes of an input what is read. None if nothing can be made of it.
    """

    reads: str
    reader: Callable[[Sound], Read]
    seeds: Callable[[Sound], Sequence[bytes]]
    mutation: Mutation
    refusals: Refusals = ()
    built: Callable[[bytes], bytes | None] = bytes


def _file(path: Callable[[Sound], Path], pattern: str = "") -> Callable[[Sound], list[bytes]]:
    """Return a maker of seeds: what one file holds, or all files of a pattern."""

    def seeds(sound: Sound) -> list[bytes]:
        found = sorted(path(sound).glob(pattern)) if pattern else [path(sound)]
        return [each.read_bytes() for each in found]

    return seeds


def _files(folder: Callable[[Sound], Path], *patterns: str) -> Callable[[Sound], list[bytes]]:
    """Return a maker of seeds for files by name: an input for each file of a folder that fits a pattern."""

    def seeds(sound: Sound) -> list[bytes]:
        base = folder(sound)
        paths = sorted({path for pattern in patterns for path in base.rglob(pattern) if path.is_file()})
        return [joined(str(path.relative_to(base)), path.read_bytes()) for path in paths]

    return seeds


def _journals(sound: Sound) -> list[bytes]:
    del sound
    lists = {"replace": ["config.json", f"{places.RECORDS}/{places.REPORT}"], "remove": ["tokenizer.json"]}
    return [canonical_json.encode({"schema_version": 1} | lists)]


def _owners(sound: Sound) -> list[bytes]:
    del sound
    return [canonical_json.encode(owner.here("a merge", "part 1/2").as_json())]


def _declarations(sound: Sound) -> list[bytes]:
    config = json.loads((sound.quantized / places.CONFIG).read_bytes())
    return [
        *_files(lambda sound: sound.quantized, "*.json")(sound),
        *(joined(places.HF_QUANT_CONFIG, json.dumps(one).encode()) for one in DECLARATIONS),
        *(
            joined(places.CONFIG, json.dumps(config | {"quantization_config": one}).encode())
            for one in CONFIG_DECLARATIONS
        ),
    ]


def _failures(sound: Sound) -> list[bytes]:
    del sound
    return [
        canonical_json.encode(
            {"rank": 7, "failure": {"error": "OSError", "message": "No space left on device"}}
        )
    ]


def _settings(sound: Sound) -> list[bytes]:
    del sound
    texts = (
        "facts.dtype=BF16",
        "config.rope_theta=1000000",
        "new config.rope_scaling.factor=2.5",
        "new config.pad_token_id=null",
        'new config.rope_parameters={"rope_theta": 5, "rope_type": "default"}',
        "config.torch_dtype=float16",
        "quantization.quant_algo=FP8",
        'quantization.exclude_modules+=["lm_head"]',
    )
    return ["\n".join(texts[:2]).encode(), "\n".join(texts[2:]).encode(), *(text.encode() for text in texts)]


def _metadata(sound: Sound) -> list[bytes]:
    del sound
    return [saved.description(version) for version in saved.VERSIONS]


def _archives(sound: Sound) -> list[bytes]:
    """Return the archives of all tensors' chunks, of both versions."""
    del sound
    found = [archive for version in saved.VERSIONS for archive in saved.archives(version)]
    return [archive for archive in found if b"_rebuild_tensor_v2" in archive]


def _states(sound: Sound) -> list[bytes]:
    del sound
    return [state for version in saved.VERSIONS for state in saved.states(version)]


def _run_configs(sound: Sound) -> list[bytes]:
    del sound
    return [path.read_bytes() for path in sorted(RUN_CONFIGS.glob("*.yaml"))[::6]]


TARGETS: dict[str, Target] = {
    "checkpoint": Target(
        "a file of a torch_dist checkpoint, for dump --checkpoint",
        checkpoint_readers.checkpoint_files,
        _files(lambda sound: sound.saved / saved.ITERATION, METADATA, "*.json", "*.distcp"),
        named(BY_NAME),
    ),
    "checkpoint_metadata": Target(
        ".metadata, compared with Python's unpickler",
        checkpoint_readers.metadata,
        _metadata,
        pickle_mutations.pickled,
    ),
    "checkpoint_archive": Target(
        "the archive of a chunk, compared with zipfile",
        checkpoint_readers.archive,
        _archives,
        pickle_mutations.archived,
        refusals=(ValueError,),  # who reads it knows the tensor, and names it
    ),
    "checkpoint_state": Target(
        "what a module saved beside its parameters (_extra_state)",
        checkpoint_readers.state,
        _states,
        pickle_mutations.archived,
        refusals=(ValueError,),  # who reads it knows the module, and names it
    ),
    "checkpoint_contents": Target(
        "what one process wrote down of a description for all others",
        checkpoint_readers.contents,
        checkpoint_readers.written_contents,
        checkpoint_readers.mutated_contents,
    ),
    "run_config": Target(
        "run_config.yaml",
        checkpoint_readers.recorded,
        _run_configs,
        pickle_mutations.lines,
    ),
    "dump": Target(
        "a file of a dump or its reference, for check and inspect",
        readers.dump_files,
        _files(lambda sound: sound.dump.parent, "*.json", "*.safetensors"),
        named(BY_NAME),
    ),
    "output": Target(
        "a file of an output, for verify and inspect",
        readers.output_files,
        _files(lambda sound: sound.out, "*.json", "*.safetensors", "*.parquet"),
        named(BY_NAME),
    ),
    "parts": Target(
        "a file that parts of a merge left, for merge --finalize",
        readers.parts_files,
        _files(lambda sound: sound.parts, "*"),
        named(BY_NAME),
    ),
    "ledger_parquet": Target(
        "ledger.parquet, written by a recipe",
        readers.ledger,
        lambda sound: parquet_recipes.of_file(places.records(sound.out) / places.LEDGER),
        parquet_recipes.mutation,
        built=parquet_recipes.written,
    ),
    "manifest": Target(
        "a manifest, for the ledger and inspect",
        readers.manifests,
        _file(lambda sound: sound.one_rank, places.MANIFESTS),
        json_file(repaired_manifest),
    ),
    "records": Target(
        "plan.json and report.json of an output",
        readers.records,
        _files(lambda sound: sound.out, places.PLAN, places.REPORT),
        named(BY_NAME),
    ),
    "quantized": Target(
        "a file of a foreign quantized checkpoint, for verify --scan and inspect",
        readers.quantized_files,
        _files(lambda sound: sound.quantized, "*"),
        named(BY_NAME),
    ),
    "reference": Target(
        "a file of a reference with weights: config.json, index, tokenizer_config.json, modules, headers",
        readers.reference_files,
        _files(lambda sound: sound.weights, "*.json", "*.safetensors", "*.py"),
        named(BY_NAME),
    ),
    "quantization": Target(
        "what hf_quant_config.json and config.json declare",
        readers.quantization,
        _declarations,
        named(BY_NAME),
    ),
    "header": Target(
        "a safetensors file, compared with the safetensors library",
        readers.headers,
        _file(lambda sound: sound.dump, "*/*.safetensors"),
        safetensors_file,
    ),
    "ledger_parquet_bytes": Target(
        "ledger.parquet, changed blindly",
        readers.ledger,
        _file(lambda sound: places.records(sound.out) / places.LEDGER),
        raw,
    ),
    "journal": Target(
        "a journal, which metadata finishes",
        readers.journal,
        _journals,
        json_file(),
    ),
    "receipt": Target(
        "the receipt of a shard",
        readers.receipt,
        _file(lambda sound: places.receipts(sound.out), "*.json"),
        json_file(repaired_receipt),
    ),
    "owner": Target(
        "the record of who is writing",
        readers.owners,
        _owners,
        json_file(),
        refusals=(ValueError,),  # who reads it knows the path, and names it
    ),
    "failure": Target(
        "what a failed rank recorded",
        readers.failures,
        _failures,
        json_file(),
    ),
    "set": Target(
        "arguments of --set",
        readers.corrected,
        _settings,
        setting,
    ),
}
