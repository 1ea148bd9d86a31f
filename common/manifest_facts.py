"""What a manifest says besides where bytes lie: facts of the model, health of its numbers, quantization.

Integers have a bound, since they go into arrays, and texts can be printed, since they go into messages.

Each is an object of the manifest's JSON, here a dataclass. A field is None for a key that is not there, so that an
object is written again as it was read, and `more` keeps the keys that this shardmerge does not know. Types are
checked whenever one is made, and ValueError tells what is wrong; what the values mean is judged by others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any

from .errors import printable

Json = Any
MORE = "more"
KINDS = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "an object",
}
INTEGERS = 1 << 62  # each is smaller, and above its negative
ROW_OF_NONFINITE = 3  # row, NaN elements, infinite elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the model is. All ranks must agree on every one of these.

    `dtype` is what weights are trained in, as safetensors spells it; `dimensions` are those of the architecture's
    table; `dtype_from_reference` tells whether the reference narrowed tensors that are otherwise kept float32.
    `settings` are what the live model says of `architectures.settings`: a rank tells those that it knows.
    `own_options` are fields of the model's config that are not megatron-core's, and so are compared with nothing.
    `experts` are the spellings that routed experts were written in, by part (`architectures.spelling`): a rank tells
    those of the parts of which it holds experts. `table` is the digest of the architecture's table.
    """

    dtype: str | None = None
    dimensions: dict[str, int] | None = None
    dtype_from_reference: bool | None = None
    settings: dict[str, Json] | None = None
    own_options: list[str] | None = None
    experts: dict[str, str] | None = None
    table: str | None = None
    more: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.dtype, str, "facts.dtype")
        _check_object(self.dimensions, int, "facts.dimensions")
        _check(self.dtype_from_reference, bool, "facts.dtype_from_reference")
        _check_settings(self.settings)
        _check_list(self.own_options, (str,), "facts.own_options")
        _check_object(self.experts, str, "facts.experts")
        _check(self.table, str, "facts.table")

    @classmethod
    def of_json(cls, value: Mapping[str, Json]) -> Facts:
        """Return the fields of a JSON object. Raises ValueError for a value of another type than its key has."""
        return cls(**_arguments(cls, value, "facts"))

    def as_json(self) -> dict[str, Json]:
        """Return the object that was read, with the keys that were there."""
        return _as_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Rows of the columns that are not as trained weights should be.

    `nonfinite` holds [row, NaN elements, infinite elements], `all_zero` the rows that hold nothing but zeros.
    `shifted_norms` are numbers of elements of norms: to which 1 was "added", from which it was "subtracted", as readers
    take them otherwise than the model, and that were "rounded" then. It is not there if there are none.
    """

    nonfinite: list[list[int]] | None = None
    all_zero: list[int] | None = None
    shifted_norms: dict[str, int] | None = None
    more: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_list(self.nonfinite, (list,), "health.nonfinite")
        rows = self.nonfinite or []
        if not set(map(len, rows)) <= {ROW_OF_NONFINITE}:
            raise ValueError(f"a row of health.nonfinite does not hold {ROW_OF_NONFINITE} numbers")
        _check_each(list(chain.from_iterable(rows)), (int,), "health.nonfinite")
        _check_list(self.all_zero, (int,), "health.all_zero")
        _check_object(self.shifted_norms, int, "health.shifted_norms")

    @classmethod
    def of_json(cls, value: Mapping[str, Json]) -> Health:
        """Return the fields of a JSON object. Raises ValueError for a value of another type than its key has."""
        return cls(**_arguments(cls, value, "health"))

    def as_json(self) -> dict[str, Json]:
        """Return the object that was read, with the keys that were there."""
        return _as_json(self)


@dataclass(frozen=True, slots=True)
class Scalars:
    """Scalar scales as columns of equal length: Hugging Face names, and the values of this rank's shards."""

    names: list[str]
    values: list[float]

    def __post_init__(self) -> None:
        _check_list(self.names, (str,), "quantization.scalars.names")
        _check_list(self.values, (int, float), "quantization.scalars.values")
        if len(self.names) != len(self.values):
            raise ValueError(f"quantization.scalars has {len(self.names)} names, {len(self.values)} values")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationFacts:
    """What one rank says of its quantized tensors, by the names they have in the checkpoint.

    `layers` are modules by format, `excluded` the modules with a plain matrix, `kv_cache` attentions by algorithm.
    `uncalibrated` are scalars that calibration never saw. `bad_scales` tells how many elements of a written scale
    cannot be one. All but the last must be there to be merged: `missing` names those that are not.
    """

    layers: dict[str, list[str]] | None = None
    excluded: list[str] | None = None
    kv_cache: dict[str, list[str]] | None = None
    scalars: Scalars | None = None
    uncalibrated: list[str] | None = None
    producer: dict[str, str] | None = None
    bad_scales: dict[str, int] | None = None
    more: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, lists in (("layers", self.layers), ("kv_cache", self.kv_cache)):
            _check_object(lists, list, f"quantization.{name}")
            for key, names in (lists or {}).items():
                _check_list(names, (str,), f"quantization.{name}.{key}")
        _check_list(self.excluded, (str,), "quantization.excluded")
        _check_list(self.uncalibrated, (str,), "quantization.uncalibrated")
        _check_object(self.producer, str, "quantization.producer")
        _check_object(self.bad_scales, int, "quantization.bad_scales")

    @classmethod
    def of_json(cls, value: Mapping[str, Json]) -> QuantizationFacts:
        """Return the fields of a JSON object. Raises ValueError for a value of another type than its key has."""
        given = _arguments(cls, value, "quantization")
        if "scalars" in given:
            given["scalars"] = _scalars(given["scalars"])
        return cls(**given)

    def as_json(self) -> dict[str, Json]:
        """Return the object that was read, with the keys that were there."""
        value = _as_json(self)
        if self.scalars is not None:
            value["scalars"] = {"names": self.scalars.names, "values": self.scalars.values}
        return value

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the keys that every quantized rank writes and that are not there."""
        wanted = ("layers", "excluded", "kv_cache", "scalars", "uncalibrated", "producer")
        return tuple(name for name in wanted if getattr(self, name) is None)


def _scalars(value: Json) -> Scalars:
    _check(value, dict, "quantization.scalars")
    if value.keys() != {"names", "values"}:
        raise ValueError("quantization.scalars is not an object of names and values")
    return Scalars(value["names"], value["values"])


def _arguments(
    kind: type[Facts | Health | QuantizationFacts], value: Mapping[str, Json], what: str
) -> dict[str, Json]:
    """Return the fields of a JSON object, with unknown keys under `more`. Raises ValueError for a null."""
    known = {one.name for one in fields(kind)} - {MORE}
    given = {key: value[key] for key in known & value.keys()}
    for key, held in given.items():
        if held is None:
            raise ValueError(f"{what}.{key} is null")
    return given | {MORE: {key: held for key, held in value.items() if key not in known}}


def _as_json(facts: Facts | Health | QuantizationFacts) -> dict[str, Json]:
    names = (one.name for one in fields(facts) if one.name != MORE)
    return {**facts.more, **{name: held for name in names if (held := getattr(facts, name)) is not None}}


def _check(value: Json, kind: type, what: str) -> None:
    """Raise ValueError unless a value is None or of this type, which true and false are not of int."""
    if value is not None and type(value) is not kind:
        raise ValueError(f"{what} is {_spelt(value)}, which is not {KINDS[kind]}")
    if kind is str:
        _check_texts((value or "",), what)


def _check_list(value: Json, kinds: tuple[type, ...], what: str) -> None:
    """Raise ValueError unless a value is None or a list of these types."""
    _check(value, list, what)
    _check_each(value or (), kinds, what)


def _check_object(value: Json, kind: type, what: str) -> None:
    """Raise ValueError unless a value is None or an object whose values have this type."""
    _check(value, dict, what)
    _check_texts((value or {}).keys(), what)
    _check_each((value or {}).values(), (kind,), what)


def _check_settings(value: Json) -> None:
    """Raise ValueError unless a value is None or an object of plain values and lists of them."""
    _check(value, dict, "facts.settings")
    _check_texts((value or {}).keys(), "facts.settings")
    for name, held in (value or {}).items():
        plain = held if isinstance(held, list) else (held,)
        what = f"facts.settings.{name}"
        if any(isinstance(one, list | dict) for one in plain):
            raise ValueError(
                f"{what} holds {_spelt(next(one for one in plain if isinstance(one, list | dict)))}"
            )
        _check_texts([one for one in plain if isinstance(one, str)], what)
        _check_each([one for one in plain if type(one) is int], (int,), what)


def _check_each(values: Collection[Json], kinds: tuple[type, ...], what: str) -> None:
    """Raise ValueError unless all have one of these types, of which the last names them. There may be millions."""
    if not set(map(type, values)) <= {*kinds}:
        strange = next(one for one in values if type(one) not in kinds)
        raise ValueError(f"{what} holds {_spelt(strange)}, which is not {KINDS[kinds[-1]]}")
    if str in kinds:
        _check_texts(values, what)
    if int in kinds and values and not (min(values) > -INTEGERS and max(values) < INTEGERS):
        for large in (one for one in values if type(one) is int and abs(one) >= INTEGERS):
            raise ValueError(f"{what} holds {_spelt(large)}, which is too large")


def _check_texts(texts: Collection[Any], what: str) -> None:
    """Raise ValueError if one of these holds a character that cannot be printed."""
    if not printable.is_printable(texts):
        raise ValueError(f"{what} holds a text that cannot be printed")


def _spelt(value: Json) -> str:
    """Return a value for a message. Lists and objects, which may be deep, are only named."""
    return KINDS[type(value)] if isinstance(value, list | dict) else f"{value!r:.60}"
