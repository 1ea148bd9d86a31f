"""What a table of an architecture is made of: rows that join Megatron keys to Hugging Face tensors.

A `Row` joins canonical Megatron keys to the Hugging Face tensors they hold, and names the layout that turns one
into the other; layouts are code in phase one, rows are data here.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .settings.says import COMMON_SYNONYMS, Says, Synonyms

Config = Mapping[str, Any]
# keys that mean the same in every table; transformers takes either name for the number of routed experts
EXPERT_NUMBERS: Synonyms = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
OF_EVERY_TABLE = (*COMMON_SYNONYMS, EXPERT_NUMBERS)
Layers = dict[str, Container[int]]


class Layout(StrEnum):
    """How the Megatron tensor of a row becomes Hugging Face tensors."""

    SAME = "same"  # the same elements at the same place
    QKV = "qkv"  # rows group by group: queries, key, value
    FUSED_QKV = "fused_qkv"  # the same in one tensor: all queries, all keys, all values
    GATED_QKV = "gated_qkv"  # rows group by group: queries, gates, key, value
    VOCAB = "vocab"  # rows, then padding that is dropped
    PART = "part"  # some rows of a tensor, or of each of its groups, whose other rows have keys of their own
    LIFTED = "lifted"  # the same elements below a first dimension of one
    PACKED = "packed"  # one expert's of a tensor that holds those of all experts


class Spelling(StrEnum):
    """How a checkpoint spells the weights of routed experts."""

    PER_EXPERT = "per-expert"  # a tensor for each expert
    PACKED = "packed"  # one tensor for all experts of a layer


@dataclass(frozen=True, slots=True)
class Target:
    """A Hugging Face tensor: its name with {layer}, {mtp} and {expert}, its shape in names of dimensions.

    {layer} counts all layers, those of multi-token prediction after the decoder's; {mtp} counts the former alone. A
    size that is a sum of dimensions joins their names by a plus: `moe_ffn+moe_ffn`.
    """

    name: str
    shape: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table. `keys` are alternative spellings of the same Megatron tensor."""

    keys: tuple[str, ...]
    targets: tuple[Target, ...]
    layout: Layout = Layout.SAME
    where: str = "model"  # or a set of layers the table defines: "layers", "dense", "moe"
    when: str = ""  # a flag of the config; "" is always
    float32: bool = False  # kept float32 whatever dtype the model has
    sections: tuple[str, ...] = ()  # of Layout.PART and PACKED: rows of all parts of the target, in order
    part: int = 0  # which of them this is
    interleaved: bool = (
        False  # of Layout.PACKED: the parts' rows alternate; of GATED_QKV: queries and gates do
    )
    transposed: bool = False  # of Layout.PACKED: each expert's is transposed
    copy_of: str = ""  # Hugging Face name of the tensor that the target repeats; no rank has keys of it
    plain_norm: bool = False  # readers add nothing to it, though they add 1 to the weights of all other norms
    if_held: bool = False  # only where the reference holds the target: published files differ
    spelling: Spelling | None = None  # only in layers whose experts are spelled so


@dataclass(frozen=True, slots=True)
class Drop:
    """Keys that are deliberately not exported, with the reason. A `*` at the end of `key` stands for anything."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Keys that some programs train and that no reader can repeat, with the reason as a clause."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class MultiTokenPrediction:
    """How an architecture stores layers of multi-token prediction (MTP): as ordinary layers under other names.

    The table's sets of layers hold them after the decoder's, so the rows of ordinary layers claim them too.

    Attributes:
        steps: Of a config.json: how many steps are stored, and how many layers each of them has.
        key: What keys of its layers begin with, instead of `decoder.layers.{layer}.`.
        hf_layers: What Hugging Face names of decoder layers begin with, and what those of its layers begin with.
        without: Returns a config.json that says, to all readers, that there is none.
        source: Where that is known from.
        spoken: Of a config.json, and the names of the tensors beside it: the same with the number of steps that these
            show, for architectures whose published config.json is silent.
    """

    steps: Callable[[Config], tuple[int, int]]
    key: str
    hf_layers: tuple[str, str]
    without: Callable[[Config], dict[str, Any]]
    source: str
    spoken: Callable[[Config, Container[str]], Config] = lambda config, _: config


@dataclass(frozen=True, slots=True)
class Spellings:
    """Which spellings of routed experts all readers take. The first is that of published files.

    Attributes:
        decoder: Of the decoder's layers.
        mtp: Of layers of multi-token prediction, which readers load with code of their own.
        only: Why there are not two for the decoder, as a sentence; "" if there are.
    """

    decoder: tuple[Spelling, ...]
    mtp: tuple[Spelling, ...] = (Spelling.PER_EXPERT,)
    only: str = ""


@dataclass(frozen=True, slots=True)
class Composite:
    """Where the language model is in a checkpoint that holds other models beside it: a vision tower, what joins it.

    Megatron trains the language model; the rows of the table are of it alone.

    Attributes:
        config: Key of config.json under which the language model's own config is.
        key_prefix: What Megatron keys of the language model begin with if the model that is trained holds all of them.
        vision: What the Hugging Face names of everything else begin with.
        promised_by: Key of config.json that says there is something else.
        source: Where that is known from.
        tied: Whether transformers ties both embeddings of a config.json that does not say so outside of `config`.
    """

    config: str
    key_prefix: str
    vision: tuple[str, ...]
    promised_by: str
    source: str
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """A table: rows, and the functions that read dimensions, flags and sets of layers out of config.json.

    Dimensions that every table gives: `num_layers`, `num_experts` (0 for a dense model), and those that its rows name.
    What a layout needs besides is said where the layout is (`heads`, `groups` and `head_dim` for a fused q/k/v).
    `settings` tell where config.json says what no shape shows. `aliases` are other names of the same architecture.
    `experts` says how routed experts may be spelled; None if no row has a `spelling`. `repeated` are keys of
    config.json that say the same and are not of a setting. `model_types` are what config.json may say under
    `model_type`, by which readers choose the class of its config, and transformers that of the model; where there are
    none, it may say anything. `composite` is of a table whose rows are a language model beside others. `oracles` are
    programs that do not know this table and that tests compare it with.
    """

    name: str
    source: str
    rows: tuple[Row, ...]
    dimensions: Callable[[Config], dict[str, int]]
    flags: Callable[[Config], frozenset[str]]
    layers: Callable[[Config], Layers]
    drops: tuple[Drop, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    mtp: MultiTokenPrediction | None = None
    settings: tuple[Says, ...] = ()
    aliases: tuple[str, ...] = ()
    experts: Spellings | None = None
    oracles: tuple[str, ...] = ()
    repeated: tuple[Synonyms, ...] = OF_EVERY_TABLE
    composite: Composite | None = None
    model_types: tuple[str, ...] = ()

    @property
    def synonyms(self) -> tuple[Synonyms, ...]:
        """Keys of config.json that say the same thing, if it says them."""
        return (*self.repeated, *(keys for row in self.settings for keys in row.synonyms))


def same(
    key: str, name: str, *shape: str, where: str = "layers", when: str = "", float32: bool = False
) -> Row:
    """Return the row of a Megatron tensor that is one Hugging Face tensor, element for element.

    Args:
        key: canonical Megatron key, with {layer} and {expert}.
        name: Hugging Face name, with {layer} and {expert}.
        shape: names of the dimensions of both.
        where: a set of layers that the table defines, or "model".
        when: a flag of config.json that must be set for the tensor to exist, "" for none.
        float32: whether it stays float32 whatever dtype the model has.

    Returns:
        The row.
    """
    return Row((key,), (Target(name, shape),), Layout.SAME, where, when, float32)
