"""Binds a table to one config.json: lists every tensor a checkpoint must hold, and claims canonical keys.

Must not know tensors, only their names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import InitVar, dataclass, field
from functools import partial
from itertools import product
from typing import NamedTuple

from ..errors import BadInputError
from .keys import LAYER, KeyIds, is_routed_expert, key_ids, key_pattern
from .rows import Architecture, Config, Layers, Row, Spelling, Target
from .settings.says import Key, Says, Synonyms
from .settings.vocabulary import SETTINGS, UNSPOKEN, Value, is_valid
from .spelling import DECODER, MTP, Spelled, decided

LAYER_NUMBER = re.compile("0|[1-9][0-9]{0,7}")
MAX_SIZE = 1 << 31  # of a dimension: two of them are multiplied in 64 bits
MAX_LAYERS = 1 << 14
MAX_EXPERTS = 1 << 20  # in all layers together, twenty times those of the largest models


class Tensor(NamedTuple):
    """A tensor that the checkpoint must hold. There are millions: a dataclass takes three times as long to make."""

    name: str
    shape: tuple[int, ...]
    float32: bool


class Family(NamedTuple):
    """Tensors that differ only in their expert: one for each expert of a layer, or a single other tensor."""

    names: list[str]
    shape: tuple[int, ...]
    float32: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """The row that a canonical key belongs to, with the ids found in the key."""

    row: Row
    tensors: tuple[Tensor, ...]
    layer: int | None
    expert: int | None


class Said(NamedTuple):
    """What a config.json says of a setting, and the keys that say it; none if this architecture has no choice."""

    value: Value
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A table bound to a config.json. Raises BadInputError if the config lacks or contradicts a dimension.

    Layers are numbered through: those of multi-token prediction (MTP) follow the `num_layers` of the decoder.
    `held` are names of the reference's tensors, which decide about rows that are `if_held`, for some architectures
    about steps of MTP of which config.json does not speak, and of the spellings about those that `said` leaves open.

    Attributes:
        rows: Those that some layer may have.
        experts: How routed experts are spelled, by part: "decoder" and "mtp". Empty if the table has none.
        mtp_layers: Numbers of the MTP layers, of which each step has `mtp_period`.
    """

    architecture: Architecture
    config: Config
    dimensions: dict[str, int] = field(init=False)
    rows: tuple[Row, ...] = field(init=False)
    layers: Layers = field(init=False)
    by_key: dict[str, Row] = field(init=False)
    experts: dict[str, Spelling] = field(init=False)
    mtp_layers: range = field(init=False)
    mtp_period: int = field(init=False)
    held: InitVar[Container[str]] = ()
    said: InitVar[Spelled | None] = None

    def __post_init__(self, held: Container[str], said: Spelled | None) -> None:
        try:
            mtp = self.architecture.mtp
            if mtp:
                self._set(config=mtp.spoken(self.config, held))
            steps, period = mtp.steps(self.config) if mtp else (0, 1)
            dimensions = _bounded(self.architecture.dimensions(self.config), steps * period)
            flags = self.architecture.flags(self.config)
            layers = self.architecture.layers(self.config)
        except (LookupError, TypeError, ArithmeticError, ValueError, AttributeError) as error:
            raise BadInputError(
                f"config.json of {self.architecture.name} lacks or contradicts {error}",
                "Correct it, or give the config.json of the model that was trained.",
            ) from error
        num_layers = dimensions["num_layers"]
        self._set(
            dimensions=dimensions,
            layers=layers,
            mtp_layers=range(num_layers, num_layers + steps * period),
            mtp_period=period,
        )
        rows = tuple(row for row in self.architecture.rows if not row.when or row.when in flags)
        self._set(experts=decided(self.architecture, said or {}, partial(self._are_held, rows, held)))
        spelled = {part: tuple(row for row in rows if self._fits(row, part)) for part in (DECODER, MTP)}
        by_key = {key: row for row in spelled[DECODER] for key in row.keys}
        if mtp and steps:
            of_steps = {key: row for row in spelled[MTP] for key in row.keys if LAYER in key}
            by_key |= {key.replace(LAYER, mtp.key): row for key, row in of_steps.items()}
        used = {row for part, own in spelled.items() if part == DECODER or steps for row in own}
        rows = tuple(row for row in rows if row in used and (not row.if_held or self._is_held(row, held)))
        self._set(by_key=by_key, rows=rows)

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def has(self, row: Row, layer: int) -> bool:
        """Whether a layer has a row."""
        return layer in self.layers[row.where] and self._fits(row, self._part(layer))

    def spelled_otherwise(self) -> Iterator[str]:
        """Yield the names that routed experts would have in the spelling that they do not have."""
        for row in self.architecture.rows:
            for layer in range(self.mtp_layers.stop) if row.spelling else ():
                if layer in self.layers[row.where] and not self.has(row, layer):
                    yield from self._names(row.targets[0], layer)

    def switched_off(self) -> Iterator[str]:
        """Yield the names that rows would have whose flag config.json does not set."""
        described = set(self.rows)
        off = (row for row in self.architecture.rows if row.when and row.part == 0 and row not in described)
        for row in off:
            among = self.layers.get(row.where, ())
            layers = [layer for layer in range(self.mtp_layers.stop) if layer in among]
            for layer, target in product([0] if row.where == "model" else layers, row.targets):
                yield from self._names(target, layer)

    def _part(self, layer: int) -> str:
        return MTP if layer in self.mtp_layers else DECODER

    def _fits(self, row: Row, part: str) -> bool:
        return row.spelling is None or row.spelling is self.experts.get(part)

    def _are_held(self, rows: tuple[Row, ...], held: Container[str], part: str, spelling: Spelling) -> bool:
        """Whether `held` has the first experts of any layer of a part in a spelling."""
        layers = self.mtp_layers if part == MTP else range(self.mtp_layers.start)
        return any(
            self._name(row.targets[0], layer, 0) in held
            for row in rows
            if row.spelling is spelling
            for layer in layers
            if layer in self.layers[row.where]
        )

    def _is_held(self, row: Row, held: Container[str]) -> bool:
        layers = (layer for layer in range(self.mtp_layers.stop) if self.has(row, layer))
        return any(name in held for layer in layers for name in self._names(row.targets[0], layer))

    def families(self) -> Iterator[Family]:
        """Yield all `tensors`, grouped, so that callers decide once for a family and not a million times."""
        for row, layer in self._places():
            for target in row.targets:
                yield Family(self._names(target, layer), self._shape(target), row.float32)

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor that a complete checkpoint holds, in the order of layers."""
        for names, shape, float32 in self.families():
            yield from (Tensor(name, shape, float32) for name in names)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of `tensors` by its name."""
        by_name: dict[str, tuple[int, ...]] = {}
        for names, shape, _ in self.families():
            by_name |= dict.fromkeys(names, shape)
        return by_name

    def settings(self) -> dict[str, Said]:
        """Return what config.json says of each setting, with what is neutral for those that the table leaves out.

        Raises BadInputError if it lacks or contradicts one.
        """
        said = {name: Said(one.neutral) for name, one in SETTINGS.items() if one.neutral is not UNSPOKEN}
        for row in self.architecture.settings:
            said[row.setting] = self._said(row)
        return said

    def unreadable_settings(self) -> Iterator[BadInputError]:
        """Yield an error for each setting that config.json lacks, contradicts or says in no way that is known."""
        for row in self.architecture.settings:
            try:
                self._said(row)
            except BadInputError as error:
                yield error

    @property
    def mtp_key(self) -> str:
        """The key of config.json that says how many steps there are, a dot leading inwards; "" if no setting does."""
        rows = (row for row in self.architecture.settings if row.setting == "mtp_steps")
        return next((row.keys[0] for row in rows if row.keys), "")

    def says(self, setting: str) -> Said:
        """Return what config.json says of one setting that has a neutral value. Raises what `settings` raises."""
        row = next((row for row in self.architecture.settings if row.setting == setting), None)
        return self._said(row) if row else Said(SETTINGS[setting].neutral)

    def _said(self, row: Says) -> Said:
        try:
            return Said(_valid(row, self.config), row.keys)
        except (LookupError, TypeError, ArithmeticError, ValueError, AttributeError) as error:
            raise BadInputError(
                f"config.json says {row.setting} ({', '.join(row.keys)}) in no way that is known: {error}",
                "Correct it, or give the config.json of the model that was trained.",
            ) from error

    @property
    def synonyms(self) -> tuple[Synonyms, ...]:
        """Keys of config.json that say the same thing, if it says them."""
        return self.architecture.synonyms

    def _places(self) -> Iterator[tuple[Row, int]]:
        """Yield each row with each layer that has it, in the order of layers. Rows of the model come first.

        Of rows that share a target only the first is yielded.
        """
        rows = [row for row in self.rows if row.part == 0]
        for row in rows:
            if row.where == "model":
                yield row, 0
        for layer in range(self.mtp_layers.stop):
            for row in rows:
                if row.where != "model" and self.has(row, layer):
                    yield row, layer

    def num_tensors(self) -> int:
        """Return how many tensors `tensors` yields, without listing them."""
        experts = self.dimensions.get("num_experts", 0)
        places = (row for row, _ in self._places())
        return sum(len(row.targets) * (experts if _is_of_experts(row) else 1) for row in places)

    def copies(self) -> dict[str, str]:
        """Return name of each tensor that repeats another -> the name of that one."""
        places = ((row, layer) for row, layer in self._places() if row.copy_of)
        return {
            name: row.copy_of
            for row, layer in places
            for target in row.targets
            for name in self._names(target, layer)
        }

    def expert_claims(self, layer: int, expert: int) -> Iterator[Claim]:
        """Yield each row of routed experts with what one expert of a layer has of it."""
        for row in self.rows:
            if row.keys and is_routed_expert(row.keys[0]) and self.has(row, layer):
                yield Claim(row, tuple(self._targets(row, layer, expert)), layer, expert)

    def claim(self, key: str) -> Claim | None:
        """Return the row that a canonical key belongs to, or None if no row has this key."""
        ids, row = key_ids(key), self.by_key.get(key_pattern(key))
        if row is None:
            return None
        layer = self._layer(ids, row)
        if row.where != "model" and layer is None:
            return None
        if ids.expert is not None and ids.expert >= self.dimensions["num_experts"]:
            return None
        return Claim(row, tuple(self._targets(row, layer or 0, ids.expert)), layer, ids.expert)

    def _layer(self, ids: KeyIds, row: Row) -> int | None:
        """Return the number of the layer that a key is of. None: it is of no layer, or of one without this row."""
        if row.where == "model":
            return None
        if ids.step is None:
            candidates = (
                range(self.dimensions["num_layers"])[ids.layer : ids.layer + 1]
                if ids.layer is not None
                else ()
            )
        else:
            step = self.mtp_layers[ids.step * self.mtp_period : (ids.step + 1) * self.mtp_period]
            candidates = step if ids.layer is None else step[ids.layer : ids.layer + 1]
        return next((layer for layer in candidates if self.has(row, layer)), None)

    def canonical(self, key: str) -> str:
        """Return a Megatron key without the prefix that it has in a model which holds other models too."""
        composite = self.architecture.composite
        return key.removeprefix(composite.key_prefix) if composite else key

    def drop_reason(self, key: str) -> str | None:
        """Return why a canonical key is not exported, or None if nothing drops it."""
        pattern = key_pattern(key)
        drops = (drop for drop in self.architecture.drops if _fits(pattern, drop.key))
        return next((drop.reason for drop in drops), None)

    def is_vision(self, name: str) -> bool:
        """Whether a Hugging Face tensor is of what stands beside the language model of a composite."""
        composite = self.architecture.composite
        return composite is not None and name.startswith(composite.vision)

    def vision_patterns(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return patterns, as of file names, that fit those of `names` that are beside the language model."""
        composite, held = self.architecture.composite, tuple(names)
        prefixes = composite.vision if composite else ()
        return tuple(f"{one}*" for one in prefixes if any(name.startswith(one) for name in held))

    @property
    def promises_vision(self) -> str:
        """The key by which config.json says that something stands beside the language model, "" if it does not."""
        composite = self.architecture.composite
        return composite.promised_by if composite and self.config.get(composite.promised_by) else ""

    def refusal_reason(self, key: str) -> str | None:
        """Return why a canonical key cannot be exported, or None if nothing is known of it."""
        pattern = key_pattern(key)
        return next((one.reason for one in self.architecture.refusals if one.key == pattern), None)

    def is_mtp(self, name: str) -> bool:
        """Whether a Hugging Face tensor is of multi-token prediction, whatever config.json says of it."""
        return self._mtp_pattern(name) is not None

    def mtp_patterns(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return patterns, as of file names, that fit those of `names` that are of multi-token prediction."""
        return tuple(sorted({pattern for name in names if (pattern := self._mtp_pattern(name))}))

    def _mtp_pattern(self, name: str) -> str | None:
        if self.architecture.mtp is None:
            return None
        of_decoder, of_mtp = self.architecture.mtp.hf_layers
        if of_mtp != of_decoder:
            begin = of_mtp.partition("layers.")[0]
            return f"{begin}*" if name.startswith(begin) else None
        begin = of_mtp.partition("{")[0]
        number = name.removeprefix(begin).partition(".")[0]
        is_layer = name.startswith(begin) and LAYER_NUMBER.fullmatch(number) is not None
        is_later = is_layer and int(number) >= self.dimensions["num_layers"]
        return f"{begin}{number}.*" if is_later else None

    def _names(self, target: Target, layer: int) -> list[str]:
        """Return a target's names in a layer. Those of experts are put together by hand: there are millions."""
        before, of_experts, after = self._name(target, layer, "\n").partition("\n")
        if not of_experts:
            return [before]
        return [f"{before}{expert}{after}" for expert in range(self.dimensions["num_experts"])]

    def _targets(self, row: Row, layer: int, expert: int | None) -> Iterator[Tensor]:
        for target in row.targets:
            yield Tensor(self._name(target, layer, expert), self._shape(target), row.float32)

    def _name(self, target: Target, layer: int, expert: int | str | None) -> str:
        """Return a target's name in a layer, which has another beginning if it is of multi-token prediction."""
        name, mtp = target.name, self.architecture.mtp
        if mtp and layer in self.mtp_layers:
            name = name.replace(*mtp.hf_layers)
        return name.format(layer=layer, mtp=layer - self.mtp_layers.start, expert=expert)

    def _shape(self, target: Target) -> tuple[int, ...]:
        sizes = self.dimensions
        return tuple(
            sizes[dim] if dim in sizes else sum(sizes[one] for one in dim.split("+")) for dim in target.shape
        )


def _fits(pattern: str, drop: str) -> bool:
    """Whether a key without its ids is one that a drop names."""
    return pattern.startswith(drop[:-1]) if drop.endswith("*") else pattern == drop


def _valid(row: Says, config: Config) -> Value:
    """Return what a config.json says of a setting. Raises ValueError for what that cannot be."""
    value = row.value(config)
    if not is_valid(row.setting, value):
        raise ValueError(f"{value!r:.60} is not {SETTINGS[row.setting].kind}")
    return value


def _is_of_experts(row: Row) -> bool:
    return "{expert}" in row.targets[0].name


def _bounded(dimensions: dict[str, int], mtp_layers: int) -> dict[str, int]:
    """Return the dimensions. Raise ValueError for what is not a size, or for too many experts to list."""
    for name, value in dimensions.items():
        if type(value) is not int or not 0 <= value < MAX_SIZE:
            raise ValueError(f"{name} = {value!r:.40}")
    layers, experts = dimensions["num_layers"] + mtp_layers, dimensions.get("num_experts", 0)
    if layers > MAX_LAYERS or layers * experts > MAX_EXPERTS:
        raise ValueError(f"{layers:,} layers of {experts:,} experts")
    return dimensions
