"""Sidecars: what a reader needs beside weights and config.json, such as tokenizer and chat template.

They are the reference's, with the Python files that `auto_map` names: nothing executable ever comes from a dump. An
index, weights, hf_quant_config.json and files called consolidated* are not sidecars: they describe another checkpoint.
Nothing is copied that lies outside of the reference, whatever a link or an import says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shardmerge.common import canonical_json, durable, plausible_sizes, regular_files
from shardmerge.common.errors import BadInputError, CorruptFileError, not_a_directory
from shardmerge.common.places import CONFIG, TEMPLATES, is_of_tokenizer, is_sidecar_data

WITH_AUTO_MAP = (CONFIG, "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
TOKENIZER = "Give --tokenizer a directory with tokenizer.json or the like."
MODULE = re.compile(r"(\w+)\.\w+")
RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import", re.MULTILINE)


def gather(reference: Path | None, tokenizer: Path | None = None) -> dict[str, bytes]:
    """Read all sidecars of a reference, or those of its tokenizer from another directory.

    Args:
        reference: Where they come from. None for none but the tokenizer's.
        tokenizer: Where those of the tokenizer come from instead, and the Python modules that they name.

    Returns:
        What each holds, by its name, sorted.

    Raises:
        BadInputError: `tokenizer` is not a directory, or holds no file of a tokenizer.
        CorruptFileError: One is not a regular file of its directory, or stands for one in Git LFS.
        OSError: Reading fails.
    """
    found = {name: content(reference, name) for name in names(reference)} if reference else {}
    if tokenizer is not None:
        found = {name: data for name, data in found.items() if not is_of_tokenizer(name)}
        found |= {name: content(tokenizer, name) for name in tokenizer_names(tokenizer)}
    return dict(sorted(found.items()))


def write(sidecars: Mapping[str, bytes], folder: Path) -> None:
    """Write sidecars into a folder. Raises OSError."""
    for name, data in sidecars.items():
        durable.make_folder((folder / name).parent)
        durable.write_file(folder / name, data)


def tokenizer_names(tokenizer: Path) -> tuple[str, ...]:
    """Return the names of what `gather` takes from a directory of a tokenizer. Raises what `gather` raises of it."""
    if not tokenizer.is_dir():
        raise not_a_directory(tokenizer, TOKENIZER)
    found = tuple(name for name in names(tokenizer) if is_of_tokenizer(name) or name.endswith(".py"))
    if not any(map(is_of_tokenizer, found)):
        raise BadInputError(f"{tokenizer} holds no file of a tokenizer", TOKENIZER)
    return found


def content(reference: Path, name: str) -> bytes:
    """Return the bytes of a sidecar. Raises CorruptFileError for what is none of the reference's own, OSError."""
    path = reference / name
    return regular_files.read(path, reference, plausible_sizes.SIDECAR.limit(path))


def names(reference: Path) -> tuple[str, ...]:
    """Return the names of the sidecars that a reference holds, sorted.

    Raises CorruptFileError for one that is not a regular file, lies outside of the reference, or is a link to nothing.
    """
    return tuple(sorted({*_data_files(reference), *_modules(reference)}))


def _data_files(reference: Path) -> Iterator[str]:
    templates = reference / TEMPLATES
    for entry in (*reference.iterdir(), *(templates.iterdir() if templates.is_dir() else ())):
        name = entry.relative_to(reference).as_posix()
        if is_sidecar_data(name) and _is_there(entry, reference):
            yield name


def _is_there(path: Path, reference: Path) -> bool:
    """Whether a reference holds a file. Raises CorruptFileError for what only looks so."""
    there = regular_files.exists(path, reference)
    if not there and path.is_symlink():
        raise CorruptFileError(str(path), "it is a link to nothing", do="Download the reference again.")
    return there


def _modules(reference: Path) -> set[str]:
    """Return the files that auto_map names and that lie here, and what they import from beside them."""
    modules: set[str] = set()
    to_read = {name for file in WITH_AUTO_MAP for name in _named(reference, file)}
    while to_read:
        name = to_read.pop()
        path = reference / name
        if name not in modules and _is_there(path, reference):
            modules.add(name)
            text = content(reference, name).decode(errors="replace")
            to_read |= {f"{imported}.py" for imported in RELATIVE_IMPORT.findall(text)}
    return modules


def _named(reference: Path, file: str) -> Iterator[str]:
    """Yield the Python files that the auto_map of a JSON file names."""
    try:
        found = canonical_json.read_object(reference / file, reference, plausible_sizes.CONFIG)
        auto_map = found.get("auto_map")
    except (FileNotFoundError, ValueError):  # not there, or not ours to judge: it is copied as it is
        return
    for text in _strings(auto_map):
        if module := MODULE.fullmatch(text):  # "repository--module.Class" lies elsewhere
            yield f"{module[1]}.py"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
