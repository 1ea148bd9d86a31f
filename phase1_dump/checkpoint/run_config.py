"""Reads what training recorded of its configuration beside a checkpoint, as far as that is plain YAML.

Megatron-Bridge writes `run_config.yaml`. Older versions of Model-Optimizer write `modelopt_run_config.yaml` beside
every checkpoint of Megatron-LM, with the fields of the model's config; those that are neither numbers nor texts as
Python prints them. Nothing is constructed but numbers, texts, lists and mappings. Megatron-LM's arguments stand in
`common.pt`, a pickle, and are not read; nor are NeMo's, which it records before what follows from others is filled in.
Source: megatron-bridge, training/utils/checkpoint_utils.py; nvidia-modelopt 0.41,
torch/opt/plugins/mcore_dist_checkpointing.py (`save_sharded_modelopt_state`); NeMo, lightning/io/mixin.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shardmerge.common import regular_files
from shardmerge.common.errors import CorruptFileError

from ..settings.recorded import own_options, recorded_settings

RUN_CONFIG, MODELOPT_CONFIG = "run_config.yaml", "modelopt_run_config.yaml"
NEMO_CONFIG = Path("context", "model.yaml")  # beside the folder of weights
MODELOPT_VERSION = "nvidia_modelopt_version"
FUNCTION = re.compile(r"<(?:built-in )?function (\w+)(?: at 0x[0-9a-f]+)?>")
MODEL = "model"
LAYERS, TARGET = "transformer_layer_spec", "_target_"
OWN = "megatron.core."
DELTA_NETS = {
    TARGET: "megatron.bridge.models.gpt_provider.GPTModelProvider",
    "experimental_attention_variant": "gated_delta_net",
    "attention_output_gate": True,
    "layernorm_zero_centered_gamma": True,
}
MAX_BYTES = 1 << 20
UNREAD = "they stand in a pickle, if at all (common.pt)"
UNREAD_OF_NEMO = (
    f"they stand in {NEMO_CONFIG}, which NeMo writes before what follows from others is filled in"
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What training recorded of the model.

    Attributes:
        file: Name of the file that it stands in, "" if there is none.
        settings: By the names of the vocabulary; None if nothing can be read.
        own_options: Recorded fields that are not megatron-core's.
        why_not: Why settings are None, as a clause.
        own_delta_nets: Layers with Gated DeltaNets are those that megatron-core itself specifies. Then the order of
            queries and gates is its own, and every norm is stored as `layernorm_zero_centered_gamma` says.
    """

    file: str = ""
    settings: dict[str, Any] | None = None
    own_options: tuple[str, ...] = ()
    why_not: str = UNREAD
    own_delta_nets: bool = False


def file_there(folder: Path) -> str:
    """Return the name of the file that is read, "" if there is none. Raises CorruptFileError for what is not a file."""
    names = (name for name in (RUN_CONFIG, MODELOPT_CONFIG) if regular_files.exists(folder / name, folder))
    return next(names, "")


def recorded_in(folder: Path, *, drop_mtp: bool) -> Recorded:
    """Return what training recorded beside a checkpoint.

    Args:
        folder: Of the iteration.
        drop_mtp: Multi-token prediction is left out.

    Returns:
        What was recorded, or why nothing of it can be read: what is not plain YAML is not constructed.

    Raises:
        CorruptFileError: it has fields with values that no config has, or it is too large.
        OSError: it cannot be read.
    """
    name = file_there(folder)
    if not name:
        return Recorded(why_not=UNREAD_OF_NEMO if (folder.parent / NEMO_CONFIG).is_file() else UNREAD)
    path = folder / name
    try:
        said = yaml.safe_load(regular_files.read(path, folder, MAX_BYTES))
    except (yaml.YAMLError, RecursionError, UnicodeError) as error:
        return Recorded(name, why_not=f"{name} is not plain YAML ({' '.join(str(error).split())[:120]})")
    except ValueError as error:  # a date, or a number, that is not one
        raise CorruptFileError(str(path), str(error)) from None
    model = _model(said, name)
    if model is None:
        return Recorded(
            name, why_not=f"{name} has no {'section ' + MODEL if name == RUN_CONFIG else 'fields'}"
        )
    try:
        settings = recorded_settings(model, drop_mtp=drop_mtp)
        return Recorded(name, settings, own_options(model), own_delta_nets=_has_own_delta_nets(model))
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        where = f"its section {MODEL}" if name == RUN_CONFIG else "it"
        raise CorruptFileError(str(path), f"{where} has values that no config has: {error}") from None


def _model(said: Any, name: str) -> dict[str, Any] | None:
    """Return the fields of the model's config, None if there are none."""
    if not isinstance(said, dict):
        return None
    if name == RUN_CONFIG:
        model = said.get(MODEL)
        return model if isinstance(model, dict) else None
    fields = {field: value for field, value in said.items() if field != MODELOPT_VERSION}
    return {
        field: _printed(value) if type(value) is str else value for field, value in fields.items()
    } or None


def _printed(text: str) -> Any:
    """Return what Python printed so, as far as it is plain: a number, a list, None, or a function by its name."""
    if match := FUNCTION.fullmatch(text):
        return match[1]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _has_own_delta_nets(model: Mapping[str, Any]) -> bool:
    """Whether the layers of a recorded model are those with Gated DeltaNets that megatron-core itself specifies.

    Source: megatron-bridge, models/qwen/qwen3_next_bridge.py and qwen35_bridge.py, whose models are GPTModelProviders.
    Other providers put an attention of their own into the same layers (qwen_vl/qwen35_vl_provider.py).
    """
    layers = model.get(LAYERS)
    target = layers.get(TARGET) if isinstance(layers, Mapping) else None
    is_own = type(target) is str and target.startswith(OWN)
    return is_own and all(model.get(name) == value for name, value in DELTA_NETS.items())
