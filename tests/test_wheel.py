"""The wheel, installed alone into an empty environment, merges a dump: no torch, no megatron, no source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from shardmerge.common import manifest, safetensors_header
from shardmerge.common.manifest import FragmentFile, Manifest, Placed
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.rectangle import Rectangle

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "phase1_dump", "phase2_merge")
Array = NDArray[np.float32]
pytestmark = pytest.mark.xdist_group("wheel")  # one environment for all

HIDDEN, QUERY, KEY, FFN, VOCAB = 12, 16, 8, 20, 10
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "num_hidden_layers": 1,
    "hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "intermediate_size": FFN, "vocab_size": VOCAB, "tie_word_embeddings": True,
}  # fmt: skip
DIMENSIONS = {
    "num_layers": 1, "num_experts": 0, "hidden": HIDDEN, "vocab": VOCAB, "heads": 4, "groups": 2, "head_dim": 4,
    "q": QUERY, "kv": KEY, "ffn": FFN,
}  # fmt: skip
LAYER = "model.layers.0."
# name -> shape and the dimension that tensor parallelism cuts, None if it cuts none
TENSORS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "model.embed_tokens.weight": ((VOCAB, HIDDEN), 0),
    "model.norm.weight": ((HIDDEN,), None),
    LAYER + "input_layernorm.weight": ((HIDDEN,), None),
    LAYER + "post_attention_layernorm.weight": ((HIDDEN,), None),
    LAYER + "self_attn.q_proj.weight": ((QUERY, HIDDEN), 0),
    LAYER + "self_attn.k_proj.weight": ((KEY, HIDDEN), 0),
    LAYER + "self_attn.v_proj.weight": ((KEY, HIDDEN), 0),
    LAYER + "self_attn.o_proj.weight": ((HIDDEN, QUERY), 1),
    LAYER + "mlp.gate_proj.weight": ((FFN, HIDDEN), 0),
    LAYER + "mlp.up_proj.weight": ((FFN, HIDDEN), 0),
    LAYER + "mlp.down_proj.weight": ((HIDDEN, FFN), 1),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    _pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source))
    (found,) = built.glob("shardmerge-*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment that holds the wheel and what it depends on, no extra."""
    folder = tmp_path_factory.mktemp("empty-environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pins = ROOT / ".constraints" / ("py311.txt" if sys.version_info[:2] == (3, 11) else "py312.txt")
    _pip(str(folder / "bin" / "python"), "install", "--constraint", str(pins), str(wheel))
    return folder / "bin"


@pytest.fixture(scope="module")
def arrays() -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, (shape, _) in TENSORS.items()}


def test_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        f"shardmerge/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.name == "py.typed" or path.suffix == ".py"
    }
    main = "shardmerge/common/program/__main__.py"
    assert packed == sources - {main} | {"shardmerge/__main__.py"}


def test_merge_only_installation_brings_no_torch(environment: Path) -> None:
    listed = _run([environment / "python", "-m", "pip", "list", "--format", "json"])
    names = {one["name"].lower() for one in json.loads(listed)}
    assert not names & {"torch", "megatron-core", "transformers", "transformer-engine", "nvidia-modelopt"}
    assert "Usage: shardmerge merge" in _run([environment / "shardmerge", "merge", "--help"])
    assert "Usage: shardmerge merge" in _run([environment / "python", "-m", "shardmerge", "merge", "--help"])
    assert "Usage: shardmerge dump" in _run([environment / "shardmerge", "dump", "--help"])


def test_dump_without_torch_says_which_extra_to_install(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    given = [
        "--model-provider",
        "no.matter:what",
        "--hf-reference",
        str(tmp_path),
        "--run-id",
        "r",
        "--step",
        "1",
    ]
    refused = subprocess.run(
        [environment / "shardmerge", "dump", *given, "--out", str(tmp_path / "dump")],
        capture_output=True,
        text=True,
        check=False,
        env=_clean(),
    )
    assert refused.returncode == 2
    assert "shardmerge[dump]" in refused.stderr


def test_merge_only_installation_merges_a_dump(
    environment: Path, arrays: dict[str, Array], tmp_path: Path
) -> None:
    dump, out, reference = tmp_path / "dump", tmp_path / "out", tmp_path / "reference"
    reference.mkdir()
    (reference / "config.json").write_text(json.dumps(CONFIG))
    for rank in (0, 1):
        _write_rank(dump, rank, arrays)
    _run([environment / "shardmerge", "merge", dump, out, "--hf-reference", reference])
    merged: dict[str, Array] = {}
    for file in out.glob("*.safetensors"):
        merged |= load_file(file)
    assert set(merged) == set(TENSORS)
    assert [name for name in TENSORS if merged[name].tobytes() != arrays[name].tobytes()] == []


def _write_rank(dump: Path, rank: int, arrays: dict[str, Array]) -> None:
    """What rank `rank` of two tensor-parallel ranks writes: its half of what is cut; rank 0 all that is not."""
    folder = dump / f"rank-{rank:05d}"
    folder.mkdir(parents=True)
    rectangles = [r for r in (_rectangle(name, rank) for name in TENSORS) if not r.is_whole or rank == 0]
    files: list[FragmentFile] = []
    placed: list[Placed] = []
    for kind, whole in (("whole", True), ("split", False)):
        parts = {r.fragment_key: (r, _part(arrays[r.name], r)) for r in rectangles if r.is_whole is whole}
        if parts:
            path = folder / f"{kind}-00001.safetensors"
            save_file({key: part for key, (_, part) in parts.items()}, path, {"format": "pt"})
            placed += _placed(path, {key: r for key, (r, _) in parts.items()}, len(files), rank)
            files.append(_fragment_file(path))
    names, dtypes, columns = manifest.columns(placed)
    made = Manifest(
        run_id="wheel", step=1, attempt="0", rank=rank, world_size=2,
        coordinates={"tp": rank, "cp": 0, "pp": 0, "dp": 0, "ep": 0, "etp": rank, "edp": 0},
        groups={"tp": [0, 1], "cp": [rank], "pp": [rank], "dp": [rank], "ep": [rank], "etp": [0, 1], "edp": [rank]},
        architecture="LlamaForCausalLM", facts=Facts(dtype="F32", dimensions=DIMENSIONS), files=tuple(files),
        names=names, dtypes=dtypes, columns=columns,
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(manifest.encode(made))


def _rectangle(name: str, rank: int) -> Rectangle:
    shape, dim = TENSORS[name]
    local = tuple(size // 2 if i == dim else size for i, size in enumerate(shape))
    offset = tuple(rank * size if i == dim else 0 for i, size in enumerate(local))
    return Rectangle(name, "F32", shape, offset, local)


def _part(array: Array, r: Rectangle) -> Array:
    box = tuple(slice(at, at + size) for at, size in zip(r.global_offset, r.local_shape, strict=True))
    return np.ascontiguousarray(array[box])


def _placed(path: Path, rectangles: dict[str, Rectangle], file: int, rank: int) -> list[Placed]:
    header, data = safetensors_header.read(path), path.read_bytes()
    found = []
    for entry in header.entries:
        begin, end = header.data_offset + entry.begin, header.data_offset + entry.end
        found.append(Placed(rectangles[entry.name], file, begin, end, rank, _digest(data[begin:end])))
    return found


def _fragment_file(path: Path) -> FragmentFile:
    data, start = path.read_bytes(), safetensors_header.read(path).data_offset
    return FragmentFile(path.name, len(data), start, _digest(data[:start]))


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def _clean() -> dict[str, str]:
    """This process's environment without what would let the new one see the source tree."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _run(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=_clean())
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _pip(python: str, *arguments: str) -> None:
    _run([python, "-m", "pip", "--disable-pip-version-check", *arguments])
