"""One share of a checkpoint as a `source.Source`: the rank of a dump that holds whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shardmerge.common.architectures.composites import VISION
from shardmerge.common.architectures.digest import table_digest
from shardmerge.common.manifest import AXES
from shardmerge.common.manifest_facts import QuantizationFacts
from shardmerge.common.versions import version_of

from ..generation import Generation
from ..rectangles.claims import Claimed, claim_all
from ..rectangles.experts import spellings_of
from ..rectangles.holdings import holdings_of
from ..rectangles.quantization_facts import KVCache, facts_of
from ..source import Holding, ManifestFacts, Stream
from ..world import World
from .chunk_files import ChunkFiles
from .packing import Packing
from .plan import Plan
from .reading import read

ROUTER_BIAS = "router.expert_bias"
TORCH_NAMES = {
    "BF16": "torch.bfloat16",
    "F16": "torch.float16",
    "F32": "torch.float32",
    "F64": "torch.float64",
}


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointShare:
    """A `source.Source`: one share of a checkpoint. Made by `share_of`."""

    world: World
    generation: Generation
    facts: ManifestFacts
    holdings: tuple[Holding, ...]
    files: ChunkFiles
    packing: Packing | None = None
    stage_copies: tuple[Holding, ...] = ()

    def settle(self) -> None:
        """Raise ChangedCheckpointError if somebody wrote to the checkpoint, before bytes are read in vain."""
        self.files.require_unchanged()

    def read(self, holdings: Sequence[Holding], *, inspect: bool = True, streams: int = 1) -> Stream:
        """Yield the blocks of these holdings, and what was seen of each; then check what was read of the files.

        Args:
            holdings: of this share.
            inspect: whether anybody needs to know about the numbers.
            streams: always one.

        Returns:
            A generator.
        """
        return read(holdings, self.files, self.packing, inspect=inspect)


def share_of(plan: Plan, share: int, run_id: str) -> CheckpointShare:
    """Describe one share of a checkpoint.

    Args:
        plan: Of the whole checkpoint.
        share: Which of its shares.
        run_id: Name of the dump.

    Returns:
        A source. Its numbers have not been read.

    Raises:
        ShardmergeError: shapes are not those of config.json, or quantizers cannot pack a weight.
        OSError: a file cannot be read.
    """
    world = _world(share, len(plan.shares))
    (claimed,), drops = claim_all(
        [plan.parameters(share)], plan.blueprint, share, drop_mtp=plan.options.drop_mtp
    )
    files, caches, packing = ChunkFiles(plan.folder, plan.table, plan.states), list[KVCache](), plan.packing
    quantization: QuantizationFacts | None = None
    if packing is not None:
        claimed, caches = packing.packed(claimed, files, plan.states, share)
        quantization = facts_of(claimed, caches, packing.producer())
    scales = [scale for cache in caches for scale in cache.scales]
    centred = bool(plan.blueprint.says("zero_centred_norms").value)
    claimed = [_as_read(entry) if centred else _with_plain_norm(entry) for entry in claimed]
    return CheckpointShare(
        world,
        Generation(run_id, plan.iteration, plan.digest),
        ManifestFacts(
            plan.blueprint.architecture.name,
            plan.blueprint.dimensions,
            plan.params_dtype,
            settings=plan.recorded.settings,
            own_options=plan.recorded.own_options,
            experts=spellings_of(claimed, plan.blueprint),
            table=table_digest(plan.blueprint.architecture),
            dtype_from_reference=plan.options.dtype_from_reference,
            drops=drops | _left_beside(plan, share),
            router_bias_dtypes=_router_bias_dtypes(plan, share),
            producer={"shardmerge": version_of("shardmerge")},
            quantization=quantization,
        ),
        tuple(holdings_of(claimed, plan.blueprint, world, plan.dtype_of, scales)),
        files,
        packing,
    )


def _left_beside(plan: Plan, share: int) -> dict[str, int]:
    """Return how many tensors beside the language model are left out, by reason. The first share tells it for all."""
    return {VISION: plan.beside} if plan.beside and share == 0 else {}


def _with_plain_norm(entry: Claimed) -> Claimed:
    """Return a claim whose part says that it is a norm to which readers add nothing, if it is."""
    parameter = entry.parameter
    if not parameter.is_weight_of_norm:
        return entry
    data = replace(parameter.data, plain_norm=parameter.key)
    return replace(entry, parameter=replace(parameter, data=data))


def _as_read(entry: Claimed) -> Claimed:
    """Return a claim of a table whose readers add 1 to norms, and whose norms are stored minus one.

    Readers add nothing to a few: the 1 is added here, as it is to those of a live model.
    """
    parameter = entry.parameter
    if not entry.claim.row.plain_norm:
        return entry
    return replace(entry, parameter=replace(parameter, data=replace(parameter.data, added=1)))


def _world(share: int, shares: int) -> World:
    """Return the place of a share, which stands alone on every axis: nobody holds the same."""
    return World(share, shares, dict.fromkeys(AXES, 0), {axis: [share] for axis in AXES})


def _router_bias_dtypes(plan: Plan, share: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for parameter in plan.parameters(share):
        if parameter.key.endswith(ROUTER_BIAS):
            name = TORCH_NAMES[plan.table.dtypes[parameter.data.tensor]]
            counts[name] = counts.get(name, 0) + 1
    return counts
