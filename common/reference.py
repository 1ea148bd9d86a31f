"""Reads the Hugging Face reference: its config.json, and which tensors its weights hold, if it has any.

Only headers are read. The reference gives names, shapes and dtypes; its numbers are never looked at. A model of the Hub
may be named by its id if it is in the cache on this machine: nothing is ever downloaded. Source of the cache's layout:
huggingface_hub, constants.py and docs "Understand caching".
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import canonical_json, plausible_sizes, regular_files, safetensors_header
from .errors import BadInputError, CorruptFileError, MissingConfigError, not_a_directory, printable
from .errors.usage import OF_A_REFERENCE
from .places import CONFIG, INDEX, SINGLE
from .safetensors_header import Header

PATH_CHARACTERS = 1024  # of a name with its folders
# keys of config.json that declare quantized weights; vLLM reads the second where the first is absent
DECLARATION = "quantization_config"
DECLARATIONS = (DECLARATION, "compression_config")
DOWNLOAD = "Copy or download it again."
MODEL_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
COMMIT = re.compile(r"[0-9a-f]{40}")
ANY = "Give a Hugging Face directory of the same model: config.json and the tokenizer are enough, weights are optional."
PLAIN_FLOATS = ("BF16", "F16", "F32", "F64")


@dataclass(frozen=True, slots=True)
class ReferenceTensor:
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """`tensors` is empty if the directory holds no weights."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, ReferenceTensor]

    @property
    def is_quantized(self) -> bool:
        """Whether config.json declares that the weights are quantized, of a composite also below."""
        return is_quantized(self.config)

    def plain_dtype(self, name: str) -> str | None:
        """Return the dtype that the weights here give a tensor, or None if they lack it or hold it quantized."""
        tensor = self.tensors.get(name)
        return tensor.dtype if tensor and tensor.dtype in PLAIN_FLOATS else None


def read(given: str | Path | Reference) -> Reference:
    """Read config.json and the headers of all weights, of a directory or of a model in the cache of the Hub.

    A reference that was read before is returned as it is.

    Raises MissingConfigError, BadInputError (there is no such directory, or config.json is not a JSON object),
    CorruptFileError (a weight file that the index names is missing or damaged).
    """
    if isinstance(given, Reference):
        return given
    path = located(Path(given))
    return Reference(path, read_config(path), _tensors(path))


def located(given: Path) -> Path:
    """Return the directory that a path names, or the one that the cache has for a model's id.

    Raises BadInputError if there is neither, with the line that downloads the model.
    """
    if given.is_dir():
        return given
    if os.path.lexists(given) or not MODEL_ID.fullmatch(str(given)):
        raise not_a_directory(given, ANY)
    cached = _snapshot(str(given), hub_cache())
    if cached is None:
        raise BadInputError(
            f"there is no directory {given}, and the cache of the Hub in {hub_cache()} holds no model of this id",
            f"To use one of the Hub, run: hf download {given} --exclude '*.safetensors*', and then this command again.",
        )
    return cached


def hub_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where huggingface_hub keeps what it downloads."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(name):
            return Path(environment[name]).expanduser()
    above = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("HF_HOME") or f"{above}/huggingface").expanduser() / "hub"


def _snapshot(model_id: str, cache: Path) -> Path | None:
    """Return the directory of the newest revision of a model that a cache holds, None without its config.json."""
    model = cache / f"models--{model_id.replace('/', '--')}"
    try:
        commit = (model / "refs" / "main").read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    path = model / "snapshots" / commit
    return path if COMMIT.fullmatch(commit) and (path / CONFIG).is_file() else None


def read_config(path: Path, do: str = OF_A_REFERENCE) -> dict[str, Any]:
    """Return the config.json of a directory, with its keys in order. `do` is what to do if there is none.

    Raises MissingConfigError, BadInputError (it is not JSON), CorruptFileError (it is not a plausible file), OSError.
    """
    config_path = path / CONFIG
    if not regular_files.exists(config_path, path):
        raise MissingConfigError(str(path), do)
    try:
        return canonical_json.read_object(config_path, path, plausible_sizes.CONFIG)
    except ValueError as error:
        raise BadInputError(f"{config_path} is not valid JSON: {error}", "Correct it.") from None


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether a config.json declares quantized weights: of all, or as some composites do, of the language model."""
    inner = (value for value in config.values() if isinstance(value, Mapping))
    return any(key in each for each in (config, *inner) for key in DECLARATIONS)


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the safetensors files that readers would load from this directory, sorted. There may be none.

    Raises CorruptFileError if the index says anything else, OSError.
    """
    index, single = path / INDEX, path / SINGLE
    if regular_files.exists(index, path):
        return tuple(path / name for name in sorted(set(weight_map(index).values())))
    return (single,) if regular_files.exists(single, path) else ()


def weight_map(index: Path) -> dict[str, str]:
    """Return the file name of each tensor, as the index says. Raises CorruptFileError if it says anything else."""
    names = _read_index(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CorruptFileError(str(index), "no weight_map of file names", do=DOWNLOAD)
    if strange := [name for name in set(names.values()) if not stays_inside(name)]:
        raise CorruptFileError(str(index), f"{min(strange)[:80]!r} is not the name of a file", do=DOWNLOAD)
    if not printable.is_printable(names):
        raise CorruptFileError(str(index), "the name of a tensor cannot be printed", do=DOWNLOAD)
    return names


def stays_inside(name: str) -> bool:
    """Whether a file of this name lies below the folder that names it, and a file system would take it."""
    parts = name.split("/")
    short = all(part not in {"", ".", ".."} and len(part.encode(errors="replace")) < 256 for part in parts)
    return short and len(name) < PATH_CHARACTERS and name.isprintable()


def total_size(index: Path) -> int | None:
    """Return the bytes of all tensors, as the index says, or None if it does not. Raises CorruptFileError."""
    metadata = _read_index(index).get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return size if type(size) is int else None


def _read_index(index: Path) -> dict[str, Any]:
    try:
        return canonical_json.read_object(index, index.parent, plausible_sizes.INDEX)
    except ValueError as error:
        raise CorruptFileError(str(index), str(error), do=DOWNLOAD) from None


def read_header(file: Path, root: Path) -> Header:
    """Return the header of one of the `weight_files` of the directory `root`.

    Raises CorruptFileError, also if there is no such file, OSError.
    """
    try:
        return safetensors_header.read(file, root)
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptFileError(str(file), f"named by {INDEX}, but missing", do=DOWNLOAD) from None
    except CorruptFileError as error:  # nobody dumped this file
        raise error.not_of_a_dump(DOWNLOAD) from None


def _tensors(path: Path) -> dict[str, ReferenceTensor]:
    tensors: dict[str, ReferenceTensor] = {}
    for file in weight_files(path):
        for entry in read_header(file, path).entries:
            tensors[entry.name] = ReferenceTensor(entry.dtype, entry.shape)
    return tensors
