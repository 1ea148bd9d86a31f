"""A small checkpoint of megatron-core as files, for tests that must not need torch to have one.

`record` writes them, beside each version of megatron-core whose files differ; what is read here is what lies there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

FILES = Path(__file__).parent / "files"
VERSIONS = ("megatron-core-0.16", "megatron-core-0.19")
ITERATION = "iter_0000007"
STATES, CONFIG = "states", "config.json"
METADATA, AS_FILE = ".metadata", "description.bin"  # here it has a name that says that it is not text
ARCHIVE_ENDS, END_BYTES = b"PK\x05\x06", 22


def description(version: str = VERSIONS[0]) -> bytes:
    """Return what `.metadata` holds."""
    return (FILES / version / ITERATION / AS_FILE).read_bytes()


def states(version: str = VERSIONS[0]) -> list[bytes]:
    """Return what modules with quantizers saved beside their parameters: archives of torch.save."""
    return [path.read_bytes() for path in sorted((FILES / version / STATES).iterdir())]


def archives(version: str = VERSIONS[0]) -> list[bytes]:
    """Return the archives of all chunks, of which files are made: each ends as a zip file without a comment does."""
    found: list[bytes] = []
    for path in sorted((FILES / version / ITERATION).glob("*.distcp")):
        data, begin = path.read_bytes(), 0
        while (end := data.find(ARCHIVE_ENDS, begin) + END_BYTES) >= END_BYTES:
            found.append(data[begin:end])
            begin = end
    return found


def copy(folder: Path, version: str = VERSIONS[0]) -> tuple[Path, Path]:
    """Copy checkpoint and reference below a folder. Returns both."""
    checkpoint, reference = folder / ITERATION, folder / "hf"
    for copied in (checkpoint, reference):
        shutil.copytree(FILES / version / copied.name, copied)
    (checkpoint / AS_FILE).rename(checkpoint / METADATA)
    return checkpoint, reference
