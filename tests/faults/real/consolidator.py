"""What torch.distributed.checkpoint's consolidator lets pass, beside what shardmerge says of the same fault.

Both are given the same faulty pieces of one tensor, as four ranks wrote them, and both are really run; the table in
docs/inside/consolidation.md is what came out. Must not know what either of them decides, or how.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors import TensorSpec
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files

from shardmerge.common.errors import ShardmergeError
from shardmerge.phase2_merge import check, merge
from tests.dumps import dumps
from tests.dumps.dumps import Cut, Model, Topology

TENSOR = "model.layers.0.mlp.gate_proj.weight"  # [12, 8]: rank r holds rows 3 r to 3 r + 3
RANKS = Topology(tp=4)
CONTROL = "nothing is wrong"


@dataclass(frozen=True, slots=True)
class Fault:
    """`cuts`: what the ranks claim to hold of the tensor. `dtype`: of all tensors."""

    name: str
    cuts: tuple[Cut, ...]
    dtype: str = "BF16"


def _pieces(*ranks: int) -> tuple[Cut, ...]:
    return tuple(Cut(rank, (3 * rank, 0), (3, 8)) for rank in ranks)


FAULTS = (
    Fault(CONTROL, _pieces(0, 1, 2, 3)),
    Fault("a middle piece is missing", _pieces(0, 2, 3)),
    Fault("the last piece is missing", _pieces(0, 1, 2)),
    Fault(
        "two pieces overlap, and their bytes differ",
        (Cut(0, (0, 0), (4, 8)), Cut(1, (2, 0), (4, 8)), *_pieces(2, 3)),
    ),
    Fault("the tensors are uint8, as packed weights are", _pieces(0, 1, 2, 3), dtype="U8"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One fault, and what came of it."""

    fault: str
    consolidator: str
    shardmerge: str


def rows(folder: Path) -> Iterator[Row]:
    """Run both on every fault, in sub-folders of `folder`."""
    for number, fault in enumerate(FAULTS):
        here = folder / str(number)
        model = dumps.model_of(dumps.dense_config(1), fault.dtype)
        cuts = dumps.cuts_of(model, RANKS) | {TENSOR: list(fault.cuts)}
        yield Row(fault.name, _consolidated(here, model, cuts), _merged(here, model, cuts))


def _model_of_rank(model: Model, rank: int) -> Model:
    """A rank is right about its own three rows; what it claims to know of others is inverted."""
    dtype, shape, data = model.tensors[TENSOR]
    at = np.frombuffer(data, np.uint8).reshape(shape[0], -1)
    own = np.arange(shape[0]) // 3 == rank
    seen = np.where(own[:, None], at, at ^ 0xFF).tobytes()
    return Model(model.config, model.tensors | {TENSOR: (dtype, shape, seen)})


def _of_rank(cuts: dict[str, list[Cut]], rank: int) -> list[tuple[str, Cut]]:
    return [(name, cut) for name, of in cuts.items() for cut in of if cut.rank == rank]


def _merged(folder: Path, model: Model, cuts: dict[str, list[Cut]]) -> str:
    """What `check` and, if it is content, `merge` make of it."""
    dump, reference, out = folder / "dump", folder / "reference", folder / "out"
    for rank in range(RANKS.size):
        held, of_rank = _model_of_rank(model, rank), _of_rank(cuts, rank)
        facts = {"facts": dumps.facts_of(model.config) | {"dtype": model.tensors[TENSOR][0]}}
        dumps.write_rank(dump / f"rank-{rank:05d}", held, of_rank, rank, RANKS, (), 1, facts)
    dumps.write_reference(reference, model)
    try:
        check([dump], hf_reference=reference)
    except ShardmergeError as error:
        return f"exit {error.exit_code}, {type(error).__name__}: {error.message()}"
    merge([dump], out, hf_reference=reference, workers=1)
    return _compared("merged", dumps.load(out)[TENSOR], model.tensors[TENSOR])


def _consolidated(folder: Path, model: Model, cuts: dict[str, list[Cut]]) -> str:
    """What consolidate_safetensors_files makes of it."""
    source, out = folder / "pieces", folder / "consolidated"
    for path in (source, out):
        path.mkdir(parents=True)
    for rank in range(RANKS.size):
        _write_pieces(source, _model_of_rank(model, rank), _of_rank(cuts, rank), rank)
    try:
        consolidate_safetensors_files(str(source), str(out), dict.fromkeys(model.tensors, 1))
    except Exception as error:  # whatever it raises is what the table tells
        return f"stops with {type(error).__name__}: {error}"
    return _compared("says done", dumps.load(out)[TENSOR], model.tensors[TENSOR])


def _write_pieces(folder: Path, model: Model, cuts: list[tuple[str, Cut]], rank: int) -> None:
    """A file as HuggingFaceStorageWriter leaves it: plain names, and offsets in the metadata."""
    pieces = {name: (cut, np.frombuffer(dumps.piece_bytes(model, name, cut), np.uint8)) for name, cut in cuts}
    offsets = {name: {"saved_offsets": list(cut.offset)} for name, (cut, _) in pieces.items()}
    given = {
        name: TensorSpec(
            dtype=dumps.RUST_NAMES[model.tensors[name][0]],
            shape=list(cut.shape),
            data_ptr=data.ctypes.data,
            data_len=len(data),
        )
        for name, (cut, data) in pieces.items()
    }
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    path = folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
    path.write_bytes(safetensors.serialize(given, metadata))


Stored = tuple[str, tuple[int, ...], bytes]


def _compared(verb: str, got: Stored, want: Stored) -> str:
    """In words: the same bytes, another shape, or how many elements are wrong and how many of those are zero."""
    if got == want:
        return f"{verb}; every byte is right"
    if got[1] != want[1]:
        return f"{verb}; the tensor is {list(got[1])}, it was {list(want[1])}"
    width = dumps.SIZES[want[0]]
    seen, meant = (np.frombuffer(data, np.uint8).reshape(-1, width) for data in (got[2], want[2]))
    wrong = (seen != meant).any(axis=1)
    zeros = int((seen[wrong] == 0).all(axis=1).sum())
    what = "zero" if zeros == wrong.sum() else "wrong"
    return f"{verb}; {int(wrong.sum())} of {len(wrong)} elements are {what}"


TEXT = """# What a consolidator lets pass

Written by `make docs`, which runs both programs: `consolidate_safetensors_files` of torch.distributed.checkpoint, in
torch {version}, and `shardmerge check` and `merge`. Both get the same pieces of `{tensor}`,
[12, 8], of which each of four ranks holds three rows, and read them rightly if nothing is wrong. In the overlap two
ranks also claim the row next to their own, with other bytes: the file that was read last wins.

| the fault | torch.distributed.checkpoint | shardmerge |
|---|---|---|
{table}
"""


def version() -> str:
    """Of the installed torch, without what it was built for."""
    return str(torch.__version__).partition("+")[0]


def document() -> str:
    """docs/inside/consolidation.md, from running both."""
    with tempfile.TemporaryDirectory() as folder:
        table = "\n".join(
            f"| {row.fault} | {row.consolidator} | {row.shardmerge} |" for row in rows(Path(folder))
        )
    return TEXT.format(version=version(), tensor=TENSOR, table=table)
