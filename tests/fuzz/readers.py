"""What each target does with an input: it puts it where a reader looks for it, and lets everybody read who would.

A function here takes the sound files and returns the reader of one kind of input. The first line of an input for one of
several files is the name of the file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import safetensors

from shardmerge.common import canonical_json, manifest, places, safetensors_header
from shardmerge.common import reference as references
from shardmerge.common.architectures import blueprint
from shardmerge.common.errors import ShardmergeError
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.processes import owner
from shardmerge.phase2_merge import check, inspect, merge, metadata, verify
from shardmerge.phase2_merge.corrections import record, settle, written
from shardmerge.phase2_merge.corrections.changes import corrected as corrected_values
from shardmerge.phase2_merge.corrections.changes import corrected_facts
from shardmerge.phase2_merge.hf_files import sidecars
from shardmerge.phase2_merge.inspection.page import page
from shardmerge.phase2_merge.ledger import parquet, published, rank_directories, table
from shardmerge.phase2_merge.output import receipts
from shardmerge.phase2_merge.quantization import declaration, scales
from tests.dumps import dumps

from .file_mutations import split
from .printed import as_command
from .sound import LAYER, SHARD_BYTES, Files, Sound
from .verdict import NotAllowedError, Read

MODULES = (f"{LAYER}up_proj", "model.layers.0.self_attn.q_proj", "lm_head", "")
OUTSIDE = "outside.json"
NEW = "new "  # before what is meant for --set-new


def manifests(sound: Sound) -> Read:
    """A manifest, by itself and as the only rank of a dump."""
    files = Files(sound.one_rank)

    def read(data: bytes) -> object:
        with files.holding("rank-00000/manifest.json", data) as dump:
            _each(
                lambda: manifest.read(dump / "rank-00000" / "manifest.json"),
                lambda: table.read(rank_directories.discover([dump])),
            )
            return _looked_at(dump)

    return read


def headers(sound: Sound) -> Read:
    """A safetensors file. What is accepted is a file for the safetensors library too."""
    path = sound.folder / "file.safetensors"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        header = safetensors_header.read(path)
        try:
            library = dict(safetensors.deserialize(data))
        except safetensors.SafetensorError as error:
            raise NotAllowedError(f"the safetensors library refuses it: {error}") from None
        if library.keys() != {entry.name for entry in header.entries}:
            raise NotAllowedError("the safetensors library finds other tensors")
        return header

    return read


def reference_files(sound: Sound) -> Read:
    """A file of a reference: its tensors, its sidecars, its dimensions."""
    files = Files(sound.weights)

    def read(data: bytes) -> object:
        name, content = split(data)
        if name not in files.sound:
            return None
        with files.holding(name, content) as folder:
            _each(
                lambda: references.read(folder),
                lambda: sidecars.names(folder),
                lambda: inspect(folder).text(),
            )
            return blueprint(references.read_config(folder))

    return read


def receipt(sound: Sound) -> Read:
    """The receipt of a shard."""
    files = Files(sound.out)
    path = next(iter(sorted(places.receipts(sound.out).glob(places.SHARDS + ".json"))))
    shard = path.name.removesuffix(".json")

    def read(data: bytes) -> object:
        with files.holding(str(path.relative_to(sound.out)), data) as out:
            return receipts.read(out, shard)

    return read


def records(sound: Sound) -> Read:
    """The plan or the report that an output keeps."""
    files = Files(sound.out)

    def read(data: bytes) -> object:
        name, content = split(data)
        if name not in files.sound:
            return None
        with files.holding(name, content) as out:
            found = published.read(out)
            return found.total_bytes, found.num_parameters, found.plain, found.dominant_dtype

    return read


def ledger(sound: Sound) -> Read:
    """A ledger.parquet: its checksums, and with plan and report everything else."""
    files = Files(sound.out)
    name = f"{places.RECORDS}/{places.LEDGER}"

    def read(data: bytes) -> object:
        with files.holding(name, data) as out:
            _each(lambda: parquet.whole_checksums(out / name))
            found = published.read(out)
            return found.total_bytes, found.num_parameters, found.plain, found.dominant_dtype

    return read


def parts_files(sound: Sound) -> Read:
    """A file that parts of a merge left, for `merge --finalize`. What that publishes is what was dumped."""
    files = Files(sound.parts)
    expected = dumps.load(sound.out)
    out = sound.published

    def read(data: bytes) -> object:
        name, content = split(data)
        if name not in files.sound:
            return None
        try:
            with files.holding(name, content, may_change=True):
                report = merge(
                    [sound.dump],
                    out,
                    hf_reference=sound.reference,
                    max_shard_bytes=SHARD_BYTES,
                    workers=1,
                    finalize=True,
                )
                if dumps.load(out) != expected:
                    raise NotAllowedError("what is published is not what was dumped")
                return report
        finally:
            shutil.rmtree(out, ignore_errors=True)

    return read


def journal(sound: Sound) -> Read:
    """A journal that `metadata` finishes. Nothing outside of the output changes."""
    files = Files(sound.out)
    outside = sound.folder / OUTSIDE
    outside.write_text("{}")
    beside = {path.name for path in sound.folder.iterdir()}

    def read(data: bytes) -> object:
        with files.holding(f"{places.RECORDS}/{places.JOURNAL}", data, may_change=True) as out:
            try:
                return metadata(out)
            finally:
                untouched = outside.read_text() == "{}" and beside == {
                    path.name for path in sound.folder.iterdir()
                }
                if not untouched:
                    outside.write_text("{}")
                    raise NotAllowedError("a journal changed what lies outside of its output")

    return read


def owners(sound: Sound) -> Read:
    """The record of who is writing."""
    del sound

    def read(data: bytes) -> object:
        found = owner.of_json(canonical_json.decode(data))
        return found.state(), found.on_this_kernel(), str(found)

    return read


def quantization(sound: Sound) -> Read:
    """What hf_quant_config.json or config.json declares, compared with tensors."""
    files = Files(sound.quantized)
    header = safetensors_header.read(sound.quantized / places.SINGLE)
    entries = {entry.name: entry for entry in header.entries}

    def read(data: bytes) -> object:
        name, content = split(data)
        if name not in files.sound:
            return None
        with files.holding(name, content) as folder:
            both = declaration.read(folder, references.read_config(folder))
        problems = list(declaration.differences(*both))
        for declared in both:
            if declared is not None:
                problems += scales.judge(declared, entries).problems
                _ = [(declared.format_of(module), declared.says_of(module)) for module in MODULES]
        _refusals_can_be_said(problems)
        return declaration.only_one(*both)

    return read


def failures(sound: Sound) -> Read:
    """What a failed rank recorded."""
    files = Files(sound.one_rank)

    def read(data: bytes) -> object:
        with files.holding("rank-00007.failed.json", data) as dump:
            said = rank_directories.reason(dump / "rank-00007.failed.json")
            if not isinstance(said, str):
                raise NotAllowedError(f"the reason is {said!r:.60}")
            return _looked_at(dump)

    return read


def dump_files(sound: Sound) -> Read:
    """A file of a dump or of its reference, for `check` and `inspect`. These change nothing.

    What `check` accepts is merged, and `verify` finds no fault with the result.
    """
    files = Files(sound.dump.parent)
    merged = sound.folder / "merged"

    def read(data: bytes) -> object:
        name, content = split(data)
        if name not in files.sound:
            return None
        try:
            with files.holding(name, content) as folder:
                dump, reference = folder / sound.dump.name, folder / sound.reference.name
                _each(lambda: _looked_at(dump))
                checked = check([dump], hf_reference=reference)
                _merged_soundly(dump, reference, merged)
        finally:
            shutil.rmtree(merged, ignore_errors=True)
        return checked

    return read


def output_files(sound: Sound) -> Read:
    """A file of an output, for `verify` and `inspect`. These change nothing."""
    return _checkpoint(sound.out)


def quantized_files(sound: Sound) -> Read:
    """A file of a quantized checkpoint that another program wrote, for `verify --scan` and `inspect`."""
    return _checkpoint(sound.quantized, scan=True)


def corrected(sound: Sound) -> Read:
    """Arguments of `--set`, behind NEW of `--set-new`, one a line, applied to facts, config.json and a declaration."""
    config = references.read_config(sound.reference)
    facts = manifest.read(sound.one_rank / "rank-00000" / "manifest.json").facts
    declared = canonical_json.read_object(sound.quantized / places.HF_QUANT_CONFIG)["quantization"]

    def read(data: bytes) -> object:
        texts = data.decode("utf-8", "surrogateescape").split("\n")
        new = [text.removeprefix(NEW) for text in texts if text.startswith(NEW)]
        given = written.parse([text for text in texts if not text.startswith(NEW)], new)
        changes = (
            *settle.settled_config(config, given),
            *settle.settled_facts(facts, given),
            *settle.settled("quantization", declared, given),
        )
        values = {"config": config, "facts": facts.as_json(), "quantization": declared}
        recorded: record.Recorded = {}
        for part, said in values.items():
            recorded |= record.recorded(part, said, changes)
            again = corrected_values(part, said, record.replayed(recorded))
            assert again == corrected_values(part, said, changes), "what was recorded says something else"
        canonical_json.encode(recorded)  # as report.json has it
        _each(
            lambda: Facts.of_json(corrected_facts(facts, changes).as_json()),
            lambda: blueprint(corrected_values("config", config, changes)),
            lambda: declaration.refuse_unreadable(corrected_values("quantization", declared, changes)),
        )
        return record.lines(recorded)

    return read


def _checkpoint(folder: Path, *, scan: bool = False) -> Read:
    files = Files(folder)

    def read(data: bytes) -> object:
        name, content = split(data)
        if name not in files.sound:
            return None
        with files.holding(name, content) as out:
            _each(lambda: _looked_at(out))
            return verify(out, scan=scan)

    return read


def _merged_soundly(dump: Path, reference: Path, out: Path) -> None:
    """Merge a dump that was checked. Raises NotAllowedError if that is refused, or gives what `verify` refuses."""
    try:
        merge([dump], out, hf_reference=reference, max_shard_bytes=SHARD_BYTES, workers=1)
        verify(out)
    except ShardmergeError as error:
        raise NotAllowedError(f"check accepts what is refused later: {error.message()}") from None


def _looked_at(path: Path) -> object:
    """Inspect a folder, as text and as a page."""
    seen = inspect(path)
    page(seen, datetime.now(UTC)).encode()
    return seen


def _each(*reads: Callable[[], object]) -> None:
    """Read in several ways. What is refused in one may be accepted in another, so the first refusal comes last."""
    refusals: list[ShardmergeError] = []
    for read in reads:
        try:
            read()
        except ShardmergeError as error:
            refusals.append(error)
    if refusals:
        _refusals_can_be_said(refusals)
        raise refusals[0]


def _refusals_can_be_said(refusals: list[ShardmergeError]) -> None:
    """Print refusals that nobody raises. Raises what printing raises."""
    for refusal in refusals:
        as_command(partial(_raise, refusal))


def _raise(refusal: ShardmergeError) -> None:
    raise refusal
