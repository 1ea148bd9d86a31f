"""The table of quantization formats: what a quantized weight [N, K] becomes on disk, and how it is declared.

To add a format, add a row to FORMATS. Both phases read this table, and no other module names a format. Must not know
how bytes are computed: that is decided in phase1_dump/quantization.
Source: nvidia-modelopt 0.47, torch/export/{model_config,quant_utils,convert_hf_config}.py; DeepSeek-V3's config.json.
"""

from __future__ import annotations

from typing import Any

from .rows import INPUT_SCALE, Companion, ConfigForm, Encoding, Format, ModeloptForm, ScaleSource

MIXED_PRECISION = "MIXED_PRECISION"  # the quant_algo of a checkpoint with several formats
KV_CACHE_TENSORS = ("k_proj.k_scale", "v_proj.v_scale")

_EIGHT_BITS: dict[str, Any] = {"dynamic": False, "num_bits": 8, "type": "float"}
_FOUR_BITS: dict[str, Any] = {"dynamic": False, "num_bits": 4, "type": "float"}

# kv_cache_quant_algo of hf_quant_config.json -> kv_cache_scheme of config.json
KV_CACHES = {"FP8": _EIGHT_BITS}


def _scalar(suffix: str) -> Companion:
    return Companion(suffix, "F32", None)


_FP8_WEIGHT = Companion("weight", "F8_E4M3", (1, 1), Encoding.E4M3)
_NVFP4_WEIGHT = (
    Companion("weight", "U8", (1, 2), Encoding.E2M1_PAIR),
    Companion("weight_scale", "F8_E4M3", (1, 16), Encoding.E4M3),
    _scalar("weight_scale_2"),
)

# From a row follow the rectangles that a dump writes, the cuts that it refuses, the tensors that a merge expects, both
# JSON files, and what `verify` compares. A format with a new source of scales, or one that modelopt packs by another
# function, needs code in phase1_dump/quantization and nowhere else: in modelopt.py, where modelopt's functions pack a
# weight that carries quantizers, or in transformer_engine.py, where the parameter is packed already.
FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            name="FP8",
            companions=(_FP8_WEIGHT, _scalar("weight_scale"), _scalar(INPUT_SCALE)),
            block=(1, 1),
            scales=ScaleSource.RANGE,
            form=ModeloptForm(quant_algo="FP8", weights=_EIGHT_BITS, input_activations=_EIGHT_BITS),
            modelopt=("fp8",),
        ),
        Format(
            name="NVFP4",
            companions=(*_NVFP4_WEIGHT, _scalar(INPUT_SCALE)),
            block=(1, 16),
            scales=ScaleSource.NUMBERS,
            form=ModeloptForm(
                quant_algo="NVFP4",
                group_size=16,
                weights=_FOUR_BITS,
                input_activations=_FOUR_BITS,
            ),
            modelopt=("nvfp4",),
        ),
        Format(
            name="W4A16_NVFP4",
            companions=_NVFP4_WEIGHT,
            block=(1, 16),
            scales=ScaleSource.NUMBERS,
            form=ModeloptForm(quant_algo="W4A16_NVFP4", group_size=16, weights=_FOUR_BITS),
            modelopt=("w4a16_nvfp4",),
        ),
        Format(
            name="MXFP8",
            companions=(_FP8_WEIGHT, Companion("weight_scale", "U8", (1, 32), Encoding.E8M0)),
            block=(1, 32),
            scales=ScaleSource.NUMBERS,
            form=ModeloptForm(
                quant_algo="MXFP8",
                group_size=32,
                weights=_EIGHT_BITS,
                input_activations=_EIGHT_BITS,
            ),
            modelopt=("mxfp8",),
            transformer_engine="MXFP8Tensor",
        ),
        Format(
            name="FP8_BLOCK",
            companions=(_FP8_WEIGHT, Companion("weight_scale_inv", "F32", (128, 128))),
            block=(128, 128),
            partial_block=True,
            scales=ScaleSource.BLOCK_RANGES,
            positive_ranges=False,  # of a block of zeros modelopt makes a scale of one
            form=ConfigForm(
                statements={
                    "quant_method": "fp8",
                    "fmt": "e4m3",
                    "activation_scheme": "dynamic",
                    "weight_block_size": [128, 128],
                },
                excluded="modules_to_not_convert",
                known_by=("quant_method", "weight_block_size"),
            ),
            modelopt=("fp8_pb_wo", "fp8_pb_real"),
            compressed="fp8_pb_real",
            transformer_engine="Float8BlockwiseQTensor",
        ),
    )
}

BY_ALGORITHM: dict[str, Format] = {row.algorithm: row for row in FORMATS.values()}


def by_modelopt_name(name: str) -> Format | None:
    """Return the row of one of modelopt's formats, or None if there is none."""
    return next((row for row in FORMATS.values() if name in row.modelopt), None)
