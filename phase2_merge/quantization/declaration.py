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

from shardmerge.common import canonical_json, plausible_sizes, regular_files
from shardmerge.common.errors import (
    BadInputError,
    CorruptFileError,
    DeclarationMismatchError,
    ShardmergeError,
    printable,
)
from shardmerge.common.places import CONFIG, HF_QUANT_CONFIG
from shardmerge.common.quantization.formats import BY_ALGORITHM, FORMATS, KV_CACHES, MIXED_PRECISION
from shardmerge.common.quantization.rows import ConfigForm, Format, ModeloptForm

Json = dict[str, Any]
MAX_PATTERNS = 10_000  # each is tried on each module
UNREADABLE = (ValueError, TypeError, AttributeError, KeyError)
IN_CONFIG = "config.json's quantization_config"


@dataclass(frozen=True)  # no slots: names and patterns are made once, when they are first asked for
class Declaration:
    """What one of the two files declares.

    Attributes:
        file: Which file, for messages.
        algorithm: Of all linears, or MIXED_PRECISION, or None for none.
        layers: The algorithm of each module, for a mixture.
        exclude: Names of modules that are not quantized, or patterns with a star.
        kv_cache: The algorithm of KV caches.
        group_sizes: All sizes of groups that it mentions.
    """

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
        return (*self.unknown_algorithms, *(f"KV cache {cache}" for cache in caches))

    @property
    def unknown_algorithms(self) -> tuple[str, ...]:
        """Algorithms that no row of the table of formats has."""
        unknown = {self.algorithm, *self.layers.values()} - {None, MIXED_PRECISION, *BY_ALGORITHM}
        return tuple(sorted(str(word) for word in unknown))

    def format_of(self, module: str) -> Format | None:
        """Return the row that a module's weight is declared to have, None for none."""
        if self.algorithm == MIXED_PRECISION:
            return BY_ALGORITHM.get(self.layers.get(module, ""))
        return None if self.excludes(module) else BY_ALGORITHM.get(self.algorithm or "")

    def excludes(self, module: str) -> bool:
        """Whether a module, or something that it is a part of, is excluded by name, or a pattern matches it."""
        parts = module.split(".")
        above = (".".join(parts[: at + 1]) for at in range(len(parts)))
        return any(name in self._names for name in above) or bool(self._patterns.fullmatch(module))

    def says_of(self, module: str) -> str:
        """Return in words, for messages, what is declared of a module."""
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
    """Read both declarations. Returns (hf_quant_config.json's, config.json's), None for what is not there.

    Raises CorruptFileError if either is something else than a declaration.
    """
    path = out / HF_QUANT_CONFIG
    hf: Declaration | None = None
    in_config: Declaration | None = None
    try:
        if regular_files.exists(path, out):
            hf = _of_modelopt(canonical_json.read_object(path, out, plausible_sizes.CONFIG), HF_QUANT_CONFIG)
        path = out / CONFIG
        if (declared := config.get("quantization_config")) is not None:
            in_config = _of_config(declared)
    except UNREADABLE as error:
        raise CorruptFileError(str(path), f"its quantization cannot be read: {error}") from None
    return hf, in_config


def refuse_unreadable(statements: Json) -> None:
    """Raise BadInputError for corrected statements that cannot be read, or name a format they cannot declare."""
    try:
        declared = _of_modelopt(statements, HF_QUANT_CONFIG)
    except UNREADABLE as error:
        raise BadInputError(
            f"the corrected quantization cannot be read: {error}", "Correct it otherwise."
        ) from None
    if declared.algorithm == MIXED_PRECISION and not declared.layers:
        raise BadInputError(
            f"the corrected quantization is {MIXED_PRECISION} without quantized_layers", "Set them first."
        )
    known = sorted(word for word, row in BY_ALGORITHM.items() if isinstance(row.form, ModeloptForm))
    algorithms = set(declared.layers.values())
    if declared.algorithm not in (None, MIXED_PRECISION):
        algorithms.add(declared.algorithm)
    if unknown := sorted(algorithms - {*known}):
        raise BadInputError(
            f"the corrected quantization says {', '.join(unknown)}",
            f"Known: {', '.join(known)}, {MIXED_PRECISION}.",
        )


def only_one(hf: Declaration | None, config: Declaration | None) -> str | None:
    """Return a warning if only one file declares anything, unless the format is declared in config.json only."""
    if config is None and hf is not None:
        return f"only {hf.file} declares the quantization, config.json does not: some readers look there only"
    row = BY_ALGORITHM.get(config.algorithm or "") if config is not None else None
    if hf is None and row is not None and not isinstance(row.form, ConfigForm):
        return f"only config.json declares the quantization: some readers look into {HF_QUANT_CONFIG} only"
    return None


def differences(hf: Declaration | None, config: Declaration | None) -> Iterator[ShardmergeError]:
    """Yield a problem for each key of which the two files say different things."""
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
    """Yield one problem for a list that differs, naming what stands in only one of the two."""
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


def _of_modelopt(declared: Json, file: str) -> Declaration:
    """Read either spelling: `exclude_modules` or `ignore`, `kv_cache_quant_algo` or `kv_cache_scheme`."""
    declared = declared.get("quantization", declared)
    layers = {
        _text(name): layer["quant_algo"] for name, layer in (declared.get("quantized_layers") or {}).items()
    }
    return Declaration(
        file,
        _text(declared.get("quant_algo") or "") or None,
        {name: _text(algorithm) for name, algorithm in layers.items()},
        _names(declared.get("exclude_modules", declared.get("ignore"))),
        _kv_cache(declared.get("kv_cache_quant_algo", declared.get("kv_cache_scheme"))),
        _group_sizes(declared),
    )


def _group_sizes(declared: Json) -> frozenset[int]:
    groups = (group.get("weights", {}) for group in declared.get("config_groups", {}).values())
    places = [declared, *groups, *(declared.get("quantized_layers") or {}).values()]
    return frozenset(_number(place["group_size"]) for place in places if place.get("group_size"))


def _kv_cache(value: Any) -> str | None:
    if isinstance(value, dict):
        numbers = (value["type"], value["num_bits"])
        known = (name for name, row in KV_CACHES.items() if (row["type"], row["num_bits"]) == numbers)
        return next(known, f"{value['type']}{value['num_bits']}".upper())
    return _text(value) if value else None


def _names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list | None):
        raise TypeError(f"expected a list of modules, got {names!r:.60}")
    texts = tuple(_text(name) for name in names or ())
    if sum("*" in text for text in texts) > MAX_PATTERNS:
        raise ValueError(f"more than {MAX_PATTERNS:,} patterns of modules")
    return texts


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a number, got {value!r:.60}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a name, got {value!r:.60}")
    if not value.isprintable():
        raise ValueError(f"{printable.one_line(value):.60} cannot be printed")
    return value
