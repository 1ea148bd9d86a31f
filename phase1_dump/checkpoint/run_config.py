"""Reads `run_config.yaml`, in which training recorded its configuration beside a checkpoint, if it is plain YAML.

Nothing is constructed but numbers, texts, lists and mappings. Megatron-LM's arguments stand in `common.pt`, a pickle,
and are not read. Source: megatron-bridge, training/utils/checkpoint_utils.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shardmerge.common import regular_files
from shardmerge.common.errors import CorruptFileError

from ..settings.recorded import own_options, recorded_settings

RUN_CONFIG = "run_config.yaml"
MODEL = "model"
MAX_BYTES = 1 << 20
UNREAD = "they stand in a pickle, if at all (common.pt)"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What training recorded of the model.

    Attributes:
        settings: By the names of the vocabulary; None if nothing can be read.
        own_options: Recorded fields that are not megatron-core's.
        why_not: Why settings are None, as a clause.
    """

    settings: dict[str, Any] | None = None
    own_options: tuple[str, ...] = ()
    why_not: str = UNREAD


def is_there(folder: Path) -> bool:
    """Whether a checkpoint has the file. Raises CorruptFileError if something else has its name."""
    return regular_files.exists(folder / RUN_CONFIG, folder)


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
    if not is_there(folder):
        return Recorded()
    path = folder / RUN_CONFIG
    try:
        said = yaml.safe_load(regular_files.read(path, folder, MAX_BYTES))
    except (yaml.YAMLError, RecursionError, UnicodeError) as error:
        return Recorded(why_not=f"{RUN_CONFIG} is not plain YAML ({' '.join(str(error).split())[:120]})")
    except ValueError as error:  # a date, or a number, that is not one
        raise CorruptFileError(str(path), str(error)) from None
    model = said.get(MODEL) if isinstance(said, dict) else None
    if not isinstance(model, dict):
        return Recorded(why_not=f"{RUN_CONFIG} has no section {MODEL}")
    try:
        return Recorded(recorded_settings(model, drop_mtp=drop_mtp), own_options(model))
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise CorruptFileError(
            str(path), f"its section {MODEL} has values that no config has: {error}"
        ) from None
