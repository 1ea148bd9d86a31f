"""Model-Optimizer's importer for models with steps of multi-token prediction (MTP), also where it has no walk for them.

Decides what it is told to put where. It walks a single stored step of a hybrid by itself, if that has no Mamba mixer.
Of other steps of hybrids, and of any step of DeepSeek-V3, it knows the layers but not where they are: its rules are
called here for each layer, with the published number of the layer. Must not import shardmerge.
Source: modelopt 0.47, torch/export/plugins/megatron_importer.py (`_import_state_dict`: its branch "non-repeated MTP"
expects modules that megatron-core has not had since 0.12, and rules that no architecture has).
"""

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from tests.worlds.families import Family
from tests.worlds.widths import Steps


def import_with_steps(model: GPTModel, family: Family, source: Path, dtype: torch.dtype) -> None:
    """Fill an unsharded model from the Hugging Face checkpoint `source`, steps included if the family has any."""
    from modelopt.torch.export import import_mcore_gpt_from_hf

    options = {"dtype": dtype, "moe_router_dtype": "fp32"}
    if family.mtp is None or _is_walked(family, family.mtp):
        import_mcore_gpt_from_hf(model, str(source), **options)
        return
    steps = model._modules.pop("mtp")  # the importer looks for it
    import_mcore_gpt_from_hf(model, str(source), **options)
    model.mtp = steps
    importer = _importer(model, source, dtype)
    for number, step in enumerate(steps.layers):
        if family.mamba is None:
            _import_layer_after_last(importer, step, family.layers + number)
        else:
            _import_stack(importer, step, family.mtp, number)


def _is_walked(family: Family, mtp: Steps) -> bool:
    return family.mamba is not None and mtp.count == 1 and "M" not in mtp.pattern


def _importer(model: GPTModel, source: Path, dtype: torch.dtype) -> Any:
    from modelopt.torch.export.plugins.megatron_importer import GPTModelImporter

    return GPTModelImporter(model, str(source), dtype=dtype, moe_router_dtype="fp32")


def _import_layer_after_last(importer: Any, step: Any, number: int) -> None:
    """DeepSeek-V3's: an ordinary layer, and the rest of a step beside it."""
    inner = step.transformer_layer if hasattr(step, "transformer_layer") else step.mtp_model_layer
    importer._import_transformer_layer(inner, number, mock.Mock())
    prefix = f"model.layers.{number}."
    for name in ("enorm", "hnorm", "eh_proj"):
        importer._name_remapping(getattr(step, name), f"{prefix}{name}.")
    importer._name_remapping(step.final_layernorm, f"{prefix}shared_head.norm.")


def _import_stack(importer: Any, step: Any, mtp: Steps, number: int) -> None:
    """Nemotron-H's: what Model-Optimizer does with its only step, for one of several."""
    first = number * len(mtp.pattern)
    for name in ("enorm", "hnorm", "eh_proj"):
        importer.rules[f"mtp.{name}"](getattr(step, name), first)
    for place, (letter, inner) in enumerate(zip(mtp.pattern, step.mtp_model_layer.layers, strict=True)):
        if letter == "M":
            _import_mamba(importer, inner, first + place)
        else:
            importer._import_transformer_layer(inner, first + place, mock.Mock(), is_mtp=True)
    importer.rules["mtp.final_layernorm"](step.final_layernorm, first + len(mtp.pattern) - 1)


def _import_mamba(importer: Any, layer: Any, number: int) -> None:
    """A Mamba mixer by the rules for the decoder's, told what those of other layers are told: that it is of a step."""
    of_step = {name: partial(rule, is_mtp=True) for name, rule in importer.rules.items()}
    with mock.patch.object(importer, "rules", of_step):
        importer._import_mamba_layer(layer, number, mock.Mock())


def step_logits(model: GPTModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Run megatron-core's whole forward; float32 logits [batch, sequence, vocabulary] of the decoder and of each step.

    It keeps those of steps for its loss, so the states are taken where they leave the block of steps.
    """
    states: list[torch.Tensor] = []
    model.mtp.register_forward_hook(lambda _module, _given, found: states.append(found))
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        model(tokens, positions, None, labels=tokens)
        parts = states[0].chunk(1 + model.config.mtp_num_layers)  # one after another along the sequence
        return [model.output_layer(part)[0].transpose(0, 1) for part in parts]
