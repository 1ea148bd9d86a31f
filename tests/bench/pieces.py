"""The same pieces as a dump, in the format that torch.distributed.checkpoint's consolidator reads: one file a rank.

As HuggingFaceStorageWriter leaves them: plain names, and offsets in the metadata. Decides no bytes: those of the dump
are copied.
Source: torch/distributed/checkpoint/_hf_utils.py and _consolidate_hf_safetensors.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

from shardmerge.common import manifest as manifests
from shardmerge.common.manifest import Manifest, Placed
from shardmerge.common.places import MANIFEST

COPY_BYTES = 256 << 10


def convert(dump: Path, folder: Path) -> Path:
    """Write `folder`, a file for every rank of `dump`."""
    folder.mkdir()
    for number, path in enumerate(sorted(dump.glob(f"*/{MANIFEST}")), 1):
        name = f"shard-{number:05d}-model-00001-of-00001.safetensors"
        _write(path.parent, manifests.read(path), folder / name)
    return folder


def _write(rank: Path, manifest: Manifest, path: Path) -> None:
    placed = list(manifest.placed())
    with open(path, "wb", buffering=0) as out:
        write_header(out, placed)
        for number, file in enumerate(manifest.files):
            with open(rank / file.name, "rb", buffering=0) as fragment:
                fragment.seek(min(one.begin for one in placed if one.file == number))
                _copy(fragment, out)


def write_header(out: BinaryIO, placed: list[Placed]) -> None:
    """The eight length bytes and the header; data of `placed` is to follow in its order."""
    offsets = {one.rectangle.name: {"saved_offsets": list(one.rectangle.global_offset)} for one in placed}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for one in placed:
        size = one.end - one.begin
        header[one.rectangle.name] = {
            "dtype": one.rectangle.dtype,
            "shape": list(one.rectangle.local_shape),
            "data_offsets": [at, at + size],
        }
        at += size
    body = json.dumps(header).encode()
    out.write(len(body).to_bytes(8, "little") + body)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while data := source.read(COPY_BYTES):
        at = 0
        while at < len(data):
            at += os.write(target.fileno(), data[at:])
