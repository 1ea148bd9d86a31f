"""The registry of architectures: a visible dict from the name that config.json gives to a table of rows.

Decides which table a config.json gets. What the tables say is decided in `families/`.
"""

from __future__ import annotations

from ..errors import BadInputError, UnsupportedArchitectureError
from .blueprint import Blueprint, Claim, Tensor
from .families.deepseek import DEEPSEEK_V3
from .families.gpt_oss import GPT_OSS
from .families.llama import LLAMA, QWEN2, QWEN3
from .families.mixtral import MIXTRAL
from .families.nemotron_h import NEMOTRON_H
from .families.qwen3_moe import QWEN3_MOE
from .keys import key_ids
from .rows import Architecture, Config, Layout

ARCHITECTURES = {
    table.name: table for table in (LLAMA, QWEN2, QWEN3, QWEN3_MOE, MIXTRAL, GPT_OSS, DEEPSEEK_V3, NEMOTRON_H)
}

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Blueprint",
    "Claim",
    "Config",
    "Layout",
    "Tensor",
    "architecture_of",
    "blueprint",
    "key_ids",
    "table_of",
]


def blueprint(config: Config) -> Blueprint:
    """Return the table of the architecture that a config.json names, bound to that config.

    Raises what `table_of` raises, and BadInputError if a dimension is missing or contradicted.
    """
    return Blueprint(table_of(config), config)


def table_of(config: Config) -> Architecture:
    """Return the table of the architecture that a config.json names.

    Raises BadInputError if the config names none, UnsupportedArchitectureError if there is no table for it.
    """
    name = architecture_of(config)
    if name is None:
        raise BadInputError(
            'config.json has no "architectures"',
            'Add it, for example "architectures": ["Qwen3MoeForCausalLM"].',
        )
    if name not in ARCHITECTURES:
        raise UnsupportedArchitectureError(name, tuple(sorted(ARCHITECTURES)))
    return ARCHITECTURES[name]


def architecture_of(config: Config) -> str | None:
    """Return the first name under "architectures", or None if there is none."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
