"""One process as any rank of any world, on torch's fake process group; and the models of that rank.

Decides how groups are made and destroyed and which chunks a rank builds. Must not know weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.worlds.cpu import prepare
from tests.worlds.families import Family
from tests.worlds.gemma import add_scale_and_bases
from tests.worlds.hybrid import hybrid_model
from tests.worlds.megatron_config import block_spec, mtp_spec, transformer_config
from tests.worlds.topology import Topology
from tests.worlds.vision_language import AxesInTurn, VisionLanguageModel


@contextmanager
def fake_world(topology: Topology, rank: int) -> Iterator[None]:
    """Be `rank` of `topology` inside the block; nothing of it is left afterwards.

    A collective on a fake group returns at once without moving anything, so values need weights that are
    filled from names and offsets (see `filling`).
    """
    prepare()
    dist.init_process_group("fake", rank=rank, world_size=topology.world_size, store=FakeStore())
    try:
        with _own_groups_only():
            join_model_parallel(topology)
        yield
    finally:
        leave_model_parallel()


def join_model_parallel(topology: Topology) -> None:
    """Create megatron's groups for this rank; torch.distributed must be initialised with the world's size."""
    parallel_state.initialize_model_parallel(
        topology.tp,
        topology.pp,
        virtual_pipeline_model_parallel_size=topology.vpp if topology.vpp > 1 else None,
        context_parallel_size=topology.cp,
        expert_model_parallel_size=topology.ep,
        expert_tensor_parallel_size=topology.etp,
        create_gloo_process_groups=False,
    )


def leave_model_parallel() -> None:
    """Destroy megatron's groups and torch's, also after a failed start."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _own_groups_only() -> Iterator[None]:
    """Skip the groups this rank is not a member of: torch would create each of them, thousands in a large world."""
    create_group = parallel_state.create_group

    def create_own(ranks: list[int] | None = None, **options: Any) -> Any:
        if ranks is not None and dist.get_rank() not in ranks:
            return dist.GroupMember.NON_GROUP_MEMBER
        return create_group(ranks, **options)

    with mock.patch.object(parallel_state, "create_group", create_own):
        yield


def build_model(
    family: Family,
    topology: Topology,
    *,
    te: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    vocab_rows: int | None = None,
    **own: Any,
) -> list[GPTModel]:
    """Build this rank's model chunks: one, or one per virtual stage.

    `vocab_rows` replaces megatron's padded vocabulary, and `own` are more options of TransformerConfig. Weights are
    random; with `te` the stub of `te_stub` must have been installed before megatron was imported.
    """
    config = transformer_config(family, topology, te=te, dtype=dtype, **own)
    rows = vocab_rows or family.padded_vocab(topology.tp)
    stages = list(range(topology.vpp)) if topology.vpp > 1 else [None]
    return [_build_chunk(family, topology, config, rows, te, stage).to(device) for stage in stages]


def _build_chunk(
    family: Family, topology: Topology, config: Any, vocab_rows: int, te: bool, vp_stage: int | None
) -> GPTModel:
    position = {"ignore_virtual": False, "vp_stage": vp_stage}
    options = {
        "vocab_size": vocab_rows,
        "max_sequence_length": 64,
        "pre_process": parallel_state.is_pipeline_first_stage(**position),
        "post_process": parallel_state.is_pipeline_last_stage(**position),
        "parallel_output": False,
        "share_embeddings_and_output_weights": family.tied,
    }
    if family.mamba is not None:
        options |= {"stage_layers": topology.stage_layers, "vp_stage": vp_stage}
        return hybrid_model(family.mamba, family.mtp, config, te=te, **options)
    model = GPTModel(
        config,
        block_spec(family, config, te=te, vp_stage=vp_stage),
        position_embedding_type="mrope" if family.rope_sections else "rope",
        rotary_base=family.rope_theta,
        rotary_percent=family.rotated,
        vp_stage=vp_stage,
        mtp_block_spec=mtp_spec(family.mtp, config, te=te, vp_stage=vp_stage) if family.mtp else None,
        **options,
    )
    if family.gemma:
        add_scale_and_bases(model, family.rope_theta, family.gemma.local_theta)
    if family.rope_sections:
        model.rotary_pos_emb = AxesInTurn(family.head_channels, family.rotated, rotary_base=family.rope_theta)
    if family.is_composite:
        return VisionLanguageModel(model, config, "vision_tower" if family.latent else "vision_model")
    return model
