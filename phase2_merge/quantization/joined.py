"""Is quantized alike what readers read in one way: a block of experts, joined matrices, the KV caches of a model?

A block of routed experts has one format, and so have the two down projections of latent attention, which share the
second-level scale as well. KV caches are declared once for all layers. Megatron quantizes each by itself. Numbers are
compared, never computed.
Source: vllm, model_executor/layers/quantization/modelopt.py (`KNvfp4Static.process` takes the larger scale of both) and
utils/quant_utils.py (`is_layer_skipped`); model_executor/models/deepseek_v2.py (`fused_qkv_a_proj`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from shardmerge.common.errors import JoinedMismatchError

EXPERTS = ".experts."
DOWN_PROJECTIONS = (".q_a_proj", ".kv_a_proj_with_mqa")
SECOND_SCALE = ".weight_scale_2"
CACHE = "the KV cache of {}"


def differences(layers: Mapping[str, str], scalars: Mapping[str, float]) -> Iterator[JoinedMismatchError]:
    """Yield a problem for each block of experts and each pair of projections that readers could not read as one.

    Args:
        layers: Module -> its format, or what is said of one without.
        scalars: Scale -> value.

    Returns:
        An iterator over the first two of each that differ.
    """
    yield from _experts(layers)
    one, other = DOWN_PROJECTIONS
    for module in layers:
        if module.endswith(one):
            joined = module.removesuffix(one) + other
            yield from _pair(layers, module, joined)
            yield from _pair(scalars, module + SECOND_SCALE, joined + SECOND_SCALE)


def differing_caches(caches: Mapping[str, str], attentions: Iterable[str]) -> Iterator[JoinedMismatchError]:
    """Yield a problem if some attentions of the decoder have a quantized KV cache and others do not.

    Args:
        caches: Attention -> algorithm of its cache.
        attentions: All of the decoder.

    Returns:
        An iterator over the first of each kind, or over nothing.
    """
    plain = next((one for one in attentions if one not in caches), None)
    if caches and plain is not None:
        first, algorithm = next(iter(caches.items()))
        yield JoinedMismatchError(CACHE.format(first), algorithm, CACHE.format(plain), "not quantized")


def _experts(layers: Mapping[str, str]) -> Iterator[JoinedMismatchError]:
    first: dict[str, str] = {}
    problems: dict[str, JoinedMismatchError] = {}
    for module, value in layers.items():
        block, of_experts, _ = module.partition(EXPERTS)
        if not of_experts:
            continue
        other = first.setdefault(block, module)
        if layers[other] != value:
            problems.setdefault(block, JoinedMismatchError(other, layers[other], module, value))
    yield from problems.values()


def _pair(values: Mapping[str, str | float], one: str, other: str) -> Iterator[JoinedMismatchError]:
    if one in values and other in values and values[one] != values[other]:
        yield JoinedMismatchError(one, str(values[one]), other, str(values[other]))
