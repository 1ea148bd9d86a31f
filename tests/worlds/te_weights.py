"""Real quantized parameters of Transformer Engine, built from raw data, in the place of a model's plain weights.

Decides how numbers are rounded into blocks (the arithmetic is written here, not taken from anything under test), and
fills every padding with garbage, as kernels do. To be called in a process where `te_stub` is installed.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn

GARBAGE = float("nan")
GEMMS = (".linear_qkv", ".linear_proj", ".in_proj", ".out_proj", ".linear_fc1", ".linear_fc2")


def in_blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3 [N, K], float32 [ceil(N/128), ceil(K/128)]): one power of two for each block of 128x128."""
    rows, columns = weight.shape
    down, across = -(-rows // 128), -(-columns // 128)
    whole = torch.zeros(down * 128, across * 128)
    whole[:rows, :columns] = weight.float()
    tiles = whole.view(down, 128, across, 128)
    largest = tiles.abs().amax((1, 3)).clamp_min(1e-12)
    scale_inv = torch.exp2(torch.ceil(torch.log2(largest / 448)))
    packed = (tiles / scale_inv[:, None, :, None]).view(down * 128, across * 128)[:rows, :columns]
    return packed.to(torch.float8_e4m3fn), scale_inv


def in_rows_of_32(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3 [N, K], biased exponents uint8 [N, K/32]): one power of two for each 32 elements of a row."""
    rows, columns = weight.shape
    tiles = weight.float().view(rows, columns // 32, 32)
    exponent = torch.ceil(torch.log2(tiles.abs().amax(2).clamp_min(1e-12) / 448)).clamp(-127, 127)
    packed = (tiles / torch.exp2(exponent)[:, :, None]).view(rows, columns)
    return packed.to(torch.float8_e4m3fn), (exponent + 127).to(torch.uint8)


def tensorwise(weight: torch.Tensor) -> Any:
    """A Float8Tensor."""
    from transformer_engine.pytorch.constants import DType
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Tensor

    scale = 448 / weight.float().abs().max()
    data = (weight.float() * scale).to(torch.float8_e4m3fn).view(torch.uint8)
    return Float8Tensor(
        shape=weight.shape, dtype=weight.dtype, data=data, fp8_scale_inv=scale.reciprocal().reshape(1),
        fp8_dtype=DType.kFloat8E4M3, requires_grad=False, device="cpu",
    )  # fmt: skip


def blockwise(weight: torch.Tensor, *, two_dimensional: bool = True) -> Any:
    """A Float8BlockwiseQTensor; the columns of its scales are padded to a multiple of four."""
    from transformer_engine.pytorch.constants import DType
    from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockwiseQTensor

    packed, scale_inv = in_blocks(weight)
    padded = nn.functional.pad(scale_inv, (0, -scale_inv.shape[1] % 4), value=GARBAGE)
    return Float8BlockwiseQTensor(
        shape=weight.shape, dtype=weight.dtype, rowwise_data=packed.view(torch.uint8), rowwise_scale_inv=padded,
        columnwise_data=None, columnwise_scale_inv=None, fp8_dtype=DType.kFloat8E4M3,
        is_2D_scaled=two_dimensional, quantizer=block_quantizer(), requires_grad=False, device="cpu",
    )  # fmt: skip


def block_quantizer() -> Any:
    """What a blockwise parameter carries; it can be copied here, not called."""
    from transformer_engine.pytorch.constants import DType
    from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockQuantizer

    return Float8BlockQuantizer(
        fp8_dtype=DType.kFloat8E4M3, rowwise=True, columnwise=False, force_pow_2_scales=True,
        amax_epsilon=0.0, block_scaling_dim=2,
    )  # fmt: skip


def microscaled(weight: torch.Tensor, *, swizzled: bool = False) -> Any:
    """An MXFP8Tensor; its scales are padded to multiples of 128 rows and 4 columns."""
    from transformer_engine.pytorch.constants import DType
    from transformer_engine.pytorch.tensor.mxfp8_tensor import MXFP8Quantizer, MXFP8Tensor

    packed, exponents = in_rows_of_32(weight)
    padding = (0, -exponents.shape[1] % 4, 0, -exponents.shape[0] % 128)
    return MXFP8Tensor(
        shape=weight.shape, dtype=weight.dtype, rowwise_data=packed.view(torch.uint8),
        rowwise_scale_inv=nn.functional.pad(exponents, padding, value=255), columnwise_data=None,
        columnwise_scale_inv=None, fp8_dtype=DType.kFloat8E4M3, with_gemm_swizzled_scales=swizzled,
        quantizer=MXFP8Quantizer(fp8_dtype=DType.kFloat8E4M3), requires_grad=False, device="cpu",
    )  # fmt: skip


def multiplied_out(tensor: Any) -> torch.Tensor:
    """The numbers of an MXFP8Tensor times the powers of two of their blocks, for which it calls a kernel."""
    facts = tensor.get_metadata()
    rows, columns = facts["rowwise_data"].shape
    tiles = facts["rowwise_data"].view(torch.float8_e4m3fn).float().view(rows, columns // 32, 32)
    powers = torch.exp2(facts["rowwise_scale_inv"][:rows, : columns // 32].float() - 127)
    numbers: torch.Tensor = (tiles * powers[:, :, None]).view(rows, columns)
    return numbers.to(tensor.dtype)


def nvfp4(weight: torch.Tensor) -> Any:
    """An NVFP4Tensor of zeros; its scales are padded to multiples of 128 rows and 4 columns."""
    from transformer_engine.pytorch.constants import DType
    from transformer_engine.pytorch.tensor.nvfp4_tensor import NVFP4Quantizer, NVFP4Tensor

    rows, columns = weight.shape
    scales = torch.zeros(rows + -rows % 128, columns // 16 + -(columns // 16) % 4, dtype=torch.uint8)
    return NVFP4Tensor(
        shape=weight.shape, dtype=weight.dtype, rowwise_data=torch.zeros(rows, columns // 2, dtype=torch.uint8),
        rowwise_scale_inv=scales, columnwise_data=None, columnwise_scale_inv=None,
        amax_rowwise=weight.float().abs().max().reshape(1), amax_columnwise=None,
        fp4_dtype=DType.kFloat4E2M1, with_gemm_swizzled_scales=False, requires_grad=False, device="cpu",
        quantizer=NVFP4Quantizer(fp4_dtype=DType.kFloat4E2M1),
    )  # fmt: skip


def grouped(weights: list[torch.Tensor]) -> Any:
    """A GroupedTensor of blockwise matrices of one shape."""
    from transformer_engine.pytorch.tensor.grouped_tensor import GroupedTensor

    parts = [blockwise(weight).get_metadata() for weight in weights]
    rows, columns = weights[0].shape
    return GroupedTensor(
        shape=(len(weights) * rows, columns), dtype=weights[0].dtype, num_tensors=len(weights),
        shapes=[(rows, columns)] * len(weights), quantizer=block_quantizer(),
        data=torch.cat([part["rowwise_data"].flatten() for part in parts]),
        scale_inv=torch.cat([part["rowwise_scale_inv"].flatten() for part in parts]),
    )  # fmt: skip


def gemm_weights(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(module, name of its weight) of every matrix that Transformer Engine makes FP8: attention, mixers, experts."""
    for name, module in model.named_modules():
        if name.endswith(GEMMS):
            names = [weight for weight, _ in module.named_parameters(recurse=False)]
            yield from ((module, weight) for weight in names if weight.startswith("weight"))


def replace(module: nn.Module, name: str, tensor: Any) -> None:
    """Put a quantized parameter where a plain one is; what megatron noted on the plain one stays."""
    plain = getattr(module, name)
    new = nn.Parameter(tensor, requires_grad=False)
    new.__dict__.update(plain.__dict__)
    delattr(module, name)
    setattr(module, name, new)


def replace_all(model: nn.Module, make: Callable[[torch.Tensor], Any]) -> None:
    """Make every such weight of a model quantized."""
    for module, name in list(gemm_weights(model)):
        replace(module, name, make(getattr(module, name).detach()))


def group_experts(model: nn.Module) -> None:
    """Make the weights of all experts of a linear one GroupedTensor, as `moe_single_grouped_weight` does on a GPU."""
    for module in list(model.modules()):
        if hasattr(module, "num_gemms"):
            experts = range(cast(int, module.num_gemms))
            weights = [getattr(module, f"weight{expert}").detach() for expert in experts]
            for expert in experts:
                delattr(module, f"weight{expert}")
            module.weight = nn.Parameter(grouped(weights), requires_grad=False)
