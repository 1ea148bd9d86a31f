"""The Hugging Face reference directory, written by the safetensors library and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from shardmerge.common import places, reference
from shardmerge.common.errors import BadInputError, CorruptFileError, MissingConfigError
from shardmerge.common.reference import ReferenceTensor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"b": 1, "a": 2}')
    return tmp_path


def test_config_alone_is_a_reference(folder: Path) -> None:
    found = reference.read(folder)
    assert (list(found.config), found.tensors) == (["b", "a"], {})
    assert found.plain_dtype("w") is None


def test_a_single_file_is_read_by_its_header(folder: Path) -> None:
    safetensors.numpy.save_file({"w": np.zeros((2, 3), np.float16)}, folder / "model.safetensors")
    assert reference.read(folder).tensors == {"w": ReferenceTensor("F16", (2, 3))}


def test_all_files_of_an_index_are_read(folder: Path) -> None:
    safetensors.numpy.save_file({"w": np.zeros(2, np.float32)}, folder / "a.safetensors")
    safetensors.numpy.save_file({"v": np.zeros(3, np.int8)}, folder / "b.safetensors")
    index = {"metadata": {"total_size": 11}, "weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (folder / places.INDEX).write_text(json.dumps(index))
    found = reference.read(folder)
    assert found.tensors == {"w": ReferenceTensor("F32", (2,)), "v": ReferenceTensor("I8", (3,))}
    assert (found.plain_dtype("w"), found.plain_dtype("v")) == ("F32", None)
    assert reference.total_size(folder / places.INDEX) == 11


def test_a_file_that_the_index_names_must_be_there(folder: Path) -> None:
    (folder / places.INDEX).write_text('{"weight_map": {"w": "gone.safetensors"}}')
    with pytest.raises(
        CorruptFileError, match=r"gone.safetensors.*named by model.safetensors.index.json, but missing"
    ):
        reference.read(folder)


def test_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingConfigError) as error:
        reference.read(tmp_path)
    assert (error.value.exit_code, error.value.path) == (2, str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1, "a": 2}'])
def test_a_config_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(BadInputError, match="is not valid JSON"):
        reference.read(folder)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {"w": 1}}'])
def test_an_index_without_a_map_is_refused(folder: Path, text: str) -> None:
    (folder / places.INDEX).write_text(text)
    with pytest.raises(CorruptFileError):
        reference.read(folder)
