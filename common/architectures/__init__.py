"""The registry of architectures: a visible dict from the name that config.json gives to a table of rows.

Decides which table a config.json gets. What the tables say is decided in `families/`.
"""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any

from ..errors import BadInputError, UnsupportedArchitectureError
from . import own
from .blueprint import Blueprint, Claim, Tensor
from .families.bailing import BAILING_MOE_V2
from .families.composite.kimi_k25 import KIMI_K25
from .families.composite.llama4 import LLAMA4_VL
from .families.composite.qwen3_vl import QWEN3_VL, QWEN3_VL_MOE
from .families.delta.qwen3_5 import QWEN3_5, QWEN3_5_MOE, QWEN3_5_MOE_VL, QWEN3_5_VL
from .families.delta.qwen3_next import QWEN3_NEXT
from .families.dense.gemma3 import GEMMA3
from .families.dense.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from .families.dense.nemotron import NEMOTRON
from .families.dots import DOTS1
from .families.ernie import ERNIE4_5_MOE
from .families.exaone_moe import EXAONE_MOE
from .families.glm import GLM4_MOE, GLM4_MOE_LITE
from .families.gpt_oss import GPT_OSS
from .families.latent.deepseek import DEEPSEEK_V3
from .families.latent.deepseek_v2 import DEEPSEEK_V2
from .families.latent.sparse import DEEPSEEK_V32, GLM_MOE_DSA
from .families.llama4 import LLAMA4
from .families.minimax_m2 import MINIMAX_M2
from .families.mixtral import MIXTRAL
from .families.nemotron_h import NEMOTRON_H
from .families.olmoe import OLMOE
from .families.qwen2_moe import QWEN2_MOE
from .families.qwen3_moe import QWEN3_MOE
from .keys import key_ids
from .rows import Architecture, Config, Layout, Spelling
from .spelling import Spelled
from .without_table import reason_of

TABLES = (
    LLAMA,
    LLAMA4,
    MISTRAL,
    QWEN2,
    QWEN3,
    QWEN2_MOE,
    QWEN3_MOE,
    QWEN3_NEXT,
    QWEN3_5,
    QWEN3_5_MOE,
    QWEN3_5_VL,
    QWEN3_5_MOE_VL,
    MIXTRAL,
    OLMOE,
    MINIMAX_M2,
    ERNIE4_5_MOE,
    EXAONE_MOE,
    GPT_OSS,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    DEEPSEEK_V32,
    BAILING_MOE_V2,
    DOTS1,
    GLM4_MOE,
    GLM4_MOE_LITE,
    GLM_MOE_DSA,
    GEMMA3,
    NEMOTRON,
    NEMOTRON_H,
    QWEN3_VL,
    QWEN3_VL_MOE,
    KIMI_K25,
    LLAMA4_VL,
)
ARCHITECTURES = {name: table for table in TABLES for name in (table.name, *table.aliases)}

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Blueprint",
    "Claim",
    "Config",
    "Layout",
    "Spelled",
    "Spelling",
    "Tensor",
    "architecture_of",
    "blueprint",
    "key_ids",
    "table_of",
]


def blueprint(
    config: Config,
    held: Container[str] = (),
    experts: Spelled | None = None,
    table: Architecture | None = None,
) -> Blueprint:
    """Return the table of the architecture that a config.json names, bound to that config.

    Args:
        config: What config.json holds.
        held: Names of the tensors beside it. Some that repeat others are published or not, and it decides; and how
            routed experts are spelled.
        experts: How they are spelled whatever is beside it, by part, as `spelling` says.
        table: A table of the caller's own, in place of the one that the registry has.

    Returns:
        The table.

    Raises:
        BadInputError: The config names no architecture, or a dimension is missing or contradicted.
        UnsupportedArchitectureError: There is no table.
        ArchitectureTableError: A table that is not the registry's does not fit its own functions.
    """
    bound = Blueprint(table_of(config, table), config, held, experts)
    return (
        bound
        if ARCHITECTURES.get(bound.architecture.name) is bound.architecture
        else own.require_bound(bound)
    )


def table_of(config: Config, table: Architecture | None = None) -> Architecture:
    """Return the table of the architecture that a config.json names.

    Args:
        config: What config.json holds.
        table: A table of the caller's own, which must be that of this architecture.

    Returns:
        That table, else the registry's, else the one that an installed package has.

    Raises:
        BadInputError: The config names no architecture, or another than the table is of.
        UnsupportedArchitectureError: There is no table for it.
        ArchitectureTableError: An installed package has one that cannot be used.
    """
    name = architecture_of(config)
    if name is None:
        raise _without_architecture(config.get("architectures"))
    if table is not None:
        if name not in (table.name, *table.aliases):
            raise BadInputError(
                f"--architecture gives a table of {table.name}, but config.json names {name}",
                "Give the table of this model, or name its architecture in an alias of the table.",
            )
        return table
    found = ARCHITECTURES.get(name) or own.installed(name)
    if found is None:
        supported = tuple(sorted({*ARCHITECTURES, *own.installed_names()}))
        raise UnsupportedArchitectureError(name, supported, reason_of(name))
    return found


def _without_architecture(said: Any) -> BadInputError:
    """Return the error for a config.json that names no architecture. `said` is what it says under "architectures"."""
    if isinstance(said, str):
        return BadInputError(
            f'config.json has "architectures": {json.dumps(said):.60}, which must be a list',
            f'Write "architectures": [{json.dumps(said):.60}].',
        )
    return BadInputError(
        'config.json has no "architectures"', 'Add it, for example "architectures": ["Qwen3MoeForCausalLM"].'
    )


def architecture_of(config: Config) -> str | None:
    """Return the first name under "architectures", or None if there is none."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
