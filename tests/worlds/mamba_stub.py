"""megatron-core's Mamba mixer on a machine without the kernels of `mamba_ssm`, and without Triton if need be.

The mixer is megatron-core's own; it refuses to be built unless `mamba_ssm` can be imported. It takes from there one
norm, which has a parameter, and the fused kernel of a forward without inference: both are written here in plain
torch, step by step. Stand-ins are importable only while the mixer is imported: torch asks whether Triton exists.
Source: state-spaces/mamba, mamba_ssm/ops/triton/{layernorm_gated,ssd_combined}.py (what is computed, not how).
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from tests.worlds.te_stub import AbsentModule

FUSED, UNFUSED = "mamba_split_conv1d_scan_combined", "mamba_chunk_scan_combined"
MIXER = "megatron.core.ssm.mamba_mixer"
NORM, SCAN = "mamba_ssm.ops.triton.layernorm_gated", "mamba_ssm.ops.triton.ssd_combined"


class GatedNorm(torch.nn.Module):
    """RMSNorm of groups of channels."""

    def __init__(
        self, hidden_size: int, *, eps: float, group_size: int, device: Any, dtype: Any, **_ignored: object
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.eps, self.group_size = eps, group_size

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Normalise [..., hidden]; the gate has been applied before."""
        groups = torch.nn.functional.rms_norm(
            values.unflatten(-1, (-1, self.group_size)), (self.group_size,), eps=self.eps
        )
        return groups.flatten(-2) * self.weight


def scan(
    zxbcdt: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    dt_bias: torch.Tensor,
    decay: torch.Tensor,
    *,
    D: torch.Tensor,  # noqa: N803 - called by this name
    headdim: int,
    ngroups: int,
    **_ignored: object,
) -> torch.Tensor:
    """Mamba-2 of [batch, steps, z + x + B + C + dt]: convolution, recurrence, gate; [batch, steps, inner]."""
    heads, channels, kernel = len(dt_bias), len(weight), weight.shape[1]
    inner = heads * headdim
    gate, convolved, steps = zxbcdt.split([inner, channels, heads], dim=-1)
    padded = torch.nn.functional.pad(convolved.transpose(1, 2), (kernel - 1, 0))
    mixed = torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=channels).transpose(1, 2)
    x, b, c = torch.nn.functional.silu(mixed).split([inner, *[(channels - inner) // 2] * 2], dim=-1)
    x = x.unflatten(-1, (heads, headdim))
    b, c = (one.unflatten(-1, (ngroups, -1)).repeat_interleave(heads // ngroups, 2) for one in (b, c))
    delta = torch.nn.functional.softplus(steps + dt_bias)
    state, found = x.new_zeros(len(x), heads, headdim, b.shape[-1]), []
    for at in range(x.shape[1]):
        added = (delta[:, at, :, None] * x[:, at])[..., None] * b[:, at, :, None]
        state = state * torch.exp(delta[:, at] * decay)[..., None, None] + added
        found.append((state * c[:, at, :, None]).sum(-1) + D[:, None] * x[:, at])
    return torch.stack(found, 1).flatten(2) * torch.nn.functional.silu(gate)


class NoRandomState:
    """In place of the tracker of CUDA random states: there is none to fork on a CPU."""

    @staticmethod
    def fork(*_names: object) -> nullcontext[None]:
        return nullcontext()


def install() -> None:
    """Import the mixer with stand-ins, once. Raises RuntimeError if it was imported without them."""
    if MIXER in sys.modules and not sys.modules[MIXER].__dict__["HAVE_MAMBA_SSM"]:
        raise RuntimeError(f"{MIXER} is imported already and has decided that mamba_ssm is absent")
    importlib.import_module(
        "megatron.core.transformer"
    )  # and with it torch's compiler, which asks for Triton
    with _importable(_stand_ins()):
        mixer: Any = importlib.import_module(MIXER)
    mixer.get_cuda_rng_tracker = NoRandomState


def _stand_ins() -> dict[str, AbsentModule]:
    """Modules by name; Triton only where it is missing."""
    members: dict[str, dict[str, object]] = {"mamba_ssm": {}, "mamba_ssm.ops": {}, "mamba_ssm.ops.triton": {}}
    members |= {NORM: {"RMSNorm": GatedNorm}, SCAN: {FUSED: scan, UNFUSED: _kernel}}
    if importlib.util.find_spec("triton") is None:
        members |= {"triton": {"jit": _as_it_is}, "triton.language": {}}
    return {name: AbsentModule(name, **found) for name, found in members.items()}


def _kernel(*_arguments: object) -> None:
    raise RuntimeError("this kernel of mamba_ssm is for inference, which a CPU test world does not have")


def _as_it_is(function: Any) -> Any:
    return function


@contextmanager
def _importable(modules: dict[str, AbsentModule]) -> Iterator[None]:
    """Not mock.patch.dict: it would forget what was imported meanwhile."""
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
