"""The worlds keep what they promise: models build everywhere, the oracle is right, the pool fails loudly."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel

from tests.worlds.checkpoints import read_hf_tensors, write_hf_checkpoint
from tests.worlds.composites import VISION
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import FAMILIES, Family, by_name, topologies_of
from tests.worlds.filling import FLOAT32_TAIL, expected, fill, holdings
from tests.worlds.gloo import GlooRanks, RankError, RankTimeoutError
from tests.worlds.mtp import BUILT
from tests.worlds.oracle import IMPORTED, load_model, megatron_logits, write_torch_dist
from tests.worlds.topology import TOPOLOGIES, Topology

EIGHT_RANKS = Topology(tp=2, pp=2, ep=2, dp=2)


def family_id(family: Family) -> str:
    return family.name


# ---------------------------------------------------------------- topologies


def test_every_axis_is_above_one_somewhere_and_no_world_exceeds_eight_ranks() -> None:
    for axis in ("tp", "pp", "vpp", "ep", "etp", "cp", "dp", "expert_dp"):
        assert any(getattr(world, axis) > 1 for world in TOPOLOGIES), axis
    assert max(world.world_size for world in TOPOLOGIES) == 8
    assert len({world.name for world in TOPOLOGIES}) == len(TOPOLOGIES)


def test_a_name_tells_what_differs_from_a_single_rank() -> None:
    assert Topology().name == "single"
    assert Topology(tp=2, pp=2, ep=2).name == "tp2-pp2-ep2"
    assert Topology(pp=2, first_stage_layers=1).name == "pp2-first1"


def test_impossible_topologies_are_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        Topology(ep=3, dp=2)
    with pytest.raises(ValueError, match="need pp > 1"):
        Topology(vpp=2)


@pytest.mark.parametrize("world", TOPOLOGIES, ids=lambda world: world.name)
def test_coordinates_by_arithmetic_are_those_of_megatron(world: Topology) -> None:
    for rank in range(world.world_size):
        place = world.coordinates(rank)
        with fake_world(world, rank):
            assert place.tp == parallel_state.get_tensor_model_parallel_rank()
            assert place.cp == parallel_state.get_context_parallel_rank()
            assert place.dp == parallel_state.get_data_parallel_rank()
            assert place.pp == parallel_state.get_pipeline_model_parallel_rank()
            assert place.etp == parallel_state.get_expert_tensor_parallel_rank()
            assert place.ep == parallel_state.get_expert_model_parallel_rank()
            assert place.expert_dp == parallel_state.get_expert_data_parallel_rank()


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("family", FAMILIES, ids=family_id)
def test_every_tensor_of_a_checkpoint_is_telling(family: Family, tmp_path: Path) -> None:
    tensors = read_hf_tensors(write_hf_checkpoint(family, tmp_path, seed=1))
    assert len({tensor.flatten().view(torch.uint8).numpy().tobytes() for tensor in tensors.values()}) == len(
        tensors
    )
    for name, tensor in tensors.items():
        assert tensor.unique().numel() > 1, name
        if name.startswith(VISION):  # which nobody lays out
            continue
        square = family.full_norms == "whole" and name.endswith(("q_proj.weight", "o_proj.weight"))
        assert tensor.ndim == 1 or tensor.shape[0] != tensor.shape[1] or square, name
        assert "norm" not in name or not bool((tensor == 1).any()), name
        wide = name.endswith(("e_score_correction_bias", ".mixer.A_log", ".mixer.D"))
        assert tensor.dtype == (torch.float32 if wide else torch.bfloat16), name
    assert any(name.endswith("lm_head.weight") for name in tensors) != family.tied


def test_checkpoints_have_the_published_expert_names_and_sidecars(tmp_path: Path) -> None:
    path = write_hf_checkpoint(by_name("qwen3_moe"), tmp_path, max_shard_size="100KB")
    assert "model.layers.3.mlp.experts.7.gate_proj.weight" in read_hf_tensors(path)
    files = {file.name for file in path.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= files
    assert "model.safetensors.index.json" in files


# ---------------------------------------------------------------- fake worlds


@pytest.mark.sampled
@pytest.mark.parametrize("family", BUILT, ids=family_id)
def test_a_family_builds_on_every_rank_of_every_world(family: Family) -> None:
    for world in topologies_of(family):
        layers: list[int] = []
        for rank in range(world.world_size):
            with fake_world(world, rank):
                chunks = build_model(family, world)
            place = world.coordinates(rank)
            if (place.tp, place.cp, place.dp) == (0, 0, 0):
                layers += [layer.layer_number - 1 for chunk in chunks for layer in chunk.decoder.layers]
        assert sorted(layers) == list(range(family.layers)), world.name
    assert not dist.is_initialized()


def test_a_world_of_a_thousand_ranks_is_left_clean() -> None:
    world = Topology(tp=8, pp=4, ep=8, dp=32)
    for rank in (0, 517, 1023):
        with fake_world(world, rank):
            assert dist.get_rank() == rank
    assert not parallel_state.model_parallel_is_initialized()


@pytest.mark.parametrize("family", BUILT, ids=family_id)
def test_filled_ranks_cover_each_identity_once_per_replica(family: Family) -> None:
    """Rank arithmetic is right if the parts of all ranks tile every matrix, equally often."""
    world = EIGHT_RANKS if family.experts else Topology(tp=4, pp=2)
    counts: dict[str, torch.Tensor] = {}
    for rank in range(world.world_size):
        with fake_world(world, rank):
            for held in holdings(build_model(family, world), family, world, rank):
                grid = counts.setdefault(held.identity, torch.zeros(520, 120, dtype=torch.int8))
                columns = held.columns if held.columns.numel() else torch.zeros(1, dtype=torch.int64)
                grid[held.rows[:, None], columns[None, :]] += 1
    for identity, counted in counts.items():
        height, width = int(counted.any(1).sum()), int(counted.any(0).sum())
        assert counted[:height, :width].unique().numel() == 1, identity


def test_filled_values_are_exact_in_bfloat16_and_written_by_hand() -> None:
    family, world, rank = by_name("deepseek_v3"), EIGHT_RANKS, 7  # tp 1, pp 1, ep 1: layers 2, 3; experts 4-7
    with fake_world(world, rank):
        chunks = build_model(family, world)
        fill(chunks, family, world, rank)
    layer = chunks[0].decoder.layers[1]
    fc1 = layer.mlp.experts.local_experts[2].linear_fc1.weight.float()
    assert torch.equal(
        fc1, expected("decoder.layers.3.mlp.experts.6.linear_fc1.weight", range(80), range(72))
    )
    shared = layer.mlp.shared_experts.linear_fc1.weight.float()  # gate rows 40-79, then up rows 120-159
    rows = [*range(40, 80), *range(120, 160)]
    assert torch.equal(
        shared, expected("decoder.layers.3.mlp.shared_experts.linear_fc1.weight", rows, range(72))
    )
    bias = expected("decoder.layers.3.mlp.router.expert_bias", range(8))
    assert torch.equal(layer.mlp.router.expert_bias, bias)
    assert not torch.equal(bias.bfloat16().float(), bias)
    assert torch.equal((bias - FLOAT32_TAIL).bfloat16().float(), bias - FLOAT32_TAIL)


# ---------------------------------------------------------------- the oracle


@pytest.mark.parametrize("family", IMPORTED, ids=family_id)
def test_an_imported_model_computes_what_transformers_computes(
    family: Family, ranks: GlooRanks, tmp_path: Path
) -> None:
    path = write_hf_checkpoint(family, tmp_path, seed=2)
    tokens = torch.randint(0, family.vocab, (2, 17), generator=torch.Generator().manual_seed(3))
    reference = getattr(transformers, family.architecture).from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        logits = reference(tokens).logits
    torch.testing.assert_close(megatron_logits(ranks, family, path, tokens), logits, rtol=1e-4, atol=1e-4)


def _pieces(rank: int, family: Family, torch_dist: Path) -> dict[str, torch.Tensor]:
    """Return some local tensors of layer 3 (the last stage's second layer) under hand-made names."""
    chunk: GPTModel = load_model(rank, family, EIGHT_RANKS, torch_dist)[0]
    if chunk.pre_process:
        return {"embedding": chunk.embedding.word_embeddings.weight.detach()}
    layer = chunk.decoder.layers[1]
    names = {
        "router": layer.mlp.router.weight,
        "qkv": layer.self_attention.linear_qkv.weight,
        "o": layer.self_attention.linear_proj.weight,
        "norm": layer.input_layernorm.weight,
        "fc1": layer.mlp.experts.local_experts[3].linear_fc1.weight,
        "fc2": layer.mlp.experts.local_experts[3].linear_fc2.weight,
        "head": chunk.output_layer.weight,
    }
    return {name: tensor.detach() for name, tensor in names.items()}


def test_an_import_at_eight_ranks_puts_each_value_where_it_belongs(ranks: GlooRanks, tmp_path: Path) -> None:
    family = by_name("qwen3_moe")
    hf = read_hf_tensors(write_hf_checkpoint(family, tmp_path / "hf", seed=4))
    torch_dist = write_torch_dist(ranks, family, tmp_path / "hf", tmp_path / "torch_dist")
    pieces = ranks.run(_pieces, EIGHT_RANKS, family, torch_dist)
    layer = "model.layers.3."
    query, key, value = (hf[f"{layer}self_attn.{part}_proj.weight"] for part in "qkv")
    for rank in range(8):
        tp, ep, pp = rank % 2, rank % 2, rank // 4  # etp 1: the tensor ranks of a stage are its expert ranks
        piece = pieces[rank]
        rows = slice(128 * tp, min(211, 128 * tp + 128))
        if pp == 0:
            assert torch.equal(
                piece["embedding"][: rows.stop - rows.start], hf["model.embed_tokens.weight"][rows]
            )
            continue
        expert = f"{layer}mlp.experts.{4 * ep + 3}."
        fc1 = torch.cat([hf[f"{expert}gate_proj.weight"], hf[f"{expert}up_proj.weight"]])
        # one query group per tensor rank: its four heads of 12 rows, its key head, its value head
        qkv = [query[48 * tp : 48 * tp + 48], key[12 * tp : 12 * tp + 12], value[12 * tp : 12 * tp + 12]]
        assert torch.equal(piece["router"], hf[f"{layer}mlp.gate.weight"])
        assert torch.equal(piece["qkv"], torch.cat(qkv))
        assert torch.equal(piece["o"], hf[f"{layer}self_attn.o_proj.weight"][:, 48 * tp : 48 * tp + 48])
        assert torch.equal(piece["norm"].bfloat16(), hf[f"{layer}input_layernorm.weight"])
        assert torch.equal(piece["fc1"], fc1)
        assert torch.equal(piece["fc2"], hf[f"{expert}down_proj.weight"])
        assert torch.equal(piece["head"][: rows.stop - rows.start], hf["lm_head.weight"][rows])


def _router_biases(
    rank: int, family: Family, topology: Topology, torch_dist: Path
) -> dict[int, torch.Tensor]:
    chunks = load_model(rank, family, topology, torch_dist)
    layers = [layer for chunk in chunks for layer in chunk.decoder.layers if hasattr(layer.mlp, "router")]
    return {layer.layer_number - 1: layer.mlp.router.expert_bias for layer in layers}


def test_a_router_bias_arrives_in_float32_also_with_virtual_stages(ranks: GlooRanks, tmp_path: Path) -> None:
    family, world = by_name("deepseek_v3"), Topology(pp=2, vpp=2, ep=2, dp=2)
    hf = read_hf_tensors(write_hf_checkpoint(family, tmp_path / "hf", seed=5))
    torch_dist = write_torch_dist(ranks, family, tmp_path / "hf", tmp_path / "torch_dist")
    found = ranks.run(_router_biases, world, family, world, torch_dist)
    assert [sorted(biases) for biases in found] == [[2], [2], [1, 3], [1, 3]]
    for biases in found:
        for layer, bias in biases.items():
            assert torch.equal(bias, hf[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"])


def _tied_copy(rank: int, family: Family, topology: Topology, torch_dist: Path) -> torch.Tensor:
    chunk = load_model(rank, family, topology, torch_dist)[0]
    weight: torch.Tensor = chunk.shared_embedding_or_output_weight().detach()
    return weight


def test_the_last_stage_of_a_tied_model_holds_the_embedding_too(ranks: GlooRanks, tmp_path: Path) -> None:
    family, world = by_name("llama_tied"), Topology(pp=2)
    hf = read_hf_tensors(write_hf_checkpoint(family, tmp_path / "hf", seed=6))
    torch_dist = write_torch_dist(ranks, family, tmp_path / "hf", tmp_path / "torch_dist")
    for copy in ranks.run(_tied_copy, world, family, world, torch_dist):
        assert torch.equal(copy[:211], hf["model.embed_tokens.weight"])


# ---------------------------------------------------------------- Transformer Engine without a GPU


def _grouped_experts(rank: int, family: Family, torch_dist: Path) -> tuple[str, torch.Tensor]:
    chunk = load_model(rank, family, EIGHT_RANKS, torch_dist, te=True)[0]
    experts = chunk.decoder.layers[1].mlp.experts
    return type(experts).__name__, experts.linear_fc2.weight3.detach()


def test_grouped_experts_of_transformer_engine_hold_the_imported_values(
    te_ranks: GlooRanks, tmp_path: Path
) -> None:
    family = by_name("deepseek_v3")
    hf = read_hf_tensors(write_hf_checkpoint(family, tmp_path / "hf", seed=7))
    torch_dist = write_torch_dist(te_ranks, family, tmp_path / "hf", tmp_path / "torch_dist")
    for rank, (kind, weight) in enumerate(te_ranks.run(_grouped_experts, EIGHT_RANKS, family, torch_dist)):
        layer, expert = 1 + 2 * (rank // 4), 4 * (rank % 2) + 3
        assert kind == "TEGroupedMLP"
        assert torch.equal(weight, hf[f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"])


# ---------------------------------------------------------------- the pool


def _sum_of_ranks(rank: int) -> float:
    total = torch.tensor(float(rank))
    dist.all_reduce(total)
    return total.item()


def _fail_on_rank_one(rank: int) -> None:
    if rank == 1:
        raise ValueError("told to")
    dist.barrier()


def _sleep_on_rank_one(rank: int) -> None:
    time.sleep(60 if rank == 1 else 0)


def test_the_pool_serves_one_world_after_another(ranks: GlooRanks) -> None:
    assert ranks.run(_sum_of_ranks, Topology(dp=2)) == [1.0] * 2
    assert ranks.run(_sum_of_ranks, Topology(tp=2, pp=2)) == [6.0] * 4


def test_an_exception_on_a_rank_arrives_with_rank_and_traceback(ranks: GlooRanks) -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1 failed.*_fail_on_rank_one.*ValueError: told to"):
        ranks.run(_fail_on_rank_one, Topology(dp=2))
    assert ranks.run(_sum_of_ranks, Topology(dp=2)) == [1.0] * 2


def test_a_hanging_rank_is_named_and_the_pool_recovers() -> None:
    with GlooRanks(2, timeout_s=2) as small:
        with pytest.raises(RankTimeoutError) as caught:
            small.run(_sleep_on_rank_one, Topology(dp=2))
        assert 1 in caught.value.hung
        small.timeout_s = 60
        assert small.run(_sum_of_ranks, Topology(dp=2)) == [1.0] * 2
