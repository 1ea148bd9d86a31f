"""Checkpoints of models that modelopt really quantized, saved as training saves them, and states put into them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch.distributed.checkpoint.filesystem import _StorageInfo

from tests.worlds.fake import build_model
from tests.worlds.families import Family
from tests.worlds.filling import fill
from tests.worlds.quantizing import quantize, recipe
from tests.worlds.saving import Spelling, lift_norms, save
from tests.worlds.topology import Topology

STATES = "modelopt_quantizer_state"


@dataclass(frozen=True, slots=True)
class Case:
    """A model, how it is quantized and what is off, and where it is saved.

    spoil: changes a rank's chunks after they were calibrated.
    preset: what modelopt is given instead of a recipe; ranges are then those that it finds in weights.
    """

    family: Family
    recipe: str
    topology: Topology
    off: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    te: bool = False
    kv_cache: bool = False
    prefix: str = ""
    spoil: Callable[[list[GPTModel]], None] | None = None
    preset: Mapping[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """What modelopt is given."""
        found = recipe(self.recipe, kv_cache=self.kv_cache)
        found["quant_cfg"] += [{"quantizer_name": name, "enable": True} for name in self.on]
        return found


def save_quantized(rank: int, case: Case, out: Path, reference: Path | None = None) -> None:
    """Be one rank that quantizes its model, dumps it alive if a reference is given, and saves it."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.opt.plugins import save_sharded_modelopt_state

    chunks = build_model(case.family, case.topology, te=case.te)
    fill(chunks, case.family, case.topology, rank)
    lift_norms(chunks)
    if case.preset is None:
        quantize(chunks, case.family, case.topology, rank, case.config, shared_inputs=case.te)
    for chunk in chunks:
        if case.preset is not None:
            mtq.quantize(chunk, copy.deepcopy(dict(case.preset)), forward_loop=None)
        for pattern in case.off:
            mtq.disable_quantizer(chunk, pattern)
    if case.spoil is not None:
        case.spoil(chunks)
    if reference is not None:
        from shardmerge.phase1_dump import dump

        dump(chunks, out / "live", hf_reference=reference, run_id="run", step=7)
    save(chunks, out / "iter_0000007", Spelling(prefix=case.prefix))
    if len(chunks) == 1:
        save_sharded_modelopt_state(chunks, out / "iter_0000007")


def packed(value: Any) -> torch.Tensor:
    """What modelopt makes of a state before megatron-core saves it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def put(checkpoint: Path, key: str, archive: bytes) -> None:
    """Put an archive in the place of a state."""

    def change(held: dict[Any, Any]) -> None:
        index = next(one for one in held if one.fqn == key)
        (checkpoint / "__9_9.distcp").write_bytes(archive)
        held[index] = _StorageInfo("__9_9.distcp", 0, len(archive))

    edit(checkpoint, lambda metadata: change(metadata.storage_data))


def put_state(checkpoint: Path, key: str, state: Any) -> None:
    """Put what torch.save makes of a state in the place of another, as megatron-core saves it."""
    buffer = io.BytesIO()
    torch.save([packed(state)], buffer)
    put(checkpoint, key, buffer.getvalue())


def state_of(checkpoint: Path, key: str) -> Any:
    """Read a state as modelopt does."""
    info = next(info for one, info in metadata_of(checkpoint).storage_data.items() if one.fqn == key)
    data = (checkpoint / info.relative_path).read_bytes()[info.offset : info.offset + info.length]
    (tensor,) = torch.load(io.BytesIO(data))
    return torch.load(io.BytesIO(tensor.numpy().tobytes()))


def metadata_of(checkpoint: Path) -> Any:
    """Read `.metadata` with torch's own classes."""
    return pickle.loads((checkpoint / ".metadata").read_bytes())


def edit(checkpoint: Path, change: Callable[[Any], object]) -> None:
    """Change what `.metadata` says."""
    metadata = metadata_of(checkpoint)
    change(metadata)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
