"""Both JSON files of a quantized checkpoint, hf_quant_config.json and config.json["quantization_config"].

Pure functions from one structure; readers disagree on which file they trust, so both say the same.
Source: nvidia-modelopt 0.47, torch/export/quant_utils.py (`process_layer_quant_config`) and convert_hf_config.py;
config.json of deepseek-ai/DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shardmerge.common.quantization.arithmetic import module_of
from shardmerge.common.quantization.formats import BLOCK_FP8, FORMATS, Format
from shardmerge.common.rectangle import Shape

from ..corrections import Correction, corrected, of_part
from . import declaration
from .united import Quantization

Json = dict[str, Any]


def excluded(weights: Iterable[tuple[str, Shape]], layers: Mapping[str, str]) -> list[str]:
    """Every module with a matrix that stays as it is, by its final name: routers, embeddings, lm_head, MTP linears."""
    modules = {module_of(name) for name, shape in weights if len(shape) > 1}
    return sorted(module for module in modules if module is not None and module not in layers)


def hf_quant_config(found: Quantization, exclude: list[str]) -> Json | None:
    """hf_quant_config.json; None for 128x128 blocks, which are declared in config.json only, as DeepSeek does."""
    formats = _formats(found)
    if formats == [BLOCK_FP8]:
        return None
    told: Json = {"quant_algo": None, "kv_cache_quant_algo": _kv_algorithm(found)}
    if len(formats) == 1:
        told |= formats[0].layer_config
    elif formats:
        told["quant_algo"] = "MIXED_PRECISION"
        told["quantized_layers"] = {
            module: FORMATS[name].layer_config for module, name in sorted(found.layers.items())
        }
    return {"producer": dict(found.producer), "quantization": told | {"exclude_modules": exclude}}


def quantization_config(hf: Json | None, exclude: list[str]) -> Json:
    """config.json["quantization_config"] for what hf_quant_config.json says."""
    if hf is None:
        return _block_config(exclude)
    told = hf["quantization"]
    found: Json = {"config_groups": _groups(told), "ignore": told["exclude_modules"]}
    if told["quant_algo"] == "MIXED_PRECISION":
        found["quantized_layers"] = told["quantized_layers"]
    if told["quant_algo"]:
        found["quant_algo"] = told["quant_algo"]
    if told["kv_cache_quant_algo"] == "FP8":
        found["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    elif told["kv_cache_quant_algo"]:
        found["kv_cache_scheme"] = told["kv_cache_quant_algo"]
    return found | {"producer": hf["producer"], "quant_method": "modelopt"}


def both(found: Quantization | None, weights: Iterable[tuple[str, Shape]]) -> tuple[Json | None, Json | None]:
    """(hf_quant_config.json, quantization_config) of a checkpoint with these tensors under their plain names.

    None for none; both are if it is not quantized.
    """
    if found is None:
        return None, None
    exclude = excluded(weights, found.layers)
    hf = hf_quant_config(found, exclude)
    return hf, quantization_config(hf, exclude)


def statements(hf: Json | None, declared: Json | None) -> Json:
    """What `--set quantization.KEY` corrects: hf_quant_config.json's statements, or config.json's where that is all."""
    return dict(hf["quantization"]) if hf else dict(declared or {})


def corrected_both(
    hf: Json | None, declared: Json | None, corrections: Sequence[Correction]
) -> tuple[Json | None, Json | None]:
    """Both files with corrections; the second follows from the first. Raises BadInputError for an unknown key."""
    if not of_part("quantization", corrections):
        return hf, declared
    now = corrected("quantization", statements(hf, declared), corrections)
    if hf is None:
        return None, now
    declaration.refuse_unreadable(now)
    hf = {**hf, "quantization": now}
    return hf, quantization_config(hf, now["exclude_modules"])


def _groups(told: Json) -> Json:
    """One group for each format: all linears of a uniform checkpoint, the named modules of a mixture."""
    if told["quant_algo"] is None:
        return {}
    if told["quant_algo"] != "MIXED_PRECISION":
        return {"group_0": _group(_by_algorithm(told["quant_algo"])) | {"targets": ["Linear"]}}
    modules: dict[str, list[str]] = {}
    for module, layer in told["quantized_layers"].items():
        modules.setdefault(layer["quant_algo"], []).append(module)
    return {
        f"group_{number}": _group(_by_algorithm(algorithm)) | {"targets": sorted(members)}
        for number, (algorithm, members) in enumerate(modules.items())
    }


def _group(row: Format) -> Json:
    inputs = {} if row.input_activations is None else {"input_activations": dict(row.input_activations)}
    return inputs | {"weights": dict(row.weights)}


def _by_algorithm(algorithm: str) -> Format:
    return next(row for row in FORMATS.values() if row.quant_algo == algorithm)


def _block_config(exclude: list[str]) -> Json:
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(BLOCK_FP8.block),
        "modules_to_not_convert": exclude,
    }


def _formats(found: Quantization) -> list[Format]:
    return [FORMATS[name] for name in sorted(set(found.layers.values()))]


def _kv_algorithm(found: Quantization) -> str | None:
    return next(iter(found.kv_cache.values()), None)
