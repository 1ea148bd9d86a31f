"""One norm over all heads of the queries, and one over those of the keys, in place of megatron-core's norms of a head.

As Megatron-Bridge builds them for MiniMax-M2, where tensor parallelism cuts their weights, and for OLMoE, where each
rank holds them whole. Of fewer groups of keys than ranks, several ranks hold the same weights. A forward has one rank.
Must not know families.
Source: megatron-bridge, models/minimax_m2/minimax_m2_provider.py (`_FullDimRMSNorm`), models/olmoe/olmoe_provider.py;
mcore-bridge, model/gpts/{olmoe,minimax_m2}.py, for other names.
"""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp


class FullNorm(torch.nn.Module):
    """The common part: a weight of all channels, or of this rank's."""

    cut = True
    of_keys = False

    def __init__(self, hidden_size: int, config: Any, eps: float = 1e-6) -> None:
        """Take what megatron-core gives to a norm of heads: the channels of one."""
        super().__init__()
        heads = config.num_query_groups if self.of_keys else config.num_attention_heads
        self.shards = min(heads, config.tensor_model_parallel_size) if self.cut else 1
        self.eps = eps
        width = heads * hidden_size // self.shards
        self.weight = torch.nn.Parameter(torch.ones(width, dtype=config.params_dtype))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Norm [sequence, batch, heads, channels] over heads and channels together."""
        flat = values.flatten(2)
        return torch.nn.functional.rms_norm(flat, flat.shape[2:], self.weight, self.eps).view_as(values)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Say which part this is, and which of the ranks that hold it this one is."""
        rank, size = (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_world_size(),
        )
        copies = size // self.shards
        name, axis = f"{prefix}weight", len(sharded_offsets)
        replica = (0, rank % copies, parallel_state.get_data_parallel_rank(with_context_parallel=True))
        part = ShardedTensor.from_rank_offsets(
            name,
            self.weight,
            *sharded_offsets,
            (axis, rank // copies, self.shards),
            replica_id=replica,
            prepend_axis_num=axis,
        )
        return {name: part}


class CutQueryNorm(FullNorm):
    """Of queries, cut by tensor parallelism."""


class CutKeyNorm(FullNorm):
    """Of keys, cut by tensor parallelism."""

    of_keys = True


class WholeQueryNorm(FullNorm):
    """Of queries, whole on each rank."""

    cut = False


class WholeKeyNorm(FullNorm):
    """Of keys, whole on each rank."""

    cut, of_keys = False, True


class AttentionWithOwnNorms(SelfAttention):
    """Has the norms beside those of megatron-core, which are none, as mcore-bridge's attention. It never computes."""

    q_layernorm: Any
    k_layernorm: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Give the norms that megatron-core built their other names."""
        super().__init__(*arguments, **options)
        self.q_norm, self.k_norm = self.q_layernorm, self.k_layernorm
        self.q_layernorm, self.k_layernorm = IdentityOp(), IdentityOp()


FULL_NORMS = {"cut": (CutQueryNorm, CutKeyNorm), "whole": (WholeQueryNorm, WholeKeyNorm)}
FULL_NORMS["beside"] = FULL_NORMS["whole"]
