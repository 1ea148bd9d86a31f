"""Both JSON files of a quantized checkpoint, hf_quant_config.json and config.json["quantization_config"].

Decides what they say, from one structure: readers disagree on which file they trust, so both say the same. What a
format is called there stands in its row. Must not read or write any file.
Source: nvidia-modelopt 0.47, torch/export/quant_utils.py (`process_layer_quant_config`) and convert_hf_config.py;
config.json of deepseek-ai/DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shardmerge.common.quantization.arithmetic import module_of
from shardmerge.common.quantization.formats import BY_ALGORITHM, FORMATS, KV_CACHES, MIXED_PRECISION
from shardmerge.common.quantization.rows import ConfigForm, Format, ModeloptForm
from shardmerge.common.rectangle import Shape

from ..corrections.changes import Change, corrected
from . import declaration
from .united import Quantization

Json = dict[str, Any]


def excluded(weights: Iterable[tuple[str, Shape]], layers: Mapping[str, str]) -> list[str]:
    """Return all modules with a matrix that stays as it is: routers, embeddings, lm_head, MTP linears."""
    modules = {module_of(name) for name, shape in weights if len(shape) > 1}
    return sorted(module for module in modules if module is not None and module not in layers)


def both(
    quantization: Quantization | None, weights: Iterable[tuple[str, Shape]]
) -> tuple[Json | None, Json | None]:
    """Declare the quantization of a checkpoint that holds these tensors under their plain names.

    Returns (hf_quant_config.json, quantization_config). The first is None for a format that is declared in
    config.json only, and both are None for a checkpoint that is not quantized.
    """
    if quantization is None:
        return None, None
    exclude = excluded(weights, quantization.layers)
    forms = [FORMATS[name].form for name in sorted(set(quantization.layers.values()))]
    if len(forms) == 1 and isinstance(alone := forms[0], ConfigForm):
        return None, {**alone.statements, alone.excluded: exclude}
    hf = hf_quant_config(quantization, exclude)
    return hf, quantization_config(hf)


def hf_quant_config(quantization: Quantization, exclude: list[str]) -> Json:
    """Return hf_quant_config.json for formats of modelopt's form."""
    modules = quantization.layers
    layers = {name: _of_modelopt(FORMATS[name]).layer for name in sorted(set(modules.values()))}
    said: Json = {"quant_algo": None, "kv_cache_quant_algo": next(iter(quantization.kv_cache.values()), None)}
    if len(layers) == 1:
        said |= next(iter(layers.values()))
    elif layers:
        said["quant_algo"] = MIXED_PRECISION
        said["quantized_layers"] = {module: layers[name] for module, name in sorted(modules.items())}
    return {"producer": dict(quantization.producer), "quantization": said | {"exclude_modules": exclude}}


def quantization_config(hf: Json) -> Json:
    """Return config.json["quantization_config"] for what hf_quant_config.json says."""
    said = hf["quantization"]
    declared: Json = {"config_groups": _groups(said), "ignore": said["exclude_modules"]}
    if said["quant_algo"] == MIXED_PRECISION:
        declared["quantized_layers"] = said["quantized_layers"]
    if said["quant_algo"]:
        declared["quant_algo"] = said["quant_algo"]
    if cache := said["kv_cache_quant_algo"]:
        known = KV_CACHES.get(cache) if isinstance(cache, str) else None
        declared["kv_cache_scheme"] = cache if known is None else dict(known)
    return declared | {"producer": hf["producer"], "quant_method": "modelopt"}


def declared_again(hf: Json) -> Json:
    """Return what a config.json that was lost declared beside this hf_quant_config.json, as a part of it.

    Raises BadInputError for statements that cannot be read.
    """
    declaration.refuse_unreadable(hf["quantization"])
    return {"quantization_config": quantization_config(hf)}


def statements(hf: Json | None, declared: Json | None) -> Json:
    """Return what `--set quantization.KEY` corrects: what hf_quant_config.json says, or else config.json."""
    return dict(hf["quantization"]) if hf else dict(declared or {})


def corrected_both(
    hf: Json | None, declared: Json | None, changes: Sequence[Change]
) -> tuple[Json | None, Json | None]:
    """Correct both files. The second follows from the first.

    Args:
        hf: hf_quant_config.json, None if there is none.
        declared: config.json["quantization_config"], None if there is none.
        changes: those of other parts are ignored.

    Returns:
        (hf_quant_config.json, quantization_config) as they should be.

    Raises:
        BadInputError: the corrected statements cannot be read.
    """
    if not any(change.part == "quantization" for change in changes):
        return hf, declared
    now = corrected("quantization", statements(hf, declared), changes)
    if hf is None:
        return None, now
    declaration.refuse_unreadable(now)
    hf = {**hf, "quantization": now}
    return hf, quantization_config(hf)


def _groups(said: Json) -> Json:
    """Return a group for each format: all linears of a uniform checkpoint, the named modules of a mixture."""
    if not said["quant_algo"]:
        return {}
    if said["quant_algo"] != MIXED_PRECISION:
        return {"group_0": _of_modelopt(BY_ALGORITHM[said["quant_algo"]]).group | {"targets": ["Linear"]}}
    modules: dict[str, list[str]] = {}
    for module, layer in said["quantized_layers"].items():
        modules.setdefault(layer["quant_algo"], []).append(module)
    return {
        f"group_{number}": _of_modelopt(BY_ALGORITHM[algorithm]).group | {"targets": sorted(members)}
        for number, (algorithm, members) in enumerate(modules.items())
    }


def _of_modelopt(row: Format) -> ModeloptForm:
    """Return the form of a row that stands in hf_quant_config.json. Rows of other forms were refused before."""
    assert isinstance(row.form, ModeloptForm)
    return row.form
