"""What a row of the table of formats says: tensors of a weight, source of its scales, declaration.

Pure data; which formats there are and how bytes are computed is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Json = dict[str, Any]
INPUT_SCALE = "input_scale"


class Encoding(StrEnum):
    """How the bits of an element are read when its health is inspected."""

    FLOAT = "float"  # as its dtype says
    E4M3 = "e4m3"  # NaN is 0x7F and 0xFF
    E2M1_PAIR = "e2m1 pair"  # two 4-bit numbers in a byte; no NaN
    E8M0 = "e8m0"  # a power of two; NaN is 0xFF


class ScaleSource(StrEnum):
    """Where the scales come from that the elements of a live weight are divided by."""

    NUMBERS = "the numbers of each block, looked at when the block is packed"
    RANGE = "one range of the whole weight, from calibration"
    BLOCK_RANGES = "a range of each block, from calibration"


@dataclass(frozen=True, slots=True)
class Companion:
    """One tensor of a quantized weight: `suffix` takes the place of "weight" in its name.

    `divisors`: how many rows and columns of the weight one element stands for; None for a scalar of the whole weight.
    """

    suffix: str
    dtype: str
    divisors: tuple[int, int] | None
    encoding: Encoding = Encoding.FLOAT

    @property
    def is_scale(self) -> bool:
        """Whether it holds scales, which must be finite and positive."""
        return self.suffix != "weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeloptForm:
    """Declared as modelopt does: in hf_quant_config.json and, with groups of modules, in config.json.

    A checkpoint may mix formats of this form. `weights` and `input_activations` are what config.json says of numbers,
    besides their `group_size`; the latter is None if inputs stay as they are.
    """

    quant_algo: str
    group_size: int | None = None
    weights: Mapping[str, Any]
    input_activations: Mapping[str, Any] | None = None

    @property
    def layer(self) -> Json:
        """Return what `quantized_layers` says of a module of this format."""
        return {"quant_algo": self.quant_algo, **self._size}

    @property
    def group(self) -> Json:
        """Return what a group of config.json's `config_groups` says of the numbers in its modules."""
        weights = {"weights": {**self.weights, **self._size}}
        if self.input_activations is None:
            return weights
        return {"input_activations": {**self.input_activations, **self._size}} | weights

    @property
    def _size(self) -> Json:
        return {} if self.group_size is None else {"group_size": self.group_size}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigForm:
    """Declared in config.json only, as DeepSeek does: one format for all linears but those that are listed.

    `statements` is everything that `quantization_config` says, in this order, but the list of modules that stay as
    they are, which is called `excluded`. A config.json that agrees with the keys of `known_by` has this format.
    """

    statements: Mapping[str, Any]
    excluded: str
    known_by: tuple[str, ...]

    def fits(self, quantization_config: Mapping[str, Any]) -> bool:
        """Whether a quantization_config declares this format."""
        return all(quantization_config.get(key) == self.statements[key] for key in self.known_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A row of the table of formats.

    Storage: `companions` are the tensors of a weight, itself first; no cut may fall inside a `block` of its rows and
    columns; `partial_block` tells whether the last block may be smaller than the others.

    Scales: `scales` is where they come from. With `positive_ranges` a range from calibration that is zero, negative
    or not finite stops a dump; without, whoever packs the weight knows what to do with a block of zeros.

    Names: `form` is how the checkpoint declares it; `modelopt` are the names that modelopt's
    `get_quantization_format` gives it, of which `compressed` is that of a weight which `mtq.compress` packed in
    place, None if such a weight cannot be written; `transformer_engine` is the class of parameters that hold it.
    """

    name: str
    companions: tuple[Companion, ...]
    block: tuple[int, int]
    partial_block: bool = False
    scales: ScaleSource
    positive_ranges: bool = True
    form: ModeloptForm | ConfigForm
    modelopt: tuple[str, ...]
    compressed: str | None = None
    transformer_engine: str | None = None

    @property
    def weight(self) -> Companion:
        """Return the companion that holds the packed numbers."""
        return next(one for one in self.companions if not one.is_scale)

    @property
    def scalars(self) -> tuple[str, ...]:
        """Return the suffixes of scalars, whose values must be equal on all shards of a weight."""
        return tuple(one.suffix for one in self.companions if one.divisors is None)

    @property
    def is_calibrated(self) -> bool:
        """Whether readers need to know the range of the inputs."""
        return INPUT_SCALE in self.scalars

    @property
    def needs_weight_range(self) -> bool:
        """Whether a scale of the weight comes from its range in calibration."""
        return self.scales is not ScaleSource.NUMBERS or bool({*self.scalars} - {INPUT_SCALE})

    @property
    def algorithm(self) -> str:
        """Return the word that a declaration has for it, or its own name where no file has such a word."""
        return self.form.quant_algo if isinstance(self.form, ModeloptForm) else self.name

    @property
    def mixes(self) -> bool:
        """Whether other formats may stand beside it: modelopt's mixed declaration names formats of its own form."""
        return isinstance(self.form, ModeloptForm)
