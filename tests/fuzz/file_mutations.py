"""Mutations of whole files, one for each kind: JSON, JSON with a digest, safetensors, and any file by its name.

Half of the art is that a digest or a length fits again after a change: otherwise every input would be refused at
the door.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from random import Random

import xxhash

from shardmerge.common import canonical_json

from . import json_mutations

RAW = 0.12  # how often bytes are changed blindly instead
UNREPAIRED = 0.05
MAX_DATA_BYTES = 1 << 16

Blind = Callable[[bytes], bytes]  # changes bytes without knowing what they are
Mutation = Callable[[bytes, Random, Blind], bytes]
Repair = Callable[[bytes], bytes]


def raw(data: bytes, rng: Random, blind: Blind) -> bytes:
    """Change bytes blindly."""
    del rng
    return blind(data)


def json_file(repair: Repair = bytes) -> Mutation:
    """Return a mutation of JSON whose digest `repair` makes fit."""

    def mutation(data: bytes, rng: Random, blind: Blind) -> bytes:
        if rng.random() < RAW:
            return blind(data)
        try:
            changed = json_mutations.mutated(data, rng)
        except ValueError:
            return blind(data)
        return changed if rng.random() < UNREPAIRED else repair(changed)

    return mutation


def safetensors_file(data: bytes, rng: Random, blind: Blind) -> bytes:
    """Change the JSON of a header; its length fits, and mostly the data too."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < RAW or len(data) < 8 + length:
        return blind(data)
    try:
        header = json_mutations.mutated(data[8 : 8 + length], rng)
    except ValueError:
        return blind(data)
    start = 8 + length
    return with_header(header, data[start:] if rng.random() < 0.3 else None)


def with_header(header: bytes, tensor_bytes: bytes | None) -> bytes:
    """Return a safetensors file with this header, and zeros as far as it says if there are no bytes for its tensors."""
    if tensor_bytes is None:
        tensor_bytes = bytes(_end(header))
    return len(header).to_bytes(8, "little") + header + tensor_bytes


def _end(header: bytes) -> int:
    """Return where the last tensor ends. 0 for a header that says nothing, or nothing small."""
    value = json_mutations.parsed(header)
    entries = value.values() if isinstance(value, dict) else ()
    offsets = [entry.get("data_offsets") for entry in entries if isinstance(entry, dict)]
    ends = [both[1] for both in offsets if isinstance(both, list) and len(both) == 2 and type(both[1]) is int]
    end = max(ends, default=0)
    return end if 0 <= end <= MAX_DATA_BYTES else 0


def named(kinds: Mapping[str, Mutation]) -> Mutation:
    """Return a mutation of an input whose first line is the name of a file. The first pattern that fits it decides."""

    def mutation(data: bytes, rng: Random, blind: Blind) -> bytes:
        name, content = split(data)
        kind = next((kind for pattern, kind in kinds.items() if fnmatchcase(name, pattern)), raw)
        return joined(name, kind(content, rng, blind))

    return mutation


def split(data: bytes) -> tuple[str, bytes]:
    """Return the name of a file, and what it is to hold."""
    name, _, content = data.partition(b"\n")
    return name.decode(errors="replace"), content


def joined(name: str, content: bytes) -> bytes:
    """Return an input that says what a file of this name is to hold."""
    return name.encode() + b"\n" + content


def repaired_manifest(text: bytes) -> bytes:
    """Return a manifest with the digest that fits its content."""
    value = json_mutations.parsed(text)
    if not isinstance(value, dict):
        return text
    value.pop("xxh3_128", None)
    body = json.dumps(value, sort_keys=True, separators=(",", ":"))[:-1].encode()
    return body + f',"xxh3_128":"{xxhash.xxh3_128_hexdigest(body)}"}}\n'.encode()


def repaired_receipt(text: bytes) -> bytes:
    """Return a receipt with the digest that fits its content."""
    value = json_mutations.parsed(text)
    if not isinstance(value, dict):
        return text
    value.pop("xxh3_128", None)
    try:
        digest = xxhash.xxh3_128_hexdigest(canonical_json.encode(value))
    except ValueError:  # NaN, or half a character: nothing has a digest of that
        return text
    return canonical_json.encode(value | {"xxh3_128": digest})


def setting(data: bytes, rng: Random, blind: Blind) -> bytes:
    """Change one line of KEY=VALUE: a value that is JSON by its kind, anything else blindly."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    key, equals, value = lines[at].partition(b"=")
    try:
        changed = json_mutations.mutated(value, rng) if equals and rng.random() < 0.6 else None
    except ValueError:
        changed = None
    lines[at] = blind(lines[at]) if changed is None else key + equals + changed.strip()
    return b"\n".join([*lines[:at], *lines[at + (rng.random() < 0.05) :]])
