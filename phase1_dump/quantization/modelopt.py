"""Finds the format of weights with modelopt quantizers, and packs them by modelopt's own functions.

modelopt is imported only for a model with quantizers. The live modules are never changed: modelopt's functions get
a module of our own that holds the weight and its quantizers.
Source: modelopt/torch/export/quant_utils.py; unified_export_megatron.py (`_get_quantized_state`,
`_grouped_mlp_slicing`: one quantizer for each expert).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import nn

from shardmerge.common.errors import BadScaleError, UnsupportedParameterError
from shardmerge.common.quantization.arithmetic import in_blocks
from shardmerge.common.quantization.formats import FORMATS, KV_CACHES, by_modelopt_name
from shardmerge.common.quantization.rows import INPUT_SCALE, Companion, Format, ScaleSource

from .derived import Derived, Readable, Scales
from .element_types import TORCH

_WEIGHT = re.compile(r"weight(\d*)$")
_COMPRESSED = tuple(row for row in FORMATS.values() if row.compressed)
_COMPRESSED_NAMES = " and ".join(row.name for row in _COMPRESSED)
BEFORE_COMPRESSING = f"only {_COMPRESSED_NAMES} is written from there: dump the model before mtq.compress"
CACHES = ("k_bmm_quantizer", "v_bmm_quantizer")


@dataclass(frozen=True, slots=True, eq=False)
class Quantizers:
    """The quantizers of one weight. `modelopt` is the name that modelopt gives the format, None for none.

    `weight` is the live one, or answers like a matrix on a CPU when boxes of it are read.
    """

    weight: Any
    weight_quantizer: Any
    input_quantizer: Any
    modelopt: str | None

    def module(self, weight: torch.Tensor) -> nn.Module:
        """Return a module that holds just these, as modelopt's functions expect it."""
        module = nn.Module()
        module.weight = nn.Parameter(weight, requires_grad=False)
        module.weight_quantizer, module.input_quantizer = self.weight_quantizer, self.input_quantizer
        return module


def is_quantizer(module: nn.Module) -> bool:
    """Whether a module is a quantizer of modelopt, which is not imported."""
    return any(
        one.__name__ in ("TensorQuantizer", "SequentialQuantizer") and one.__module__.startswith("modelopt.")
        for one in type(module).__mro__
    )


def is_compressed(tensor: object) -> bool:
    """Whether modelopt, which is not imported, has packed a weight in place (`mtq.compress`)."""
    kind = type(tensor)
    return kind.__name__ == "QTensorWrapper" and kind.__module__.startswith("modelopt.")


def compressed_refusal(tensor: torch.Tensor) -> str | None:
    """Return why a compressed weight cannot be written, as far as the weight itself shows, or None."""
    if not is_compressed(tensor) or tensor.dtype in {TORCH[row.weight.dtype] for row in _COMPRESSED}:
        return None  # in which blocks, its quantizer knows
    kind = getattr(tensor, "metadata", {}).get("qtensor_class")
    return f"it is compressed by modelopt as {getattr(kind, '__name__', kind)}; {BEFORE_COMPRESSING}"


def quantizers_of(model: nn.Module, rank: int) -> Iterator[tuple[str, Quantizers]]:
    """Yield (name of the live weight, its quantizers) of every module that has some, enabled or not.

    Raises UnsupportedParameterError, naming the format, for quantizers that modelopt cannot name or we cannot write.
    """
    for prefix, module in model.named_modules():
        held = getattr(module, "weight_quantizer", None)
        if not isinstance(held, nn.Module):
            continue
        for name, weight in module.named_parameters(recurse=False):
            local = _WEIGHT.match(name)
            if local is None:
                continue
            own: Any = held
            if isinstance(
                held, nn.ModuleList
            ):  # a GroupedQuantizer; a shorter one serves the rest with its last
                own = held[min(int(local[1] or 0), len(held) - 1)]
            full = f"{prefix}.{name}"
            yield full, checked(full, weight, own, getattr(module, "input_quantizer", None), rank)


def row_of(quantizers: Quantizers) -> Format | None:
    """Return the format that a weight is written in, or None if its quantizer is off."""
    return by_modelopt_name(quantizers.modelopt) if quantizers.modelopt else None


def packed_parts(
    quantizers: Quantizers, row: Format, known: Mapping[str, float], scales: Scales
) -> Mapping[str, Readable]:
    """Return the tensors that the whole local weight becomes, which are computed when they are read.

    Args:
        quantizers: a weight [N, K] with a known range.
        row: the format that it is written in.
        known: its scalars by suffix, as `scalars` gives them.
        scales: shares block scales between the weight and the tensor that holds them.

    Returns:
        Companion suffix -> tensor [N / divisors[0], K / divisors[1]] in the companion's dtype; scalars are left out.
    """
    weight = quantizers.weight
    if is_compressed(weight):
        return _compressed_parts(quantizers, row)
    calibrated = _calibrated(quantizers, row, known)
    shape = (weight.shape[0], weight.shape[1])
    return {
        companion.suffix: Derived(
            shape,
            companion.divisors,
            row.block[0],
            TORCH[companion.dtype],
            weight.device,
            partial(_compute, quantizers, row, companion, scales, calibrated),
            by_any_thread=True,
        )
        for companion in row.companions
        if companion.divisors is not None
    }


def with_range(name: str, quantizers: Quantizers, row: Format, *, cut: bool, rank: int) -> Quantizers:
    """Make the range of a weight known: an expert's dynamic quantizer carries none, and then it is max |W|.

    Args:
        name: of the live weight, for messages.
        quantizers: the weight and its quantizers.
        row: the format that it is written in.
        cut: whether other ranks hold other parts of the weight.
        rank: of this process, for messages.

    Returns:
        The same quantizers, or a copy with the range.

    Raises:
        BadScaleError: the range is NaN, infinite, negative or zero.
        UnsupportedParameterError: there is no range, and this rank cannot know it.

    Source: unified_export_megatron.py, `_grouped_mlp_slicing`.
    """
    if not row.needs_weight_range or is_compressed(quantizers.weight):
        return quantizers  # its scales come from each block of the weight, or are there already
    if getattr(quantizers.weight_quantizer, "amax", None) is None:
        if cut or not quantizers.weight_quantizer.is_nvfp4_dynamic:
            reason = "its weight quantizer has no amax: calibrate the model"
            raise UnsupportedParameterError(name, reason, rank)
        own = copy.deepcopy(quantizers.weight_quantizer)
        own.amax = quantizers.weight.detach().abs().max().float()
        quantizers = replace(quantizers, weight_quantizer=own)
    if row.positive_ranges:
        _require_range(f"{name}: weight_quantizer", quantizers.weight_quantizer, rank)
    return quantizers


def scalars(name: str, quantizers: Quantizers, row: Format, rank: int) -> dict[str, float]:
    """Return the scalar companions of a weight.

    Args:
        name: of the live weight, for messages.
        quantizers: the weight, its range known, and its quantizers.
        row: the format that it is written in.
        rank: of this process, for messages.

    Returns:
        Value by suffix. `input_scale` is absent if calibration never saw an input.

    Raises:
        BadScaleError: a range is NaN, infinite or negative.
        UnsupportedParameterError: modelopt gives several values where one is expected.
    """
    from modelopt.torch.export import quant_utils

    if not row.scalars:
        return {}
    module, values = quantizers.module(quantizers.weight[:1]), dict[str, Any]()
    if "weight_scale_2" in row.scalars:
        values["weight_scale_2"] = quant_utils.get_weight_scaling_factor_2(module)
    if "weight_scale" in row.scalars:
        values["weight_scale"] = quant_utils.get_weight_scaling_factor(module)
    if row.is_calibrated and _has_input_range(name, quantizers, rank):
        values[INPUT_SCALE] = quant_utils.get_activation_scaling_factor(module)
    return {suffix: _number(f"{name}: {suffix}", value, rank) for suffix, value in values.items()}


def kv_cache_of(model: nn.Module, rank: int) -> Iterator[tuple[str, str, tuple[float, float]]]:
    """Yield (name of the attention core, algorithm, (k_scale, v_scale)) of every core with KV-cache quantizers on.

    Raises UnsupportedParameterError for another algorithm than FP8, BadScaleError for ranges nobody calibrated.
    """
    for name, module in model.named_modules():
        if len(_caches_off(module)) < len(CACHES):
            yield name, *kv_cache_scales(name, module, rank)


def kv_cache_scales(name: str, core: nn.Module, rank: int) -> tuple[str, tuple[float, float]]:
    """Name the format of an attention core with KV-cache quantizers on, and compute its scales.

    Args:
        name: of the core, for messages.
        core: the core.
        rank: for messages.

    Returns:
        (algorithm, (k_scale, v_scale)). Raises as `kv_cache_of`.
    """
    from modelopt.torch.export import quant_utils

    if off := _caches_off(core):
        reason = (
            f"its KV cache is quantized, but {off[0]} is off: readers quantize keys and values, or neither"
        )
        raise UnsupportedParameterError(name, reason, rank)
    algorithm = quant_utils.get_kv_cache_dtype(core)
    if algorithm not in KV_CACHES:
        known = ", ".join(KV_CACHES)
        raise UnsupportedParameterError(
            name, f"its KV cache is quantized as {algorithm}; known: {known}", rank
        )
    for cache in CACHES:
        _require_range(f"{name}.{cache}", getattr(core, cache), rank)
    k_scale, v_scale = quant_utils.get_kv_cache_scaling_factor(core)
    return algorithm, (_number(name, k_scale, rank), _number(name, v_scale, rank))


def _caches_off(core: nn.Module) -> list[str]:
    """Return the KV-cache quantizers that a module does not have, or that are off."""
    return [cache for cache in CACHES if not getattr(getattr(core, cache, None), "is_enabled", False)]


def producer() -> dict[str, str]:
    """Return whom both JSON files name as producer: modelopt, whose formats they are."""
    import modelopt

    return {"name": "modelopt", "version": modelopt.__version__}


def checked(name: str, weight: Any, own: Any, inputs: Any, rank: int) -> Quantizers:
    """Require that the quantizers of a weight are of a format that can be written, or off.

    Args:
        name: of the weight, for messages.
        weight: the weight.
        own: its quantizer, of modelopt.
        inputs: that of its inputs, None if there is none.
        rank: for messages.

    Returns:
        The quantizers, with the name of their format.

    Raises:
        UnsupportedParameterError: modelopt cannot name the format, or shardmerge does not write it.
    """
    from modelopt.torch.export import quant_utils

    bare = Quantizers(weight, own, inputs, None)
    try:
        modelopt_name = quant_utils.get_quantization_format(bare.module(torch.empty(0)))
    except (NotImplementedError, AssertionError) as error:
        raise UnsupportedParameterError(
            name, f"modelopt cannot export its quantizer: {error}", rank
        ) from error
    quantizers = Quantizers(weight, own, inputs, modelopt_name)
    if reason := _refusal(quantizers):
        raise UnsupportedParameterError(name, reason, rank)
    return quantizers


def _refusal(quantizers: Quantizers) -> str | None:
    row = row_of(quantizers)
    if row is None:
        unknown = f"it is quantized as {quantizers.modelopt} of modelopt, which shardmerge does not write"
        return unknown if quantizers.modelopt else None
    block, compressed = _block_of(quantizers.weight_quantizer), is_compressed(quantizers.weight)
    off = row.is_calibrated and not getattr(quantizers.input_quantizer, "is_enabled", False)
    refused = (
        (
            getattr(quantizers.weight_quantizer, "is_nvfp4_static", False),
            "with static block scales, not supported",
        ),
        (off, "with its input quantizer off: readers want input_scale"),
        (
            hasattr(quantizers.input_quantizer, "_pre_quant_scale"),
            "with a pre_quant_scale (SmoothQuant, AWQ)",
        ),
        (block != row.block, f"in blocks of {_by(block)}: readers take {_by(row.block)} only"),
        (compressed and row.compressed is None, f"and compressed; {BEFORE_COMPRESSING}"),
        (quantizers.modelopt == row.compressed and not compressed, "but not compressed: call mtq.compress"),
    )
    return next(
        (
            f"it is quantized as {quantizers.modelopt} of modelopt {why}"
            for applies, why in refused
            if applies
        ),
        None,
    )


def _by(block: tuple[int, int]) -> str:
    return f"{block[0]}x{block[1]}"


def _block_of(quantizer: Any) -> tuple[int, int]:
    sizes = quantizer.block_sizes or {}
    return sizes.get(-2, 1), sizes.get(-1, 1)


def _compute(
    quantizers: Quantizers,
    row: Format,
    companion: Companion,
    scales: Scales,
    calibrated: torch.Tensor | None,
    rows: slice,
    columns: slice,
) -> torch.Tensor:
    """Compute one companion of a few rows of the weight. [n, k] -> [n / divisors[0], k / divisors[1]]"""
    from modelopt.torch.export import quant_utils

    weight = quantizers.weight.detach()[rows, columns].contiguous()
    with torch.no_grad():
        if row.scales is not ScaleSource.NUMBERS:
            scale = _of_blocks(calibrated, row, rows, columns)
        elif weight.shape[1] == quantizers.weight.shape[1]:
            scale = scales.get(quantizers, rows, lambda: _scale(quantizers, weight))
        else:
            scale = _scale(quantizers, weight)
        if companion.is_scale:
            return scale.to(TORCH[companion.dtype])
        if row.scales is ScaleSource.RANGE and weight.is_cuda:
            return divided(weight, scale)
        if row.scales is ScaleSource.BLOCK_RANGES and 1 in scale.shape:
            return _single_block_row(weight, scale, row.block)
        second = calibrated if "weight_scale_2" in row.scalars else None
        packed: torch.Tensor = quant_utils.to_quantized_weight(
            weight, scale, quantizers.modelopt, second, row.block[1]
        )
        return packed


def _calibrated(quantizers: Quantizers, row: Format, known: Mapping[str, float]) -> torch.Tensor | None:
    """Return the scale known from calibration: a scalar, or block scales [N / block, K / block].

    The scalar is that of the whole weight, or the second-level one. None if all scales come from the weight.
    """
    from modelopt.torch.export import quant_utils

    device = quantizers.weight.device
    if row.scales is not ScaleSource.BLOCK_RANGES:
        value = known.get("weight_scale_2", known.get("weight_scale"))
        return None if value is None else torch.tensor(value, dtype=torch.float32, device=device)
    scale: torch.Tensor = quant_utils.get_weight_scaling_factor(quantizers.module(quantizers.weight))
    return scale.to(device).reshape(in_blocks(quantizers.weight.shape, row.block))


def _scale(quantizers: Quantizers, weight: torch.Tensor) -> torch.Tensor:
    """Return the scales that modelopt computes from the numbers: [n, k] -> [n, k / group]."""
    from modelopt.torch.export import quant_utils

    scale: torch.Tensor = quant_utils.get_weight_scaling_factor(quantizers.module(weight))
    return scale


def _compressed_parts(quantizers: Quantizers, row: Format) -> Mapping[str, Readable]:
    """Return what modelopt packed: plain bytes, and the scales that its quantizer stores in the weight's dtype."""
    weight, scale = row.companions
    scales = quantizers.weight_quantizer._scale.detach().float()
    blocks = in_blocks(quantizers.weight.shape, row.block)
    return {weight.suffix: quantizers.weight.data, scale.suffix: scales.reshape(blocks)}


def _of_blocks(calibrated: torch.Tensor | None, row: Format, rows: slice, columns: slice) -> torch.Tensor:
    """Return the scalar, or the part of the block scales that belongs to these rows and columns."""
    assert calibrated is not None  # only formats whose scales come from calibration come here
    if row.scales is not ScaleSource.BLOCK_RANGES:
        return calibrated
    by_row, by_column = (
        slice(s.start // by, -(-s.stop // by)) for s, by in zip((rows, columns), row.block, strict=True)
    )
    return calibrated[by_row, by_column]


def divided(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Pack [n, k] in E4M3 by a float32 scalar, as modelopt does on a CPU, where its export of Megatron models divides.

    Its own function would not do so on a GPU: torch rounds a scalar that lies there to the dtype of the weight before
    it divides (PyTorch, BinaryDivTrueKernel.cu), and one number in a hundred comes out otherwise.
    """
    return (weight.float() / scale).to(weight.dtype).to(torch.float8_e4m3fn)


def _single_block_row(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Pack where scales have one row or column, which to_quantized_weight would squeeze away.

    The class that it calls is the same.
    """
    from modelopt.torch.quantization.qtensor import FP8QTensor

    packed: torch.Tensor = FP8QTensor.quantize(weight, scale, block_sizes={-1: block[1], -2: block[0]})[
        0
    ]._quantized_data
    return packed


def _has_input_range(name: str, quantizers: Quantizers, rank: int) -> bool:
    """Whether calibration saw an input. For a range of zero modelopt itself would silently take maxbound."""
    amax = quantizers.input_quantizer.amax
    if amax is None or not bool((amax != 0).any()):
        return False
    _require_range(f"{name}: input_quantizer", quantizers.input_quantizer, rank)
    return True


def _require_range(what: str, quantizer: Any, rank: int) -> None:
    amax = getattr(quantizer, "amax", None)
    values = [float("nan")] if amax is None else amax.detach().float().flatten().tolist()
    for value in values:
        if not (isfinite(value) and value > 0):
            raise BadScaleError(f"{what}.amax", None if amax is None else str(value), (rank,))


def _number(what: str, value: torch.Tensor, rank: int) -> float:
    if value.numel() != 1:
        raise UnsupportedParameterError(what, f"it has {value.numel()} values where one is expected", rank)
    return float(value.detach().float().item())
