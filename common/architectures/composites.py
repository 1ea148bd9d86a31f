"""Turns the table of a language model into that of a composite, whose checkpoint holds other models beside it.

Names get a prefix, config.json is read under a key of its own, and what both places say must agree. Must not know any
architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from .rows import Architecture, Composite, Config, Drop, MultiTokenPrediction, Row
from .settings.says import Says, Synonyms

TIED = "tie_word_embeddings"  # transformers reads it outside, vLLM in the language model's own config
DTYPES = ("dtype", "torch_dtype")
VISION = "a vision tower, which --graft vision takes from the reference"
Renamed = tuple[tuple[str, str], ...]


def composite_of(
    table: Architecture,
    name: str,
    *,
    renamed: Renamed,
    place: Composite,
    vision_keys: tuple[str, ...],
    model_types: tuple[str, ...],
    oracles: tuple[str, ...] = (),
    agree: tuple[Synonyms, ...] = (),
    aliases: tuple[str, ...] = (),
) -> Architecture:
    """Return the table of a checkpoint that holds this language model and others.

    Args:
        table: Of the language model.
        name: What config.json of the whole gives in `architectures`.
        renamed: Beginnings of the Hugging Face names of the language model -> what they are in the whole. The first
            that fits counts; a name that fits none stays.
        place: Where the language model is, and what is beside it.
        vision_keys: What Megatron keys of everything else begin with.
        model_types: What config.json of the whole may say under `model_type`.
        oracles: Programs that tests compare it with.
        agree: Further keys of config.json, a dot leading inwards, that must say the same.
        aliases: Other names of the whole.

    Returns:
        A table with the same rows, which reads everything but `TIED` under `place.config`.
    """
    inside = place.config
    outside = tuple(
        replace(row, targets=_targets(row, renamed), copy_of=_renamed(row.copy_of, renamed))
        for row in table.rows
    )
    return replace(
        table,
        name=name,
        source=place.source,
        rows=outside,
        dimensions=lambda config: table.dimensions(language_config(config, place)),
        flags=lambda config: table.flags(language_config(config, place)),
        layers=lambda config: table.layers(language_config(config, place)),
        drops=(*table.drops, *(Drop(f"{key}*", VISION) for key in vision_keys)),
        mtp=_steps(table.mtp, renamed, place) if table.mtp else None,
        settings=tuple(_says(row, place) for row in table.settings),
        aliases=aliases,
        oracles=oracles,
        repeated=(
            (*DTYPES, *(f"{inside}.{key}" for key in DTYPES)),
            *_within((keys for keys in table.repeated if keys != DTYPES), place),
            *agree,
        ),
        composite=place,
        model_types=model_types,
    )


def language_config(config: Config, place: Composite) -> Config:
    """Return what a config.json says of its language model.

    Raises KeyError if it lacks that, ValueError if it is not an object, or ties embeddings for some readers alone.
    """
    own = config[place.config]
    if not isinstance(own, Mapping):
        raise ValueError(f"{place.config} = {own!r:.40}")
    outside = place.tied if (said := config.get(TIED)) is None else said
    if said is None and (inside := own.get(TIED)) not in (None, outside):
        raise ValueError(
            f"{place.config}.{TIED} = {inside!r:.40} and no {TIED}, which transformers takes for {outside}"
        )
    return {**own, TIED: outside}


def _renamed(name: str, renamed: Renamed) -> str:
    old, new = next(((old, new) for old, new in renamed if name.startswith(old)), ("", ""))
    return new + name.removeprefix(old) if name else name


def _targets(row: Row, renamed: Renamed) -> Any:
    return tuple(replace(target, name=_renamed(target.name, renamed)) for target in row.targets)


def _steps(mtp: MultiTokenPrediction, renamed: Renamed, place: Composite) -> MultiTokenPrediction:
    decoder, steps = (_renamed(layers, renamed) for layers in mtp.hf_layers)
    return replace(
        mtp,
        steps=lambda config: mtp.steps(language_config(config, place)),
        hf_layers=(decoder, steps),
        without=lambda config: {**config, place.config: mtp.without(config[place.config])},
        spoken=lambda config, held: {**config, place.config: mtp.spoken(config[place.config], held)},
    )


def _says(row: Says, place: Composite) -> Says:
    """Return where a composite says a setting: under its own key, or in both places."""
    both = tuple(key for key in row.keys if key == TIED)
    places = {key: f"{place.config}.{key}" for key in row.keys}
    return Says(
        row.setting,
        tuple(places.values()) + both,
        lambda config: row.value(language_config(config, place)),
        (*_within(row.synonyms, place), *((key, places[key]) for key in both)),
    )


def _within(synonyms: Iterable[Synonyms], place: Composite) -> tuple[Synonyms, ...]:
    return tuple(tuple(f"{place.config}.{key}" for key in keys) for keys in synonyms)
