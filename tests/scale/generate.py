"""Writes a dump without tensor bytes: real manifests and headers, and sparse files of the right size.

Decides who would write what in a world, by plain arithmetic. Checksums of data are random: only --verify size can
pass. Must not know what a check looks at.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
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
from shardmerge.common.manifest import Columns, FragmentFile, Manifest
from shardmerge.common.manifest_facts import Facts, QuantizationFacts, Scalars
from shardmerge.common.places import MANIFEST, rank_name
from shardmerge.common.quantization.arithmetic import companions_of, module_of
from shardmerge.common.quantization.formats import FORMATS

from .models import Case, World

DTYPES = ["BF16", "F32", "U8", "F8_E4M3"]
ELEMENT_BYTES = np.array([2, 4, 1, 1])
EXPERT = re.compile(r"\.experts\.(\d+)\.")
BY_COLUMNS = re.compile(r"\.(down|o|out)_proj\.weight(_scale)?$")
NEVER_CUT = re.compile(r"\.(gate|fc._latent_proj)\.weight$")
NEVER_PACKED = re.compile(r"(gate|embeddings|lm_head|conv1d|latent_proj)$")
NVFP4 = FORMATS["NVFP4"]
Stored = tuple[str, tuple[int, ...], str]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """The tensors of a pipeline stage: number among all, expert or -1, [n, dims] shape, dimensions, dtype, cut dim."""

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
    if case.as_published:
        _write_weights(case, reference / "model.safetensors")
    (folder / "dump").mkdir()
    write = partial(_write_ranks, case, folder / "dump", workers)
    with ProcessPoolExecutor(workers) as pool:
        return sum(pool.map(write, range(workers)))


def _write_weights(case: Case, path: Path) -> None:
    """Write what a reference says of the dtype of every tensor: a header and a hole."""
    tensors = sorted(blueprint(case.config).tensors())
    size = np.array(
        [np.prod(tensor.shape) * (4 if _is_wide(tensor, case) else 2) for tensor in tensors], np.int64
    )
    ends = np.cumsum(size)
    entries = {
        tensor.name: {
            "dtype": "F32" if _is_wide(tensor, case) else "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [int(end - of), int(end)],
        }
        for tensor, of, end in zip(tensors, size, ends, strict=True)
    }
    body = json.dumps(entries).encode()
    path.write_bytes(len(body).to_bytes(8, "little") + body)
    os.truncate(path, 8 + len(body) + int(ends[-1]))


def _is_wide(tensor: Tensor, case: Case) -> bool:
    """Whether a tensor is float32. Of those that stay float32 in a dump, the published files narrow all but biases."""
    return tensor.float32 and (not case.as_published or tensor.name.endswith("correction_bias"))


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
    table = blueprint(case.config)
    layers, pp = table.dimensions["num_layers"], case.world.pp
    members: list[list[Stored]] = [[] for _ in range(pp)]
    for tensor in table.tensors():
        parts = tensor.name.split(".")
        layer = int(parts[2]) if parts[1] == "layers" and parts[0] != "mtp" else -1
        at = layer * pp // layers if layer >= 0 else 0 if "embed" in tensor.name else pp - 1
        members[at] += _stored(tensor, case)
    return [_stage(tensors) for tensors in members]


def _stored(tensor: Tensor, case: Case) -> Iterator[Stored]:
    """What a tensor is stored as: NVFP4 with its scales where a model is packed, but for what stays as it is."""
    module = module_of(tensor.name)
    if case.packed and module and len(tensor.shape) == 2 and not NEVER_PACKED.search(module):
        yield from companions_of(module, tensor.shape, NVFP4)
    else:
        yield tensor.name, tensor.shape, "F32" if _is_wide(tensor, case) else "BF16"


def _stage(tensors: Sequence[Stored]) -> Stage:
    dims = max(2, *(len(shape) for _, shape, _ in tensors))
    experts = [EXPERT.search(name) for name, _, _ in tensors]
    return Stage(
        names=[name for name, _, _ in tensors],
        expert=np.array([int(found[1]) if found else -1 for found in experts], np.int64),
        shape=np.array([(*shape, *[1] * (dims - len(shape))) for _, shape, _ in tensors], np.int64),
        ndim=np.array([len(shape) for _, shape, _ in tensors], np.int64),
        dtype=np.array([DTYPES.index(dtype) for _, _, dtype in tensors], np.int64),
        cut=np.array([_cut_dim(name, shape) for name, shape, _ in tensors], np.int64),
    )


def _cut_dim(name: str, shape: tuple[int, ...]) -> int:
    """As megatron cuts: vectors and the router never, what leads back to the hidden size by columns, others by rows."""
    if len(shape) < 2 or NEVER_CUT.search(name):
        return -1
    return int(BY_COLUMNS.search(name) is not None)


def _rows(stage: Stage, case: Case, at: int) -> Rows:
    """What the rank at this place in its stage writes; of replicas, every one a share."""
    world: World = case.world
    experts = blueprint(case.config).dimensions["num_experts"]
    number = np.arange(len(stage.expert))
    routed = stage.expert >= 0
    mine = routed & (stage.expert * world.ep // experts == at // world.etp)
    mine &= (stage.cut >= 0) | (number % world.etp == at % world.etp)
    dense = ~routed & (stage.cut >= 0) & (number % (world.stage_size // world.tp) == at // world.tp)
    entire = ~routed & (stage.cut < 0) & (number % world.stage_size == at)
    which = np.flatnonzero(mine | dense | entire)
    parts = np.where(stage.cut < 0, 1, np.where(routed, world.etp, world.tp))[which]
    part = np.where(stage.cut < 0, 0, np.where(routed, at % world.etp, at % world.tp))[which]
    local = stage.shape[which].copy()
    offset = np.zeros_like(local)
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
    (folder / MANIFEST).write_bytes(manifests.encode(made))


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
        facts=Facts(
            dtype="BF16",
            dimensions=blueprint(case.config).dimensions,
            dtype_from_reference=case.as_published,
        ),
        files=tuple(files),
        names=names,
        dtypes=DTYPES,
        columns=columns,
        quantization=_quantization(names) if case.packed else None,
    )


def _quantization(names: list[str]) -> QuantizationFacts:
    """What a rank says of the weights it writes a part of: a weight with block scales is packed, a matrix is not."""
    packed = [name.removesuffix(".weight_scale") for name in names if name.endswith(".weight_scale")]
    modules = {module for name in names if name.endswith(".weight") and (module := module_of(name))}
    plain = [module for module in sorted(modules - {*packed}) if NEVER_PACKED.search(module)]
    scalars = sorted(f"{module}.{suffix}" for module in packed for suffix in NVFP4.scalars)
    return QuantizationFacts(
        layers={NVFP4.name: sorted(packed)},
        excluded=plain,
        kv_cache={},
        scalars=Scalars(scalars, [1 + zlib.crc32(name.encode()) % 1000 / 1000 for name in scalars]),
        uncalibrated=[],
        producer={"name": "modelopt", "version": "0.47.0"},
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
