"""Dumps for the tests of phase two: arrays cut into rectangles and written with the safetensors library.

Decides nothing that the code under test decides: who writes what is given, tensor lists are written by hand, bytes
are what numpy makes of a slice. Real dumps come from phase one; its tests are elsewhere.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shardmerge.common import manifest as manifests
from shardmerge.common.manifest import FragmentFile, Manifest, Placed
from shardmerge.common.manifest_facts import Facts, Health, QuantizationFacts
from shardmerge.common.rectangle import Rectangle

Array = np.ndarray[Any, Any]
SIZES = {"BF16": 2, "F32": 4, "F16": 2, "U8": 1, "F64": 8, "I64": 8, "BOOL": 1, "F8_E4M3": 1}
RUST_NAMES = {
    "BF16": "bfloat16", "F32": "float32", "F16": "float16", "U8": "uint8", "F64": "float64", "I64": "int64",
    "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
}  # fmt: skip
HIDDEN, VOCAB, HEADS, GROUPS, HEAD_DIM, FFN = 8, 24, 4, 2, 4, 12


@dataclass(frozen=True)
class Cut:
    """A rectangle and the rank that writes it."""

    rank: int
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass
class Model:
    """Tensors by Hugging Face name: raw bytes in `dtype`, shape as given."""

    config: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        """The tensor, each element as bytes: [..., element size]."""
        dtype, shape, data = self.tensors[name]
        return np.frombuffer(data, np.uint8).reshape(*shape, SIZES[dtype])


def dense_config(layers: int = 2, **more: Any) -> dict[str, Any]:
    """A tiny Qwen3."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        **more,
    }


def moe_config(layers: int = 2, experts: int = 4, **more: Any) -> dict[str, Any]:
    """A tiny Qwen3-MoE."""
    own = {"num_experts": experts, "moe_intermediate_size": 20, "architectures": ["Qwen3MoeForCausalLM"]}
    return dense_config(layers) | {"model_type": "qwen3_moe"} | own | more


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of these two configs, as transformers names them, written down by hand."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= {
            at + "input_layernorm.weight": (HIDDEN,),
            at + "post_attention_layernorm.weight": (HIDDEN,),
            at + "self_attn.q_proj.weight": (16, HIDDEN),
            at + "self_attn.k_proj.weight": (8, HIDDEN),
            at + "self_attn.v_proj.weight": (8, HIDDEN),
            at + "self_attn.o_proj.weight": (HIDDEN, 16),
            at + "self_attn.q_norm.weight": (HEAD_DIM,),
            at + "self_attn.k_norm.weight": (HEAD_DIM,),
        }
        found |= _moe(at, config) if "num_experts" in config else _mlp(at + "mlp.", FFN)
    return found


def facts_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What phase one says of these two models, written down by hand. Nothing is told of their settings."""
    dimensions = {
        "num_layers": config["num_hidden_layers"],
        "num_experts": config.get("num_experts", 0),
        "hidden": HIDDEN,
        "vocab": VOCAB,
        "heads": HEADS,
        "groups": GROUPS,
        "head_dim": HEAD_DIM,
        "q": 16,
        "kv": 8,
        "ffn": FFN,
    }
    if "num_experts" in config:
        dimensions["moe_ffn"] = config["moe_intermediate_size"]
    return {"dtype": "BF16", "dimensions": dimensions, "settings": {}}


def _mlp(at: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        at + "gate_proj.weight": (width, HIDDEN),
        at + "up_proj.weight": (width, HIDDEN),
        at + "down_proj.weight": (HIDDEN, width),
    }


def _moe(at: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {at + "mlp.gate.weight": (config["num_experts"], HIDDEN)}
    for expert in range(config["num_experts"]):
        found |= _mlp(f"{at}mlp.experts.{expert}.", config["moe_intermediate_size"])
    return found


def model_of(config: dict[str, Any], dtype: str = "BF16", seed: int = 0) -> Model:
    """Random bytes in every tensor."""
    generator = np.random.default_rng(seed)
    made = Model(config)
    for name, shape in shapes_of(config).items():
        made.tensors[name] = (dtype, shape, generator.bytes(int(np.prod(shape)) * SIZES[dtype]))
    return made


@dataclass(frozen=True)
class Topology:
    """pp stages of (tp x ep) ranks; tp-ranks are neighbours, then ep, then pp, as megatron orders them."""

    tp: int = 1
    ep: int = 1
    pp: int = 1

    @property
    def size(self) -> int:
        return self.tp * self.ep * self.pp

    def rank(self, tp: int, ep: int, pp: int) -> int:
        return (pp * self.ep + ep) * self.tp + tp

    def coordinates(self, rank: int) -> dict[str, int]:
        return {"tp": rank % self.tp, "ep": rank // self.tp % self.ep, "pp": rank // (self.tp * self.ep)}

    def groups(self, rank: int) -> dict[str, list[int]]:
        at = self.coordinates(rank)
        sizes = {"tp": self.tp, "ep": self.ep, "pp": self.pp}
        return {axis: [self.rank(**{**at, axis: i}) for i in range(size)] for axis, size in sizes.items()}


def cuts_of(model: Model, topology: Topology) -> dict[str, list[Cut]]:
    """As Megatron would: layers by stage, experts by ep rank, matrices by tp rank (o_proj and down_proj by columns)."""
    return {name: list(_cuts(name, shape, model, topology)) for name, (_, shape, _) in model.tensors.items()}


def _cuts(name: str, shape: tuple[int, ...], model: Model, topology: Topology) -> Iterable[Cut]:
    layers = model.config["num_hidden_layers"]
    stage = 0 if "embed" in name else topology.pp - 1
    if ".layers." in name:
        stage = int(name.split(".")[2]) * topology.pp // layers
    ep = 0
    if ".experts." in name:
        ep = int(name.split(".")[5]) * topology.ep // model.config["num_experts"]
    if topology.tp == 1 or len(shape) == 1 or name.endswith("mlp.gate.weight"):
        yield Cut(topology.rank(0, ep, stage), (0,) * len(shape), shape)
        return
    dim = 1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0
    width = shape[dim] // topology.tp
    for tp in range(topology.tp):
        offset, local = [0] * len(shape), list(shape)
        offset[dim], local[dim] = tp * width, width
        yield Cut(topology.rank(tp, ep, stage), tuple(offset), tuple(local))


@dataclass
class Held:
    """A rectangle that a rank holds and another wrote."""

    rank: int
    owner: int
    name: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    data: bytes


def write_dump(
    folder: Path,
    model: Model,
    cuts: Mapping[str, Sequence[Cut]],
    topology: Topology,
    *,
    held: Sequence[Held] = (),
    split_files: int = 1,
    **head: Any,
) -> Path:
    """Write a directory per rank. `head` replaces fields of the manifests; a callable is given the rank."""
    by_rank: dict[int, list[tuple[str, Cut]]] = defaultdict(list)
    for name, pieces in cuts.items():
        for cut in pieces:
            by_rank[cut.rank].append((name, cut))
    for rank in range(topology.size):
        own = [one for one in held if one.rank == rank]
        write_rank(folder / f"rank-{rank:05d}", model, by_rank[rank], rank, topology, own, split_files, head)
    return folder


def write_rank(
    folder: Path,
    model: Model,
    cuts: Sequence[tuple[str, Cut]],
    rank: int,
    topology: Topology,
    held: Sequence[Held],
    split_files: int,
    head: Mapping[str, Any],
) -> None:
    folder.mkdir(parents=True)
    whole = [one for one in cuts if one[1].shape == model.tensors[one[0]][1]]
    split = [one for one in cuts if one[1].shape != model.tensors[one[0]][1]]
    files = [("whole-00001.safetensors", whole)]
    files += [(f"split-{i + 1:05d}.safetensors", split[i::split_files]) for i in range(split_files)]
    files = [(name, members) for name, members in files if members]
    placed: list[Placed] = []
    facts = []
    for number, (name, members) in enumerate(files):
        placed += _write_fragment(folder / name, number, model, members, rank)
        facts.append(file_facts(folder / name))
    for one in held:
        rectangle = Rectangle(
            one.name, model.tensors[one.name][0], model.tensors[one.name][1], one.offset, one.shape
        )
        placed.append(Placed(rectangle, -1, 0, 0, one.owner, xxhash.xxh3_128_hexdigest(one.data)))
    write_manifest(folder, placed, facts, rank, topology, model, head)


def file_facts(path: Path) -> FragmentFile:
    """Size and header checksum of a file, read by hand."""
    data = path.read_bytes()
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    return FragmentFile(path.name, len(data), len(header), xxhash.xxh3_128_hexdigest(header))


def write_manifest(
    folder: Path,
    placed: Sequence[Placed],
    files: Sequence[FragmentFile],
    rank: int,
    topology: Topology,
    model: Model,
    head: Mapping[str, Any],
) -> None:
    names, dtypes, columns = manifests.columns(placed)
    given: dict[str, Any] = {
        "run_id": "run-1",
        "step": 100,
        "attempt": "0",
        "rank": rank,
        "world_size": topology.size,
        "coordinates": topology.coordinates(rank),
        "groups": topology.groups(rank),
        "architecture": model.config["architectures"][0],
        "facts": facts_of(model.config),
        "health": {},
        "quantization": {},
        "files": tuple(files),
        "names": names,
        "dtypes": dtypes,
        "columns": columns,
    }
    given |= {key: value(rank) if callable(value) else value for key, value in head.items()}
    given |= {"facts": Facts.of_json(given["facts"]), "health": Health.of_json(given["health"])}
    quantization = given["quantization"]
    given |= {"quantization": QuantizationFacts.of_json(quantization) if quantization else None}
    (folder / "manifest.json").write_bytes(manifests.encode(Manifest(**given)))


def piece_bytes(model: Model, name: str, cut: Cut) -> bytes:
    """What numpy makes of the slice."""
    box = tuple(slice(at, at + size) for at, size in zip(cut.offset, cut.shape, strict=True))
    return np.ascontiguousarray(model.array(name)[box]).tobytes()


def _write_fragment(
    path: Path, number: int, model: Model, members: Sequence[tuple[str, Cut]], rank: int
) -> Iterable[Placed]:
    pieces = {}
    for name, cut in members:
        rectangle = Rectangle(name, model.tensors[name][0], model.tensors[name][1], cut.offset, cut.shape)
        key = name if cut.shape == rectangle.global_shape else f"{name}@{','.join(map(str, cut.offset))}"
        pieces[key] = (rectangle, piece_bytes(model, name, cut))
    save(path, {key: (r.dtype, r.local_shape, data) for key, (r, data) in pieces.items()})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for key, (rectangle, data) in pieces.items():
        begin, end = header[key]["data_offsets"]
        yield Placed(rectangle, number, start + begin, start + end, rank, xxhash.xxh3_128_hexdigest(data))


def save(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Write a file with the safetensors library, which who writes no file here need not have."""
    import safetensors
    from safetensors import TensorSpec

    arrays = {
        key: np.frombuffer(data, np.uint8) for key, (_, _, data) in tensors.items()
    }  # alive until written
    given = {
        key: TensorSpec(
            dtype=RUST_NAMES[dtype], shape=list(shape), data_ptr=arrays[key].ctypes.data, data_len=len(data)
        )
        for key, (dtype, shape, data) in tensors.items()
    }
    path.write_bytes(safetensors.serialize(given, {"format": "pt"}))


def load(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of an output, read by the safetensors library; names must be unique over all files."""
    import safetensors

    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in safetensors.deserialize(path.read_bytes()):
            assert name not in found
            found[name] = (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
    return found


def write_reference(folder: Path, model: Model, *, weights: bool = False) -> Path:
    """A Hugging Face directory: config.json, a tokenizer file, and on demand the weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.config, indent=2))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    if weights:
        save(folder / "model.safetensors", model.tensors)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def grid(
    shape: Sequence[int], edges: Sequence[Sequence[int]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(offset, shape) of all cells of a tensor cut at `edges` along each dimension."""
    cuts = [
        sorted({0, size, *(e for e in inner if e < size)}) for size, inner in zip(shape, edges, strict=True)
    ]
    spans = [list(itertools.pairwise(cut)) if len(cut) > 1 else [(0, 0)] for cut in cuts]
    return [(tuple(a for a, _ in cell), tuple(b - a for a, b in cell)) for cell in itertools.product(*spans)]
