"""Decides which keys of a checkpoint are parameters, and how a stored tensor holds those of layers, experts and halves.

On disk, the parameters of all layers or of all experts may be one tensor with further first dimensions, and gate and
up projection one tensor with the rows of both.
Source: megatron/core/transformer/transformer_block.py, moe/experts.py, mlp.py (`apply_swiglu_sharded_factory`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from shardmerge.common.architectures import Blueprint
from shardmerge.common.architectures.keys import key_pattern
from shardmerge.common.rectangle import Shape

EXTRA_STATE = re.compile(r"\._extra_state(?:\d*|/.*)$")  # of Transformer Engine's modules
QUANTIZER = re.compile(r"\.[a-z_]*_quantizer(?:\.\d+)*\.(?P<value>\w+)$")  # of Model-Optimizer
PREFIX = re.compile(r"(?:module\.|model\.)+")  # of NeMo, and of modules in modules
NOT_OF_THE_MODEL = re.compile(
    r"(?:chained_\d+\.)?optimizer\."
    r"|rng_state|rerun_state|dataloader|opt_param_scheduler|common_state|iteration|checkpoint_version"
)
STACKED_LAYERS = re.compile(r"(?<=\.layers\.)(?=[a-z_])")
STACKED_EXPERTS = re.compile(r"(?<=\.experts\.experts\.)(?=[a-z_])")
GATE, UP = "_w", "_v"
NONE = -1
MERGE_FIRST = "merge it into the weights before"
# parts of a key -> what such a key is of
REFUSED = {
    re.compile(r"\blora_|\.lora\.|\.adapters?\."): f"a LoRA adapter: {MERGE_FIRST}",
    re.compile(
        r"(?:^|\.)(?:rm|reward|value|score|v)_?head\b"
    ): "a head for rewards, which no architecture here has",
    re.compile(r"_teacher_model\b|_loss_modules\b|distill"): "distillation: export the student alone before",
}


class Place(NamedTuple):
    """Where a parameter lies in a stored tensor: at which layer, expert and half of the rows, NONE for no choice."""

    layer: int = NONE
    expert: int = NONE
    half: int = NONE


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A tensor on disk whose first dimensions may be layers and experts, and whose rows may be gate and up."""

    key: str
    shape: Shape
    has_layers: bool
    has_experts: bool
    has_halves: bool

    @property
    def leading(self) -> int:
        """How many first dimensions are not of the parameter."""
        return self.has_layers + self.has_experts

    @property
    def parameter_shape(self) -> Shape:
        """Shape of each parameter in it."""
        rows, *rest = self.shape[self.leading :] or (1,)
        return (rows // 2 if self.has_halves else rows, *rest)

    def places(self) -> Iterator[Place]:
        """Yield where its parameters lie."""
        layers = range(self.shape[0]) if self.has_layers else (NONE,)
        experts = range(self.shape[int(self.has_layers)]) if self.has_experts else (NONE,)
        for layer in layers:
            for expert in experts:
                for half in (0, 1) if self.has_halves else (NONE,):
                    yield Place(layer, expert, half)

    def canonical(self, place: Place) -> str:
        """Return the key that megatron-core gives the parameter when it is stored alone."""
        return _canonical(self.key, place)


def is_of_the_model(key: str) -> bool:
    """Whether a key is of a parameter: not of an optimizer, random numbers, a data loader, a quantizer, extra state."""
    return not (NOT_OF_THE_MODEL.match(key) or EXTRA_STATE.search(key) or is_of_quantizer(key))


def is_of_quantizer(key: str) -> bool:
    """Whether a key is of a tensor that a quantizer of Model-Optimizer keeps."""
    return QUANTIZER.search(key) is not None


def without_prefix(key: str, table: Blueprint) -> str:
    """Return a key without what Bridge or NeMo put before it, or a model that holds other models too."""
    return table.canonical(PREFIX.sub("", key, count=1) if PREFIX.match(key) else key)


def refusal(key: str) -> str | None:
    """Return what a key is of, if that cannot be exported from disk, else None."""
    return next((what for pattern, what in REFUSED.items() if pattern.search(key)), None)


def stored_key(key: str, shape: Shape, table: Blueprint) -> StoredKey:
    """Return how a tensor holds parameters.

    Args:
        key: As it stands on disk.
        shape: Of the tensor.
        table: The table of the architecture, which knows the keys of parameters that are stored alone.

    Returns:
        The stored key, without what Bridge or NeMo put before it, or a model that holds other models too.
    """
    own = without_prefix(key, table)
    claimed = table.by_key
    has_layers, has_experts = (
        pattern.search(own) is not None for pattern in (STACKED_LAYERS, STACKED_EXPERTS)
    )
    alone = _canonical(own, Place(0 if has_layers else NONE, 0 if has_experts else NONE))
    has_halves = (
        key_pattern(alone) not in claimed
        and key_pattern(alone + GATE) in claimed
        and len(shape) > has_layers + has_experts
        and shape[has_layers + has_experts] % 2 == 0
    )
    return StoredKey(own, shape, has_layers, has_experts, has_halves)


def _canonical(key: str, place: Place) -> str:
    if place.layer != NONE:
        key = STACKED_LAYERS.sub(f"{place.layer}.", key, count=1)
    if place.expert != NONE:
        key = STACKED_EXPERTS.sub(f"{place.expert}.", key, count=1)
    return key if place.half == NONE else key + (GATE, UP)[place.half]
