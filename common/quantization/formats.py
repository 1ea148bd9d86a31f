"""Quantization formats: a row tells what a quantized weight [N, K] becomes on disk and what both JSON files say of it.

Both phases read this table: phase one derives rectangles from it, phase two decides from it what must be there.
Pure data; how bytes are computed is not known here.
Source: nvidia-modelopt 0.47, torch/export/{model_config,quant_utils,convert_hf_config}.py; DeepSeek-V3's config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

SUFFIX = ".weight"
KV_CACHE_TENSORS = ("k_proj.k_scale", "v_proj.v_scale")
KV_CACHE_ALGORITHMS = ("FP8",)


class Encoding(StrEnum):
    """How the bits of an element are read when a look is taken at its health."""

    FLOAT = "float"  # as its dtype says
    E4M3 = "e4m3"  # NaN is 0x7F and 0xFF
    E2M1_PAIR = "e2m1 pair"  # two 4-bit numbers in a byte; no NaN
    E8M0 = "e8m0"  # a power of two; NaN is 0xFF


@dataclass(frozen=True, slots=True)
class Companion:
    """One tensor of a quantized weight: `suffix` takes the place of "weight" in its name.

    `divisors`: how many rows and columns of the weight one element stands for; None for a scalar of the whole weight.
    """

    suffix: str
    dtype: str
    divisors: tuple[int, int] | None
    encoding: Encoding = Encoding.FLOAT

    @property
    def is_scale(self) -> bool:
        """Scales must be finite and positive."""
        return self.suffix != "weight"


@dataclass(frozen=True, slots=True)
class Format:
    """A row: the tensors of a weight, the block that no cut may fall inside, and the words of the JSON files.

    `modelopt` are the names that modelopt's `get_quantization_format` gives it.
    """

    name: str
    modelopt: tuple[str, ...]
    companions: tuple[Companion, ...]
    block: tuple[int, int]
    quant_algo: str
    group_size: int | None
    weights: dict[str, Any]
    input_activations: dict[str, Any] | None

    @property
    def layer_config(self) -> dict[str, Any]:
        """What `quantized_layers` says of a module of this format."""
        size = {} if self.group_size is None else {"group_size": self.group_size}
        return {"quant_algo": self.quant_algo} | size

    @property
    def scalars(self) -> tuple[str, ...]:
        """Suffixes that must be equal on all shards of a weight."""
        return tuple(one.suffix for one in self.companions if one.divisors is None)

    @property
    def is_calibrated(self) -> bool:
        """Whether readers need to know the range of the inputs."""
        return "input_scale" in self.scalars


def _numbers(bits: int, group_size: int | None = None) -> dict[str, Any]:
    size = {} if group_size is None else {"group_size": group_size}
    return {"dynamic": False, "num_bits": bits, "type": "float"} | size


def _scalar(suffix: str) -> Companion:
    return Companion(suffix, "F32", None)


_FP8_WEIGHT = Companion("weight", "F8_E4M3", (1, 1), Encoding.E4M3)
_NVFP4_WEIGHT = (
    Companion("weight", "U8", (1, 2), Encoding.E2M1_PAIR),
    Companion("weight_scale", "F8_E4M3", (1, 16), Encoding.E4M3),
    _scalar("weight_scale_2"),
)

BLOCK_FP8 = Format(
    "FP8_BLOCK",
    ("fp8_pb_wo", "fp8_pb_real"),
    (_FP8_WEIGHT, Companion("weight_scale_inv", "F32", (128, 128))),
    (128, 128),
    "FP8_BLOCK",
    None,
    {},
    None,
)

FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            "FP8",
            ("fp8",),
            (_FP8_WEIGHT, _scalar("weight_scale"), _scalar("input_scale")),
            (1, 1),
            "FP8",
            None,
            _numbers(8),
            _numbers(8),
        ),
        Format(
            "NVFP4",
            ("nvfp4",),
            (*_NVFP4_WEIGHT, _scalar("input_scale")),
            (1, 16),
            "NVFP4",
            16,
            _numbers(4, 16),
            _numbers(4, 16),
        ),
        Format(
            "W4A16_NVFP4",
            ("w4a16_nvfp4",),
            _NVFP4_WEIGHT,
            (1, 16),
            "W4A16_NVFP4",
            16,
            _numbers(4, 16),
            None,
        ),
        Format(
            "MXFP8",
            ("mxfp8",),
            (_FP8_WEIGHT, Companion("weight_scale", "U8", (1, 32), Encoding.E8M0)),
            (1, 32),
            "MXFP8",
            32,
            _numbers(8, 32),
            _numbers(8, 32),
        ),
        BLOCK_FP8,
    )
}


def by_modelopt_name(name: str) -> Format | None:
    """The row of one of modelopt's formats, None if there is none."""
    return next((row for row in FORMATS.values() if name in row.modelopt), None)
