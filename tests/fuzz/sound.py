"""Sound files of every kind, made by the code itself: what fuzzing begins with, and puts back after each input.

A dump, a reference with weights, an output with its records, what the parts of a merge leave, and a quantized
checkpoint that is written by hand. They are small, because a change must be likely to hit something.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardmerge.common import places
from shardmerge.phase2_merge import merge, merge_part
from tests.dumps import dumps, saved

from .verdict import NotAllowedError

SHARD_BYTES = 4_000
LAYER = "model.layers.0.mlp."
FACTS_OF_A_QUANTIZED_RANK: dict[str, Any] = {
    "layers": {"NVFP4": [f"{LAYER}up_proj"]},
    "excluded": ["lm_head"],
    "kv_cache": {"FP8": ["model.layers.0.self_attn"]},
    "scalars": {"names": [f"{LAYER}up_proj.input_scale"], "values": [0.5]},
    "uncalibrated": [],
    "producer": {"name": "modelopt", "version": "0.47"},
}
FP8_GROUP = {"num_bits": 8, "type": "float", "dynamic": False}
DECLARATIONS: tuple[dict[str, Any], ...] = (
    {
        "producer": {"name": "modelopt", "version": "0.47"},
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": "FP8",
            "group_size": 16,
            "exclude_modules": ["lm_head", "model.layers.*.self_attn*"],
        },
    },
    {
        "quantization": {
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {
                f"{LAYER}up_proj": {"quant_algo": "NVFP4", "group_size": 16},
                f"{LAYER}down_proj": {"quant_algo": "FP8"},
            },
        }
    },
)
CONFIG_DECLARATIONS: tuple[dict[str, Any], ...] = (
    {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "ignore": ["lm_head", "model.layers.*.self_attn*"],
        "kv_cache_scheme": FP8_GROUP,
        "config_groups": {"group_0": {"weights": FP8_GROUP | {"group_size": 16}, "targets": ["Linear"]}},
    },
    {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    },
)


@dataclass(frozen=True, slots=True)
class Sound:
    """Where everything lies, below `folder`."""

    folder: Path

    @property
    def dump(self) -> Path:
        """Two ranks, with parts of tensors and entire ones."""
        return self.folder / "world" / "dump"

    @property
    def reference(self) -> Path:
        """Of the dump, without weights."""
        return self.folder / "world" / "reference"

    @property
    def one_rank(self) -> Path:
        """A dump of one rank whose manifest has facts of every kind."""
        return self.folder / "one_rank"

    @property
    def weights(self) -> Path:
        """A reference with weights, an index, a tokenizer and Python modules."""
        return self.folder / "weights"

    @property
    def out(self) -> Path:
        """The dump, merged."""
        return self.folder / "out"

    @property
    def parts(self) -> Path:
        """What two parts of a merge leave, which is to be published under the name `published`."""
        return places.partial(self.published)

    @property
    def published(self) -> Path:
        """Where nothing lies."""
        return self.folder / "published"

    @property
    def saved(self) -> Path:
        """A checkpoint that megatron-core saved, and the reference of its model."""
        return self.folder / "saved"

    @property
    def quantized(self) -> Path:
        """A checkpoint of which one matrix is NVFP4, as another program might write it."""
        return self.folder / "quantized"


def make(folder: Path) -> Sound:
    """Make everything below an empty folder."""
    sound = Sound(folder)
    model, topology = dumps.model_of(dumps.moe_config(1, 2)), dumps.Topology(tp=2)
    dumps.write_dump(sound.dump, model, dumps.cuts_of(model, topology), topology)
    dumps.write_reference(sound.reference, model)
    merge([sound.dump], sound.out, hf_reference=sound.reference, max_shard_bytes=SHARD_BYTES, workers=1)
    for part in ("1/2", "2/2"):
        merge_part(
            [sound.dump],
            sound.published,
            part,
            hf_reference=sound.reference,
            max_shard_bytes=SHARD_BYTES,
            workers=1,
        )
    dense, alone = dumps.model_of(dumps.dense_config(1)), dumps.Topology()
    facts: dict[str, Any] = {
        "quantization": FACTS_OF_A_QUANTIZED_RANK,
        "health": {"nonfinite": [[0, 1, 2]], "all_zero": [1]},
        "drops": {"rotary tables": 2},
        "statistics": {"seconds": 1.5},
        "producer": {"shardmerge": "0.1.0"},
    }
    dumps.write_dump(sound.one_rank, dense, dumps.cuts_of(dense, alone), alone, **facts)
    _write_weights(sound.weights, dense)
    _write_quantized(sound.quantized)
    saved.copy(sound.saved)
    return sound


def _write_weights(folder: Path, model: dumps.Model) -> None:
    """Write a reference of two files of weights."""
    dumps.write_reference(folder, model)
    names = sorted(model.tensors)
    shards = {places.shard(1, 2): names[:3], places.shard(2, 2): names[3:]}
    for shard, held in shards.items():
        dumps.save(folder / shard, {name: model.tensors[name] for name in held})
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    size = sum(len(data) for _, _, data in model.tensors.values())
    _write_json(folder / places.INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    auto_map = {"AutoModel": "modeling_tiny.Tiny", "AutoTokenizer": ["tokenizing.Slow", None]}
    _write_json(folder / "tokenizer_config.json", {"auto_map": auto_map})
    (folder / "modeling_tiny.py").write_text("from .layers import Layer\n\n\nclass Tiny(Layer): ...\n")
    (folder / "layers.py").write_text("class Layer: ...\n")


def _write_quantized(folder: Path) -> None:
    folder.mkdir()
    tensors = {
        "lm_head.weight": ("BF16", (4, 16), bytes(128)),
        f"{LAYER}up_proj.weight": ("U8", (16, 8), bytes(range(128))),
        f"{LAYER}up_proj.weight_scale": ("F8_E4M3", (16, 1), b"\x38" * 16),
        f"{LAYER}up_proj.weight_scale_2": ("F32", (), b"\x00\x00\x80\x3f"),
        f"{LAYER}up_proj.input_scale": ("F32", (), b"\x00\x00\x80\x3f"),
    }
    dumps.save(folder / places.SINGLE, tensors)
    declared = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]}
    hf = {
        "quant_algo": "NVFP4",
        "group_size": 16,
        "exclude_modules": ["lm_head"],
        "kv_cache_quant_algo": None,
    }
    _write_json(folder / places.CONFIG, {"architectures": ["Unknown"], "quantization_config": declared})
    _write_json(folder / places.HF_QUANT_CONFIG, {"quantization": hf})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


Stamp = tuple[int, int, int]


@dataclass(slots=True)
class Files:
    """A folder of sound files, in which one at a time holds something else."""

    folder: Path
    sound: dict[str, bytes] = field(init=False)
    stamps: dict[str, Stamp] = field(init=False)

    def __post_init__(self) -> None:
        self.sound = dumps.tree(self.folder)
        self.stamps = self._stamps()

    @contextmanager
    def holding(self, name: str, content: bytes, *, may_change: bool = False) -> Iterator[Path]:
        """Give one file other content while the block runs.

        Args:
            name: Of the file, relative to the folder. It need not exist.
            content: What it holds meanwhile.
            may_change: Whether the block may change files too.

        Returns:
            A context manager whose value is the folder.

        Raises:
            NotAllowedError: The block changed a file and may not.
        """
        _replace(self.folder / name, content)
        before = {other: stamp for other, stamp in self.stamps.items() if other != name}
        try:
            yield self.folder
        finally:
            after = self._stamps()
            after.pop(name, None)  # it is put back in any case
            self._put_back({name} if after == before else self.sound.keys() | after.keys() | {name}, after)
        if after != before and not may_change:
            raise NotAllowedError(f"a command that only looks has changed something beside {name}")

    def _put_back(self, names: Collection[str], now: dict[str, Stamp]) -> None:
        """Make these files what they were, unless they are that now."""
        for name in names:
            path = self.folder / name
            if name not in self.sound:
                path.unlink(missing_ok=True)
            elif now.get(name) != self.stamps[name]:
                path.parent.mkdir(parents=True, exist_ok=True)
                _replace(path, self.sound[name])
                self.stamps[name] = _stamp(os.lstat(path))

    def _stamps(self) -> dict[str, Stamp]:
        """Return the stamp of every file, by its name relative to the folder."""
        found: dict[str, Stamp] = {}
        waiting = [("", str(self.folder))] if self.folder.is_dir() else []
        while waiting:
            prefix, folder = waiting.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((f"{prefix}{entry.name}/", entry.path))
                    else:
                        found[prefix + entry.name] = _stamp(entry.stat(follow_symlinks=False))
        return found


def _replace(path: Path, content: bytes) -> None:
    """Give a file other content, and its hard links none of it: a shard may be one of a fragment."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _stamp(state: os.stat_result) -> Stamp:
    """Return inode, size and time, one of which differs after a change. A hard link to it changes none of them."""
    return state.st_ino, state.st_size, state.st_mtime_ns
