"""Quantized Hugging Face directories that a test may spoil: their JSON, and their tensors as torch sees them.

Tensors are rewritten by the safetensors library, and what shardmerge recorded is removed: only the directory itself
can tell what is wrong with it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def bare_copy(source: Path, to: Path, change: Callable[[Tensors], object] = lambda tensors: None) -> Path:
    """A copy with one file of weights, changed, and without an index or records."""
    to.mkdir()
    tensors: Tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors |= load_file(path)
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "hf_quant_config.json"):
        if (source / name).is_file():
            shutil.copy(source / name, to / name)
    return to


def change_hf(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the statements of hf_quant_config.json."""
    _change(folder / "hf_quant_config.json", lambda found: change(found["quantization"]))


def change_declared(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json's quantization_config."""
    _change(folder / "config.json", lambda found: change(found["quantization_config"]))


def exclude(folder: Path, module: str) -> None:
    """Exclude one more module, in both files."""
    change_hf(folder, lambda told: told["exclude_modules"].append(module))
    change_declared(folder, lambda told: told["ignore"].append(module))


def _change(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
