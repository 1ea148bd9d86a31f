"""What a Hugging Face directory declares of its quantization, in hf_quant_config.json and in config.json.

Reads either file into the same structure, whoever wrote it, and compares the two. Must not look at any tensor.
Source: nvidia-modelopt 0.47, torch/export/{quant_utils,convert_hf_config}.py; config.json of deepseek-ai/DeepSeek-V3.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shardmerge.common import canonical_json
from shardmerge.common.errors import (
    BadInputError,
    CorruptFileError,
    DeclarationMismatchError,
    ShardmergeError,
)
from shardmerge.common.places import CONFIG, HF_QUANT_CONFIG
from shardmerge.common.quantization.formats import BY_ALGORITHM, FORMATS, KV_CACHES, MIXED_PRECISION
from shardmerge.common.quantization.rows import ConfigForm, Format, ModeloptForm

Json = dict[str, Any]
UNREADABLE = (ValueError, TypeError, AttributeError, KeyError)
IN_CONFIG = "config.json's quantization_config"


@dataclass(frozen=True)  # no slots: names and patterns are made once, when they are first asked for
class Declaration:
    """`algorithm` of all linears, or `layers` one for each module; `exclude` are names, or patterns with a star."""

    file: str
    algorithm: str | None = None
    layers: Mapping[str, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    kv_cache: str | None = None
    group_sizes: frozenset[int] = frozenset()

    @property
    def unknown(self) -> tuple[str, ...]:
        """What it says that no row of the table of formats has."""
        caches = {self.kv_cache} - {None, *KV_CACHES}
        return (*self.unknown_algorithms, *(f"KV cache {one}" for one in caches))

    @property
    def unknown_algorithms(self) -> tuple[str, ...]:
        told = {self.algorithm, *self.layers.values()} - {None, MIXED_PRECISION, *BY_ALGORITHM}
        return tuple(sorted(str(word) for word in told))

    def format_of(self, module: str) -> Format | None:
        """The row that a module's weight is declared to have, None for none."""
        if self.algorithm == MIXED_PRECISION:
            return BY_ALGORITHM.get(self.layers.get(module, ""))
        return None if self.excludes(module) else BY_ALGORITHM.get(self.algorithm or "")

    def excludes(self, module: str) -> bool:
        """Whether it is named, or something that it is a part of, or matched by a pattern."""
        parts = module.split(".")
        above = (".".join(parts[: at + 1]) for at in range(len(parts)))
        return any(name in self._names for name in above) or bool(self._patterns.fullmatch(module))

    def says_of(self, module: str) -> str:
        """In words, for messages."""
        if self.algorithm == MIXED_PRECISION:
            return f"{self.file} lists {module} as {self.layers.get(module, 'nothing')}"
        if self.algorithm is None:
            return f"{self.file} declares no quantization of weights"
        return f"{self.file} {'excludes' if self.excludes(module) else f'says {self.algorithm} of'} {module}"

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(name for name in self.exclude if "*" not in name)

    @cached_property
    def _patterns(self) -> re.Pattern[str]:
        return re.compile(
            "|".join(fnmatch.translate(name) for name in self.exclude if "*" in name) or r"(?!)"
        )


UNDECLARED = Declaration("config.json")


def read(out: Path, config: Json) -> tuple[Declaration | None, Declaration | None]:
    """(hf_quant_config.json, config.json["quantization_config"]), None for what is not there.

    Raises CorruptFileError if either is something else than a declaration.
    """
    path = out / HF_QUANT_CONFIG
    found: list[Declaration | None] = [None, None]
    try:
        if path.is_file():
            found[0] = _of_modelopt(canonical_json.read_object(path), HF_QUANT_CONFIG)
        path = out / CONFIG
        if (declared := config.get("quantization_config")) is not None:
            found[1] = _of_config(declared)
    except UNREADABLE as error:
        raise CorruptFileError(str(path), f"its quantization cannot be read: {error}") from None
    return found[0], found[1]


def refuse_unreadable(statements: Json) -> None:
    """Raise BadInputError for corrected statements that cannot be read, or name a format they cannot declare."""
    try:
        found = _of_modelopt(statements, HF_QUANT_CONFIG)
    except UNREADABLE as error:
        raise BadInputError(
            f"the corrected quantization cannot be read: {error}", "Correct it otherwise."
        ) from None
    if found.algorithm == MIXED_PRECISION and not found.layers:
        raise BadInputError(
            f"the corrected quantization is {MIXED_PRECISION} without quantized_layers", "Set them first."
        )
    known = sorted(word for word, row in BY_ALGORITHM.items() if isinstance(row.form, ModeloptForm))
    said = set(found.layers.values())
    if found.algorithm not in (None, MIXED_PRECISION):
        said.add(found.algorithm)
    if unknown := sorted(said - {*known}):
        raise BadInputError(
            f"the corrected quantization says {', '.join(unknown)}",
            f"Known: {', '.join(known)}, {MIXED_PRECISION}.",
        )


def only_one(hf: Declaration | None, config: Declaration | None) -> str | None:
    """A warning if one file declares what the other does not, unless the format is declared in config.json only."""
    if config is None and hf is not None:
        return f"only {hf.file} declares the quantization, config.json does not: some readers look there only"
    row = BY_ALGORITHM.get(config.algorithm or "") if config is not None else None
    if hf is None and row is not None and not isinstance(row.form, ConfigForm):
        return f"only config.json declares the quantization: some readers look into {HF_QUANT_CONFIG} only"
    return None


def differences(hf: Declaration | None, config: Declaration | None) -> Iterator[ShardmergeError]:
    """What the two files say differently, a problem for each key."""
    if hf is None or config is None:
        return
    for key, ours, theirs in (
        ("quant_algo", hf.algorithm, config.algorithm),
        ("kv_cache_quant_algo", hf.kv_cache, config.kv_cache),
        ("group_size", sorted(hf.group_sizes), sorted(config.group_sizes)),
    ):
        if ours != theirs:
            yield DeclarationMismatchError(key, str(ours), str(theirs))
    yield from _listed("exclude_modules", dict.fromkeys(hf.exclude, "x"), dict.fromkeys(config.exclude, "x"))
    yield from _listed("quantized_layers", hf.layers, config.layers)


def _listed(key: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[ShardmergeError]:
    """One problem for a list that differs, naming what stands in one of the two only."""
    only = (sorted(dict(ours.items() - theirs.items())), sorted(dict(theirs.items() - ours.items())))
    if any(only):
        yield DeclarationMismatchError(key, *(_some(names) for names in only))


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return f"a list with {', '.join(names[:shown])}{more}" if names else "a list without"


def _of_config(declared: Json) -> Declaration:
    method = declared.get("quant_method", "modelopt" if "quant_algo" in declared else None)
    if method == "modelopt":
        return _of_modelopt(declared, IN_CONFIG)
    for row in FORMATS.values():
        if isinstance(row.form, ConfigForm) and row.form.fits(declared):
            return Declaration(IN_CONFIG, row.algorithm, exclude=_names(declared.get(row.form.excluded)))
    size = declared.get("weight_block_size")
    return Declaration(IN_CONFIG, f"{method} in blocks of {size}" if size else str(method))


def _of_modelopt(told: Json, file: str) -> Declaration:
    """Both spellings: `exclude_modules` or `ignore`, `kv_cache_quant_algo` or `kv_cache_scheme`."""
    told = told.get("quantization", told)
    layers = {_text(name): one["quant_algo"] for name, one in (told.get("quantized_layers") or {}).items()}
    return Declaration(
        file,
        _text(told.get("quant_algo") or "") or None,
        {name: _text(algorithm) for name, algorithm in layers.items()},
        _names(told.get("exclude_modules", told.get("ignore"))),
        _kv_cache(told.get("kv_cache_quant_algo", told.get("kv_cache_scheme"))),
        _group_sizes(told),
    )


def _group_sizes(told: Json) -> frozenset[int]:
    groups = (one.get("weights", {}) for one in told.get("config_groups", {}).values())
    places = [told, *groups, *(told.get("quantized_layers") or {}).values()]
    return frozenset(_number(one["group_size"]) for one in places if one.get("group_size"))


def _kv_cache(told: Any) -> str | None:
    if isinstance(told, dict):
        numbers = (told["type"], told["num_bits"])
        known = (name for name, one in KV_CACHES.items() if (one["type"], one["num_bits"]) == numbers)
        return next(known, f"{told['type']}{told['num_bits']}".upper())
    return _text(told) if told else None


def _names(told: Any) -> tuple[str, ...]:
    if not isinstance(told, list | None):
        raise TypeError(f"expected a list of modules, got {told!r:.60}")
    return tuple(_text(name) for name in told or ())


def _number(told: Any) -> int:
    if type(told) is not int:
        raise TypeError(f"expected a number, got {told!r:.60}")
    return told


def _text(told: Any) -> str:
    if not isinstance(told, str):
        raise TypeError(f"expected a name, got {told!r:.60}")
    return told
