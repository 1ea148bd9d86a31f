"""Writes a dump without tensor bytes: real manifests and headers, and sparse files of the right size.

Decides who would write what in a world, by plain arithmetic. Checksums of data are random: only --verify size can
pass. Must not know what a check looks at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shardmerge.common import manifest as manifests
from shardmerge.common.architectures import Tensor, blueprint
from shardmerge.common.manifest import Columns, FragmentFile, Manifest, rank_name

from .models import Case, World

DTYPES = ["BF16", "F32"]
ELEMENT_BYTES = np.array([2, 4])
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """The tensors of a pipeline stage: number among all, expert or -1, [n, 2] shape, dimensions, dtype, cut dim."""

    names: list[str]
    expert: Ints
    shape: Ints
    ndim: Ints
    dtype: Ints
    cut: Ints  # 0 or 1; -1: never cut


@dataclass(frozen=True)
class Rows:
    """What one rank writes, as columns; `which` numbers the tensors of its stage."""

    which: Ints
    offset: Ints
    local: Ints


def generate(case: Case, folder: Path, workers: int = 2) -> int:
    """Write `folder`/dump and `folder`/reference; how many rectangles. Raises FileExistsError."""
    reference = folder / "reference"
    reference.mkdir(parents=True)
    (reference / "config.json").write_text(json.dumps(case.config))
    (folder / "dump").mkdir()
    write = partial(_write_ranks, case, folder / "dump", workers)
    with ProcessPoolExecutor(workers) as pool:
        return sum(pool.map(write, range(workers)))


def _write_ranks(case: Case, dump: Path, step: int, first: int) -> int:
    stages = _stages(case)
    count = 0
    for rank in range(first, case.world.size, step):
        stage = stages[rank // case.world.stage_size]
        rows = _rows(stage, case, rank % case.world.stage_size)
        _write_rank(case, dump / rank_name(rank), stage, rows, rank)
        count += len(rows.which)
    return count


def _stages(case: Case) -> list[Stage]:
    layers, pp = case.config["num_hidden_layers"], case.world.pp
    members: list[list[Tensor]] = [[] for _ in range(pp)]
    for tensor in blueprint(case.config).tensors():
        parts = tensor.name.split(".")
        layer = int(parts[2]) if parts[1] == "layers" else -1
        at = layer * pp // layers if layer >= 0 else 0 if "embed" in tensor.name else pp - 1
        members[at].append(tensor)
    return [_stage(tensors) for tensors in members]


def _stage(tensors: Sequence[Tensor]) -> Stage:
    def column(value: Callable[[Tensor], int]) -> Ints:
        return np.array([value(tensor) for tensor in tensors], np.int64)

    return Stage(
        names=[tensor.name for tensor in tensors],
        expert=column(lambda t: int(t.name.split(".")[5]) if ".mlp.experts." in t.name else -1),
        shape=np.array([(*t.shape, 1)[:2] for t in tensors], np.int64),
        ndim=column(lambda t: len(t.shape)),
        dtype=column(lambda t: int(t.float32)),
        cut=column(_cut_dim),
    )


def _cut_dim(tensor: Tensor) -> int:
    """As megatron cuts: vectors and the router never, what leads back to the hidden size by columns, others by rows."""
    if len(tensor.shape) == 1 or tensor.name.endswith("mlp.gate.weight"):
        return -1
    return int(tensor.name.endswith(("down_proj.weight", "o_proj.weight")))


def _rows(stage: Stage, case: Case, at: int) -> Rows:
    """What the rank at this place in its stage writes; of replicas, every one a share."""
    world: World = case.world
    experts = case.config.get("num_experts") or case.config["n_routed_experts"]
    number = np.arange(len(stage.expert))
    routed = stage.expert >= 0
    mine = routed & (stage.expert * world.ep // experts == at // world.etp)
    dense = ~routed & (stage.cut >= 0) & (number % (world.stage_size // world.tp) == at // world.tp)
    entire = ~routed & (stage.cut < 0) & (number % world.stage_size == at)
    which = np.flatnonzero(mine | dense | entire)
    parts = np.where(routed, world.etp, np.where(stage.cut < 0, 1, world.tp))[which]
    part = np.where(routed, at % world.etp, np.where(stage.cut < 0, 0, at % world.tp))[which]
    offset, local = np.zeros((len(which), 2), np.int64), stage.shape[which].copy()
    row, dim = np.arange(len(which)), np.maximum(stage.cut[which], 0)
    whole = local[row, dim]
    offset[row, dim] = whole * part // parts
    local[row, dim] = whole * (part + 1) // parts - offset[row, dim]
    return Rows(which, offset, local)


def _write_rank(case: Case, folder: Path, stage: Stage, rows: Rows, rank: int) -> None:
    folder.mkdir()
    entire = (rows.local == stage.shape[rows.which]).all(axis=1)
    files: list[FragmentFile] = []
    begins: list[Ints] = []
    order: list[Ints] = []
    for name, members in (("whole", np.flatnonzero(entire)), ("split", np.flatnonzero(~entire))):
        if len(members):
            file, begin = _write_fragment(folder / f"{name}-00001.safetensors", stage, rows, members)
            files.append(file)
            begins.append(begin)
            order.append(members)
    members = np.concatenate(order) if order else np.zeros(0, np.int64)
    columns = _columns(stage, rows, members, begins, rank)
    names = [stage.names[at] for at in rows.which[members].tolist()]
    made = _manifest(case, rank, files, names, columns)
    (folder / manifests.FILE_NAME).write_bytes(manifests.encode(made))


def _write_fragment(path: Path, stage: Stage, rows: Rows, members: Ints) -> tuple[FragmentFile, Ints]:
    """Header and a hole; where each rectangle begins in the file."""
    sizes = _sizes(stage, rows, members)
    ends = np.cumsum(sizes)
    entries = ",".join(sorted(_entries(stage, rows, members, ends - sizes, ends)))
    body = f'{{"__metadata__":{{"format":"pt"}},{entries}}}'.encode()
    padded = -(-(8 + len(body)) // 4096) * 4096 - 8
    head = padded.to_bytes(8, "little") + body.ljust(padded)
    path.write_bytes(head)
    os.truncate(path, len(head) + int(ends[-1]))
    found = FragmentFile(path.name, len(head) + int(ends[-1]), len(head), xxhash.xxh3_128_hexdigest(head))
    return found, len(head) + ends - sizes


def _entries(stage: Stage, rows: Rows, members: Ints, begins: Ints, ends: Ints) -> Iterator[str]:
    which = rows.which[members]
    flat = (which, stage.ndim[which], stage.dtype[which], begins, ends)
    boxes = (stage.shape[which], rows.local[members], rows.offset[members])
    columns = [column.tolist() for column in (*flat, *boxes)]
    for at, ndim, dtype, begin, end, whole, local, offset in zip(*columns, strict=True):
        cut = "" if local == whole else "@" + ",".join(map(str, offset[:ndim]))
        shape = ",".join(map(str, local[:ndim]))
        offsets = f'"data_offsets":[{begin},{end}]'
        yield f'"{stage.names[at]}{cut}":{{{offsets},"dtype":"{DTYPES[dtype]}","shape":[{shape}]}}'


def _sizes(stage: Stage, rows: Rows, members: Ints) -> Ints:
    found: Ints = rows.local[members].prod(axis=1) * ELEMENT_BYTES[stage.dtype[rows.which[members]]]
    return found


def _columns(stage: Stage, rows: Rows, members: Ints, begins: list[Ints], rank: int) -> Columns:
    which, count = rows.which[members], len(members)
    begin = np.concatenate(begins) if begins else np.zeros(0, np.int64)
    digests = np.random.default_rng(rank).bytes(16 * count).hex()
    return Columns(
        name=list(range(count)),
        file=[file for file, of in enumerate(begins) for _ in range(len(of))],
        dtype=stage.dtype[which].tolist(),
        ndim=stage.ndim[which].tolist(),
        global_shape=stage.shape[which].T.tolist(),
        local_shape=rows.local[members].T.tolist(),
        global_offset=rows.offset[members].T.tolist(),
        begin=begin.tolist(),
        end=(begin + _sizes(stage, rows, members)).tolist(),
        owner=[rank] * count,
        xxh3_128=[digests[at : at + 32] for at in range(0, 32 * count, 32)],
    )


def _manifest(
    case: Case, rank: int, files: list[FragmentFile], names: list[str], columns: Columns
) -> Manifest:
    coordinates, groups = _place(case.world, rank)
    return Manifest(
        run_id="scale",
        step=1,
        attempt="0",
        rank=rank,
        world_size=case.world.size,
        coordinates=coordinates,
        groups=groups,
        architecture=case.config["architectures"][0],
        facts={"dtype": "BF16"},
        files=tuple(files),
        names=names,
        dtypes=DTYPES,
        columns=columns,
    )


def _place(world: World, rank: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Coordinates and groups by plain arithmetic: tp and etp count fastest, then dp and ep, then pp."""
    pp, at = divmod(rank, world.stage_size)
    base = pp * world.stage_size
    dp, tp = divmod(at, world.tp)
    ep, etp = divmod(at, world.etp)
    groups = {
        "pp": list(range(at, world.size, world.stage_size)),
        "tp": list(range(base + dp * world.tp, base + (dp + 1) * world.tp)),
        "dp": list(range(base + tp, base + world.stage_size, world.tp)),
        "cp": [rank],
        "ep": list(range(base + etp, base + world.stage_size, world.etp)),
        "etp": list(range(base + ep * world.etp, base + (ep + 1) * world.etp)),
        "edp": [rank],
    }
    return {"pp": pp, "tp": tp, "dp": dp, "cp": 0, "ep": ep, "etp": etp, "edp": 0}, groups
